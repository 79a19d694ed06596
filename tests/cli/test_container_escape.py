"""Ways out that other runtimes once left open, tried one by one: images that lie, /proc tricks."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import imagebuild
from support import Node, compiled, read, status_of

Make = Callable[[imagebuild.Tar], str]


@pytest.fixture
def image(pyrun: Node, tmp_path: Path) -> Iterator[Make]:
    """Busybox with one more layer of the test's own; gone after the test."""
    made: list[str] = []

    def make(layer: imagebuild.Tar) -> str:
        directory = tmp_path / f"layout{len(made)}"
        busybox = Path("/bin/busybox").read_bytes()
        base = imagebuild.Tar().dir("bin").file("bin/busybox", busybox, mode=0o755)
        for name in ("sh", "echo", "cat", "ls", "sleep", "true", "touch", "readlink", "mkdir"):
            base.hardlink(f"bin/{name}", "bin/busybox")
        name = f"localhost/odd{len(made)}:1"
        layout = imagebuild.Layout()
        layout.image(base.end(), layer.end(), name=name)
        layout.write(str(directory))
        pyrun("image", "load", "-i", directory)
        made.append(name)
        return name

    yield make
    pyrun.remove_everything()
    for name in made:
        pyrun("image", "rm", name)


@pytest.fixture
def interpreter() -> Iterator[str]:
    """The host's python: it must be byte for byte the same afterwards."""
    import sys

    path = os.path.realpath(sys.executable)
    before = hashlib.sha256(Path(path).read_bytes()).digest(), os.stat(path)
    yield path
    after = hashlib.sha256(Path(path).read_bytes()).digest(), os.stat(path)
    assert before[0] == after[0] and before[1].st_mtime_ns == after[1].st_mtime_ns


# CVE-2019-5736: the runtime's own program, reached through /proc/self/exe


def test_an_entry_point_of_proc_self_exe_finds_nothing_to_run(
    pyrun: Node, interpreter: str
) -> None:
    done = pyrun("run", "--rm", "busybox", "/proc/self/exe", "-c", "print('inside')", check=False)
    # An interpreter that cannot find its library, or none at all: no code of the host runs.
    assert done.returncode != 0 and "inside" not in done.stdout


OVERWRITE = r"""
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
int main(int argc, char **argv) {
    /* Whatever shows up as another process's program: try to open it for writing, for a while. */
    for (int round = 0; round < 300; round++) {
        for (int pid = 2; pid < 60; pid++) {
            char path[64], target[256];
            snprintf(path, sizeof path, "/proc/%d/exe", pid);
            ssize_t n = readlink(path, target, sizeof target - 1);
            if (n < 0) continue;
            target[n] = 0;
            if (strstr(target, "probe") || strstr(target, "busybox")) continue;
            int fd = open(path, O_RDONLY | O_CLOEXEC);
            if (fd < 0) { printf("seen %s errno %d\n", target, errno); fflush(stdout); continue; }
            snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
            int w = open(path, O_WRONLY);
            printf("opened %s write %s\n", target, w < 0 ? strerror(errno) : "YES");
            fflush(stdout);
            close(fd);
        }
        usleep(1000);
    }
    return 0;
}
"""


def test_exec_gives_the_container_nothing_to_write_to(
    pyrun: Node, interpreter: str, tmp_path: Path
) -> None:
    compiled(tmp_path, OVERWRITE)
    name = pyrun.start("-v", f"{tmp_path}:/t", "busybox", "/t/probe")
    for _ in range(10):
        pyrun("exec", name, "/proc/self/exe", "-c", "pass", check=False)
        pyrun("exec", name, "true", check=False)
    assert "YES" not in pyrun.out("logs", name)


def test_a_script_whose_interpreter_is_proc_self_exe(
    pyrun: Node, interpreter: str, tmp_path: Path
) -> None:
    script = tmp_path / "script"
    script.write_text("#!/proc/self/exe\nprint('inside')\n")
    script.chmod(0o755)
    name = pyrun.start("-v", f"{tmp_path}:/t", "busybox", "sleep", "100")
    done = pyrun("exec", name, "/t/script", check=False)
    assert done.returncode != 0 and "inside" not in done.stdout


# CVE-2024-21626: a working directory through a leaked descriptor


@pytest.mark.parametrize("number", range(3, 12))
def test_a_workdir_in_proc_self_fd_never_leads_to_the_host(pyrun: Node, number: int) -> None:
    done = pyrun("run", "--rm", "-w", f"/proc/self/fd/{number}", "busybox", "sh", "-c",
                 "pwd -P; cat ../../../../../../etc/hostname; ls /", check=False)  # fmt: skip
    assert read("/etc/hostname").strip() not in done.stdout.splitlines()
    assert done.returncode != 0 or "/proc" in done.stdout


def test_exec_with_a_workdir_in_proc_self_fd(pyrun: Node) -> None:
    name = pyrun.start("busybox", "sleep", "100")
    for number in range(3, 12):
        done = pyrun("exec", "-w", f"/proc/self/fd/{number}", name, "ls", "../../../../../..",
                     check=False)  # fmt: skip
        assert done.returncode != 0 or "lost+found" not in done.stdout


