"""`pyrun run`: the rootfs, volumes, mounts, and what the container must not see or write."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from support import Node, read, running


def mount_of(pid: int, target: str) -> dict[str, str]:
    """The topmost mount at `target` in the mount namespace of `pid`, from its mountinfo."""
    found = {}
    for line in read(f"/proc/{pid}/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        fields, (kind, source, superblock) = left.split(), right.split(maxsplit=2)
        if fields[4] == target:
            found = {"options": fields[5], "tags": " ".join(fields[6:]), "type": kind,
                     "source": source, "super": superblock, "root": fields[3]}  # fmt: skip
    assert found, f"nothing is mounted at {target}"
    return found


def options(pid: int, target: str) -> set[str]:
    return set(mount_of(pid, target)["options"].split(","))


def test_the_kernels_file_systems(pyrun: Node) -> None:
    pid = pyrun.pid(pyrun.start("busybox", "sleep", "100"))
    assert mount_of(pid, "/")["type"] == "overlay"
    for target, kind in (
        ("/proc", "proc"), ("/sys", "sysfs"), ("/dev", "tmpfs"), ("/dev/pts", "devpts"),
        ("/dev/mqueue", "mqueue"), ("/dev/shm", "tmpfs"),
    ):  # fmt: skip
        assert mount_of(pid, target)["type"] == kind
        assert "nosuid" in options(pid, target)
    assert "ro" in options(pid, "/sys") and "noexec" in options(pid, "/proc")
    assert "ro" in options(pid, "/sys/fs/cgroup")


def test_only_the_default_devices_are_there(pyrun: Node) -> None:
    pid = pyrun.pid(pyrun.start("busybox", "sleep", "100"))
    dev = Path(f"/proc/{pid}/root/dev")
    assert sorted(os.listdir(dev)) == sorted(
        "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero".split()
    )
    null = os.stat(dev / "null")
    assert (os.major(null.st_rdev), os.minor(null.st_rdev)) == (1, 3)
    assert stat.S_IMODE(null.st_mode) == 0o666


def test_nothing_of_the_hosts_tree_is_left(pyrun: Node) -> None:
    pid = pyrun.pid(pyrun.start("busybox", "sleep", "100"))
    text = read(f"/proc/{pid}/mountinfo")
    # What is bound in from the run root is named by its root, never by a place on the host.
    places = [line.split()[4] for line in text.splitlines()]
    allowed = ("/proc", "/sys", "/dev", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf")
    assert not [place for place in places if place != "/" and not place.startswith(allowed)]


# volumes


def test_a_directory_and_a_file_as_volumes(pyrun: Node, tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "file").write_text("from the host\n")
    out = pyrun.out("run", "--rm", "-v", f"{tmp_path}/dir:/a/b", "-v", f"{tmp_path}/file:/c",
                    "busybox", "sh", "-c",
                    "echo in > /a/b/new; cat /c; echo more >> /c")  # fmt: skip
    assert out == "from the host"
    assert (tmp_path / "dir/new").read_text() == "in\n"
    assert (tmp_path / "file").read_text() == "from the host\nmore\n"


@pytest.mark.parametrize("flag", ["-v", "--mount"])
def test_a_read_only_volume(pyrun: Node, tmp_path: Path, flag: str) -> None:
    value = {"-v": f"{tmp_path}:/a:ro", "--mount": f"type=bind,src={tmp_path},dst=/a,readonly"}
    name = pyrun.start(flag, value[flag], "busybox", "sleep", "100")
    pid = pyrun.pid(name)
    assert "ro" in options(pid, "/a")
    assert pyrun("exec", name, "touch", "/a/x", check=False).returncode == 1
    assert os.listdir(tmp_path) == []
    # The host's own mount is as it was.
    (tmp_path / "host").touch()


def test_a_read_only_volume_stays_so_whatever_its_source_forbids(
    pyrun: Node, tmp_path: Path
) -> None:
    running("mount", "-t", "tmpfs", "-o", "nosuid,nodev,noexec", "tmpfs", str(tmp_path))
    try:
        pid = pyrun.pid(pyrun.start("-v", f"{tmp_path}:/a:ro", "busybox", "sleep", "100"))
        assert options(pid, "/a") >= {"ro", "nosuid", "nodev", "noexec"}
        pyrun.remove_everything()
    finally:
        running("umount", str(tmp_path))


def test_a_missing_source_is_made_by_volume(pyrun: Node, tmp_path: Path) -> None:
    pyrun("run", "--rm", "-v", f"{tmp_path}/new/deep:/a", "busybox", "touch", "/a/x")
    assert (tmp_path / "new/deep/x").exists()


def test_a_named_volume_outlives_its_container(pyrun: Node) -> None:
    pyrun("run", "--rm", "-v", "kept:/data", "busybox", "sh", "-c", "echo 1 > /data/x")
    try:
        assert pyrun.out("run", "--rm", "-v", "kept:/d", "busybox", "cat", "/d/x") == "1"
    finally:
        running("rm", "-r", f"{pyrun.paths.root}/volumes")


def test_an_anonymous_volume_dies_with_its_container(pyrun: Node) -> None:
    name = pyrun.start("-v", "/data", "busybox", "sh", "-c", "echo 1 > /data/x; sleep 100")
    assert mount_of(pyrun.pid(name), "/data")["type"] != "overlay"
    pyrun("rm", "-f", name)
    assert not os.path.exists(f"{pyrun.paths.root}/volumes")


def test_a_volume_propagates_later_host_mounts_only_when_asked(pyrun: Node, tmp_path: Path) -> None:
    running("mount", "-t", "tmpfs", "tmpfs", str(tmp_path))
    try:
        running("mount", "--make-shared", str(tmp_path))
        (tmp_path / "sub").mkdir()
        plain = pyrun.start("-v", f"{tmp_path}:/a", "busybox", "sleep", "100")
        slave = pyrun.start("-v", f"{tmp_path}:/a:rslave", "busybox", "sleep", "100")
        running("mount", "-t", "tmpfs", "late", str(tmp_path / "sub"))
        assert "/a/sub" not in read(f"/proc/{pyrun.pid(plain)}/mountinfo")
        assert mount_of(pyrun.pid(slave), "/a/sub")["source"] == "late"
        pyrun.remove_everything()
    finally:
        running("umount", "-R", str(tmp_path))


def test_two_volumes_at_one_place_are_refused(pyrun: Node) -> None:
    error = pyrun.fails(125, "run", "-v", "/tmp:/a", "--tmpfs", "/a/", "busybox", "true")
    assert "two volumes" in error


# tmpfs, read-only


def test_tmpfs(pyrun: Node) -> None:
    name = pyrun.start("--tmpfs", "/scratch:size=1m,mode=700", "busybox", "sleep", "100")
    mount = mount_of(pyrun.pid(name), "/scratch")
    assert mount["type"] == "tmpfs" and "size=1024k" in mount["super"]
    assert {"nosuid", "nodev", "noexec"} <= set(mount["options"].split(","))
    mode = os.stat(f"/proc/{pyrun.pid(name)}/root/scratch").st_mode
    assert stat.S_IMODE(mode) == 0o700


def test_tmpfs_by_mount(pyrun: Node) -> None:
    name = pyrun.start("--mount", "type=tmpfs,target=/scratch,tmpfs-size=2m,tmpfs-mode=1777",
                       "busybox", "sleep", "100")  # fmt: skip
    assert "size=2048k" in mount_of(pyrun.pid(name), "/scratch")["super"]
    mode = os.stat(f"/proc/{pyrun.pid(name)}/root/scratch").st_mode
    assert stat.S_IMODE(mode) == 0o1777


def test_a_read_only_rootfs_with_writable_volumes(pyrun: Node) -> None:
    name = pyrun.start("--read-only", "--tmpfs", "/tmp", "busybox", "sleep", "100")
    assert "ro" in options(pyrun.pid(name), "/")
    assert pyrun("exec", name, "touch", "/x", check=False).returncode == 1
    assert pyrun("exec", name, "touch", "/bin/x", check=False).returncode == 1
    pyrun("exec", name, "touch", "/tmp/x")


def test_changes_belong_to_the_container_alone(pyrun: Node) -> None:
    one = pyrun.start("busybox", "sh", "-c", "echo changed > /etc/passwd; sleep 100")
    two = pyrun.start("busybox", "sleep", "100")
    assert "root" in read(f"/proc/{pyrun.pid(two)}/root/etc/passwd")
    assert pyrun.out("exec", one, "cat", "/etc/passwd") == "changed"


# closed doors


def test_masked_paths_show_nothing(pyrun: Node) -> None:
    name = pyrun.start("busybox", "sleep", "100")
    root = f"/proc/{pyrun.pid(name)}/root"
    for path in ("/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/interrupts"):
        if os.path.exists(path):
            status = os.stat(root + path)
            assert stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(1, 3), path
    for path in ("/sys/firmware", "/proc/acpi", "/proc/scsi"):
        if os.path.isdir(path):
            assert os.listdir(root + path) == [], path
            assert os.statvfs(root + path).f_flag & os.ST_RDONLY


def test_read_only_paths_refuse_a_write(pyrun: Node) -> None:
    name = pyrun.start("busybox", "sleep", "100")
    for path in (
        "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/sys/net/ipv4/ip_forward",
        "/sys/kernel/uevent_helper",
    ):  # fmt: skip
        if os.path.exists(path):
            done = pyrun("exec", name, "sh", "-c", f"echo x > {path}", check=False)
            assert "Read-only file system" in done.stderr, path
    pid = pyrun.pid(name)
    for path in ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"):
        if os.path.isdir(path):
            assert "ro" in options(pid, path)


def test_a_container_cannot_mount_again_what_is_masked(pyrun: Node) -> None:
    name = pyrun.start("busybox", "sleep", "100")
    for command in ("umount /proc/kcore", "mount -t proc proc /tmp", "mount -o remount,rw /sys"):
        assert pyrun("exec", name, "sh", "-c", command, check=False).returncode != 0


@pytest.mark.parametrize("mode", [(), ("-d",)])
def test_a_run_that_fails_unmakes_the_directories_it_made(
    pyrun: Node, tmp_path: Path, mode: tuple[str, ...]
) -> None:
    (tmp_path / "there").mkdir()
    flags = ["-v", f"{tmp_path}/there/new/deep:/x", "-v", "fresh:/y"]
    pyrun.fails(127, "run", *mode, *flags, "busybox", "no-such-command")
    assert os.listdir(tmp_path / "there") == []
    assert not os.path.exists(f"{pyrun.paths.root}/volumes")


def test_a_tmpfs_on_a_new_directory_is_everybodys(pyrun: Node) -> None:
    script = "stat -c %a /new /root; touch /new/x"
    flags = ["-u", "1000", "--tmpfs", "/new", "--tmpfs", "/root"]
    out = pyrun.out("run", "--rm", *flags, "busybox", "sh", "-c", script)
    assert out.split() == ["1777", "700"], "one that is covered keeps its mode"


def test_read_only_goes_for_hosts_and_its_like(pyrun: Node) -> None:
    done = pyrun("run", "--rm", "--read-only", "busybox", "touch", "/etc/hosts", check=False)
    assert done.returncode == 1 and "Read-only" in done.stderr
