"""`pyrun run`: the process, its user, its environment, its exit code, its streams."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support import DEADLINE, Node, namespace, read, reaped, status_of, wait_until


def environment(pid: int) -> dict[str, str]:
    entries = read(f"/proc/{pid}/environ").split("\0")[:-1]
    return dict(entry.partition("=")[::2] for entry in entries)


def test_run_passes_output_and_arguments_through(pyrun: Node) -> None:
    done = pyrun("run", "--rm", "busybox", "sh", "-c", 'echo "$0|$1"; echo no >&2', "a b", "*")
    assert (done.stdout, done.stderr) == ("a b|*\n", "no\n")


def test_run_without_a_command_runs_the_images_own(pyrun: Node) -> None:
    assert pyrun.out("run", "--rm", "-i", "busybox", input="echo from $0") == "from sh"


def test_the_installed_console_script_works(pyrun: Node) -> None:
    script = Path(sys.executable).parent / "pyrun"
    done = subprocess.run(
        [script, "run", "--rm", "busybox", "echo", "hi"],
        env=pyrun.env, capture_output=True, check=True, text=True,
    )  # fmt: skip
    assert done.stdout == "hi\n"


def test_an_interrupt_while_modules_are_loaded_ends_with_130_and_no_traceback() -> None:
    code = (
        "import builtins, sys; from pyrun.__main__ import main; load = builtins.__import__\n"
        "def interrupted(name, *rest):\n"
        "    if name == 'pyrun.cli.main': raise KeyboardInterrupt\n"
        "    return load(name, *rest)\n"
        "builtins.__import__ = interrupted; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_python_dash_m_works(pyrun: Node) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pyrun", "run", "--rm", "busybox", "echo", "hi"],
        env=pyrun.env, capture_output=True, check=True, text=True,
    )  # fmt: skip
    assert done.stdout == "hi\n"


def test_run_detached_prints_the_id_and_leaves_it_running(pyrun: Node) -> None:
    id_ = pyrun.out("run", "-d", "--name", "one", "busybox", "sleep", "100")
    assert len(id_) == 64 and int(id_, 16)
    assert read(f"/proc/{pyrun.pid('one')}/cmdline") == "sleep\0" + "100\0"
    assert pyrun.out("rm", "-f", id_[:12]) == id_[:12]


def test_rm_leaves_nothing_when_a_detached_container_ends(pyrun: Node) -> None:
    before = pyrun.traces()
    pyrun("run", "-d", "--rm", "--name", "one", "busybox", "true")
    wait_until(lambda: pyrun.traces() == before, "it is removed")


# environment, directory, user


def test_environment_of_image_flag_file_and_caller(pyrun: Node, tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("# comment\nFROM_FILE=a = 'b'\nBOTH=file\nCALLERS\nNOBODYS\n\n")
    name = pyrun.start(
        "--env", "ONE=1", "-e", "BOTH=flag", "-e", "EMPTY=", "--env-file", file,
        "busybox", "sleep", "100",
    )  # fmt: skip
    found = environment(pyrun.pid(name))
    assert found["ONE"] == "1" and found["BOTH"] == "flag" and found["EMPTY"] == ""
    assert found["FROM_FILE"] == "a = 'b'"
    assert "NOBODYS" not in found and "CALLERS" not in found
    assert found["HOME"] == "/root" and found["PATH"].startswith("/usr/local/sbin:")
    assert not [key for key in found if key.startswith("PYRUN")]


def test_env_without_a_value_takes_the_callers(pyrun: Node) -> None:
    done = pyrun(
        "run", "--rm", "-e", "MINE", "busybox", "sh", "-c", "echo $MINE", env={"MINE": "x y"}
    )
    assert done.stdout == "x y\n"


def test_values_that_are_not_utf8_pass_unchanged(pyrun: Node) -> None:
    done = pyrun(
        "run", "--rm", "-e", "B=\udcff\udc80", "busybox", "sh", "-c", "echo $B $0", "\udcfe"
    )
    assert done.stdout == "\udcff\udc80 \udcfe\n"


def test_workdir(pyrun: Node) -> None:
    name = pyrun.start("--workdir", "/new/deep/place", "busybox", "sleep", "100")
    assert os.readlink(f"/proc/{pyrun.pid(name)}/cwd") == "/new/deep/place"
    assert "absolute" in pyrun.fails(125, "run", "--rm", "-w", "relative", "busybox", "true")


@pytest.mark.parametrize(
    ("user", "uid", "gid"),
    [
        ("1234", "1234", "0"),
        ("1234:56", "1234", "56"),
        ("nobody", "65534", "65534"),
        ("nobody:0", "65534", "0"),
        ("4000000000:4000000001", "4000000000", "4000000001"),
    ],
)
def test_user(pyrun: Node, user: str, uid: str, gid: str) -> None:
    """The primary group is a supplementary one as well: CVE-2022-36109."""
    name = pyrun.start("--user", user, "busybox", "sleep", "100")
    status = status_of(pyrun.pid(name))
    assert status["Uid"].split() == [uid] * 4 and status["Gid"].split() == [gid] * 4
    assert status["Groups"].split() == [gid]
    assert status["CapEff"] == status["CapPrm"] == "0000000000000000"


def test_groups_come_from_the_flag(pyrun: Node) -> None:
    name = pyrun.start("--user", "5:6", "--group-add", "77", "--group-add", "root", "busybox",
                       "sleep", "100")  # fmt: skip
    assert set(status_of(pyrun.pid(name))["Groups"].split()) == {"0", "6", "77"}


def test_unknown_user_is_one_clear_error(pyrun: Node) -> None:
    assert "no user 'nosuch'" in pyrun.fails(125, "run", "--user", "nosuch", "busybox", "true")


def test_a_user_may_open_its_own_standard_streams_again(pyrun: Node) -> None:
    done = pyrun("run", "--rm", "--user", "1234", "busybox", "sh", "-c",
                 "echo out > /dev/stdout; echo err > /dev/stderr")  # fmt: skip
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_hostname(pyrun: Node) -> None:
    name = pyrun.start("--hostname", "red.example", "busybox", "sleep", "100")
    pid = str(pyrun.pid(name))
    assert subprocess.check_output(["nsenter", "-t", pid, "-u", "hostname"]) == b"red.example\n"
    assert "red.example" in read(f"/proc/{pid}/root/etc/hosts")
    assert read(f"/proc/{pid}/root/etc/hostname") == "red.example\n"
    assert environment(int(pid))["HOSTNAME"] == "red.example"
    assert namespace(pid, "uts") != namespace("self", "uts")
    assert "64" in pyrun.fails(125, "run", "--hostname", "x" * 65, "busybox", "true")


def test_entrypoint_replaces_the_images_and_its_command(pyrun: Node) -> None:
    assert pyrun.out("run", "--rm", "--entrypoint", "echo", "busybox", "a") == "a"
    assert pyrun.out("run", "--rm", "--entrypoint", "echo 'x y'", "busybox", "z") == "x y z"
    assert "no command" in pyrun.fails(125, "run", "--entrypoint", "", "busybox")


# exit codes


@pytest.mark.parametrize(
    ("code", "command"),
    [
        (0, ["true"]),
        (7, ["sh", "-c", "exit 7"]),
        (126, ["/etc"]),
        (126, ["/etc/passwd"]),
        (127, ["nosuchcommand"]),
        (127, ["/nosuch/command"]),
        (127, ["/etc/passwd/command"]),
        (137, ["sh", "-c", "sh -c 'kill -9 $$'; exit $?"]),
        (255, ["sh", "-c", "exit 255"]),
    ],
)
def test_exit_code(pyrun: Node, code: int, command: list[str]) -> None:
    before = pyrun.traces()
    done = pyrun("run", "--rm", "busybox", *command, check=False)
    assert done.returncode == code, done.stderr
    if code in (126, 127):
        assert command[0] in done.stderr and done.stderr.startswith("pyrun: cannot start")
    wait_until(lambda: pyrun.traces() == before, "nothing is left")


def test_exit_code_of_a_signal_without_rm(pyrun: Node) -> None:
    done = pyrun("run", "--init", "--name", "one", "busybox", "sh", "-c", "kill -TERM $$",
                 check=False)  # fmt: skip
    assert done.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nosuchimage"], "nosuchimage"),
        (["--nosuchflag", "busybox"], "nosuchflag"),
        (["--memory", "many", "busybox"], "not a size"),
        (["--cpus", "9999", "busybox"], "out of range"),
        (["--volume", "relative/path:/x", "busybox"], "volume name"),
        (["--volume", "/tmp:relative", "busybox"], "absolute"),
        (["--volume", "/tmp:/", "busybox"], "container's /"),
        (["--mount", "type=bind,source=/no/such,target=/x", "busybox", "true"], "/no/such"),
        (["--mount", "type=odd,target=/x", "busybox"], "odd"),
        (["--cap-add", "CAP_SYS_ADMINN", "busybox"], "SYS_ADMIN"),
        (["--ulimit", "nofiles=3", "busybox"], "nofiles"),
        (["--ulimit", "nofile=5:3", "busybox"], "above the hard"),
        (["--network", "nosuch", "busybox"], "nosuch"),
        (["--network", "container:nosuch", "busybox", "true"], "nosuch"),
        (["--pid", "nosuch", "busybox", "true"], "nosuch"),
        (["--ipc", "nosuch", "busybox", "true"], "nosuch"),
        (["--security-opt", "nosuch", "busybox", "true"], "nosuch"),
        (["--security-opt", "seccomp=/no/such", "busybox", "true"], "/no/such"),
        (["--device", "/dev/nosuch", "busybox", "true"], "/dev/nosuch"),
        (["--device", "/etc/passwd", "busybox", "true"], "not a device"),
        (["--stop-signal", "NOSUCH", "busybox"], "NOSUCH"),
        (["--name", "../x", "busybox"], "'../x'"),
        (["--env-file", "/no/such", "busybox"], "/no/such"),
        (["--sysctl", "kernel.nosuch=1", "busybox", "true"], "kernel.nosuch"),
        (["--sysctl", "net.ipv4.nosuch=1", "busybox", "true"], "net/ipv4/nosuch"),
        (["--publish", "99999:80", "busybox", "true"], "99999"),
        (["--cpuset-cpus", "4000", "busybox", "true"], "4000"),
        (["--label", "=x", "busybox", "true"], "=x"),
        (["-it", "busybox", "true"], "terminal"),
    ],
)
def test_bad_input_is_one_error_and_leaves_nothing(
    pyrun: Node, args: list[str], words: str
) -> None:
    before = pyrun.traces()
    error = pyrun.fails(125, "run", *args)
    assert words in error
    wait_until(lambda: pyrun.traces() == before, "nothing is left")


def test_a_taken_name_is_refused_and_its_owner_is_unharmed(pyrun: Node) -> None:
    pyrun.start("busybox", "sleep", "100", name="one")
    pid = pyrun.pid("one")
    assert "taken by a container" in pyrun.fails(125, "run", "--name", "one", "busybox", "true")
    assert "taken" in pyrun.fails(125, "create", "--name", "one", "busybox", "true")
    assert pyrun.pid("one") == pid


# streams


def test_ten_megabytes_through_stdin_and_back(pyrun: Node, tmp_path: Path) -> None:
    data = os.urandom(10 << 20)
    given, got = tmp_path / "in", tmp_path / "out"
    given.write_bytes(data)
    with given.open("rb") as source, got.open("wb") as sink:
        process = pyrun.spawn("run", "-i", "--rm", "busybox", "cat", stdin=source, stdout=sink)
        with reaped(process):
            assert process.wait(DEADLINE) == 0
    assert hashlib.sha256(got.read_bytes()).digest() == hashlib.sha256(data).digest()


def test_without_interactive_stdin_is_empty(pyrun: Node) -> None:
    assert pyrun.out("run", "--rm", "busybox", "wc", "-c", input="lots") == "0"


def test_a_reader_that_leaves_does_not_hang_the_command(pyrun: Node) -> None:
    process = pyrun.spawn("run", "--rm", "--name", "one", "busybox", "yes")
    with reaped(process):
        assert process.stdout is not None
        assert process.stdout.read(2) == b"y\n"
        process.stdout.close()
        assert process.wait(DEADLINE) == 141
    assert pyrun.pid("one")


def test_output_without_a_newline_is_shown_at_once(pyrun: Node) -> None:
    process = pyrun.spawn(
        "run", "-i", "--rm", "busybox", "sh", "-c", "printf '> '; read x; echo $x"
    )
    with reaped(process):
        assert process.stdout is not None
        assert process.stdout.read(2) == b"> "
        out, _ = process.communicate(b"typed\n", DEADLINE)
        assert out == b"typed\n" and process.returncode == 0


def test_no_descriptor_of_the_host_reaches_the_container(pyrun: Node) -> None:
    reader, writer = os.pipe()
    try:
        process = pyrun.spawn("run", "--rm", "busybox", "ls", "-l", "/proc/self/fd",
                              pass_fds=(reader, writer))  # fmt: skip
        with reaped(process):
            out, _ = process.communicate(timeout=DEADLINE)
    finally:
        os.close(reader)
        os.close(writer)
    # 0, 1 and 2; the directory that ls itself reads is closed before it looks.
    assert len([line for line in out.splitlines() if b"->" in line]) == 3


# signals to the command itself


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_process_is_init_of_its_own_pid_namespace_and_ends_by_stop(
    pyrun: Node, number: signal.Signals
) -> None:
    """Interrupting an attached `run` leaves nothing: the container ends with its command."""
    before = pyrun.traces()
    process = pyrun.spawn("run", "--rm", "--name", "one", "busybox", "sleep", "100")
    with reaped(process):
        wait_until(lambda: pyrun.pids("one"), "it runs")
        pyrun("stop", "-t", "0", "one")
        assert process.wait(DEADLINE) == 137
    wait_until(lambda: pyrun.traces() == before, "nothing is left")