def test_a_workdir_that_is_a_link_of_the_image_stays_inside(pyrun: Node, image: Make) -> None:
    name = image(imagebuild.Tar().symlink("work", "../../../../../../root").dir("root"))
    assert pyrun.out("run", "--rm", "-w", "/work", name, "sh", "-c", "pwd -P; touch x") == "/root"
    assert not os.path.exists("/root/x")


# CVE-2019-16884, CVE-2023-27561: /proc and /sys that an image has moved


@pytest.mark.parametrize("target", ["/proc", "/sys"])
def test_a_kernel_directory_that_is_a_link_is_refused(
    pyrun: Node, image: Make, target: str
) -> None:
    name = image(imagebuild.Tar().dir("evil").symlink(target[1:], "/evil"))
    assert "not a directory" in pyrun.fails(125, "run", "--rm", name, "true")


@pytest.mark.parametrize("link", ["/", "../../..", "/proc/1/root", "/proc/self/cwd"])
def test_other_mount_targets_that_are_links_stay_inside(
    pyrun: Node, image: Make, link: str
) -> None:
    """/dev, /etc and the place of a volume as links: what they lead to is inside the rootfs."""
    host = {path: sorted(os.listdir(path)) for path in ("/", "/etc")}
    before = {trace for trace in pyrun.traces() if trace.startswith("mount")}
    for layer in (
        imagebuild.Tar().symlink("etc", link),
        imagebuild.Tar().symlink("data", link),
        imagebuild.Tar().symlink("dev", link),
    ):
        name = image(layer)
        pyrun("run", "--rm", "-v", "/data/sub/dir", name, "true", check=False)
    assert {path: sorted(os.listdir(path)) for path in host} == host
    assert {trace for trace in pyrun.traces() if trace.startswith("mount")} == before


def test_a_volume_through_a_link_of_the_image_lands_inside(
    pyrun: Node, image: Make, tmp_path: Path
) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "marker").touch()
    name = image(imagebuild.Tar().symlink("data", "/inside/deep").dir("inside"))
    assert pyrun.out("run", "--rm", "-v", f"{volume}:/data", name, "ls", "/inside/deep") == (
        "marker"
    )


# CVE-2021-30465: the target of a mount is swapped for a link while another container starts


def test_swapping_a_shared_directory_for_a_link_wins_nothing(pyrun: Node, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    swapper = pyrun.start("-v", f"{shared}:/s", "busybox", "sh", "-c",
                          "mkdir /s/a; ln -s / /s/l; while :; do mv /s/a /s/b; mv /s/l /s/a; "
                          "mv /s/a /s/l; mv /s/b /s/a; done")  # fmt: skip
    for _ in range(10):
        done = pyrun("run", "--rm", "-v", f"{shared}:/s", "--tmpfs", "/s/a/x", "busybox", "ls",
                     "/s/a/x", check=False)  # fmt: skip
        assert done.stdout == ""
    pyrun("rm", "-f", swapper)


# CVE-2025-31133, CVE-2025-52565, CVE-2025-52881: /dev/null, /dev/console, writes sent elsewhere


def test_masking_uses_no_dev_null_of_the_images(pyrun: Node, image: Make) -> None:
    name = image(
        imagebuild.Tar().dir("dev").symlink("dev/null", "/proc/sys/kernel/core_pattern")
        .symlink("dev/console", "/proc/sys/kernel/core_pattern")
    )  # fmt: skip
    before = read("/proc/sys/kernel/core_pattern")
    script = "cat /proc/kcore | true; echo x > /proc/sys/kernel/core_pattern; echo end"
    out = pyrun.out("run", "--rm", "-t", name, "sh", "-c", script)
    assert "Read-only" in out and "end" in out
    assert read("/proc/sys/kernel/core_pattern") == before


def test_a_volume_cannot_cover_what_the_runtime_writes_to(pyrun: Node, tmp_path: Path) -> None:
    """A sysctl or a label is written only to a real procfs."""
    (tmp_path / "sys/kernel").mkdir(parents=True)
    (tmp_path / "sys/kernel/msgmax").write_text("old")
    for target in ("/proc", "/proc/sys", "/proc/self", "/sys/fs/../../proc"):
        done = pyrun("run", "--rm", "-v", f"{tmp_path}:{target}", "--sysctl", "kernel.msgmax=7777",
                     "busybox", "true", check=False)  # fmt: skip
        assert done.returncode == 125, target
    assert (tmp_path / "sys/kernel/msgmax").read_text() == "old"


# sight of the runtime's own processes


def test_a_joining_process_cannot_be_traced_or_read(pyrun: Node) -> None:
    """While `exec` sets itself up it is in the container's pid namespace, and not dumpable."""
    name = pyrun.start("--cap-add", "SYS_PTRACE", "busybox", "sh", "-c",
                       "while :; do cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'; done "
                       "| grep -a PYRUN_ROOT")  # fmt: skip
    for _ in range(5):
        pyrun("exec", name, "true")
    assert pyrun.out("logs", name) == ""


def test_the_supervisor_is_not_in_the_containers_namespaces(pyrun: Node) -> None:
    name = pyrun.start("busybox", "sleep", "100")
    pid = pyrun.supervisor(name)
    for kind in ("mnt", "pid", "net", "uts", "ipc"):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") == os.readlink(f"/proc/self/ns/{kind}")
    assert status_of(pid)["Seccomp"] == "0"
