"""`pyrun exec`."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from support import DEADLINE, Node, namespace, read, reaped, status_of, wait_until


@pytest.fixture
def name(pyrun: Node) -> str:
    return pyrun.start("-e", "OWN=1", "-w", "/etc", "busybox", "sleep", "100")


def test_exec_joins_every_namespace_and_the_cgroup(pyrun: Node, name: str) -> None:
    pyrun("exec", "-d", name, "sleep", "99")
    first = pyrun.pid(name)
    second = wait_until(
        lambda: next((p for p in pyrun.pids(name) if "99" in read(f"/proc/{p}/cmdline")), 0),
        "it runs",
    )
    for kind in ("mnt", "pid", "net", "uts", "ipc", "cgroup"):
        assert namespace(first, kind) == namespace(second, kind), kind
    assert read(f"/proc/{first}/cgroup") == read(f"/proc/{second}/cgroup")
    for field in ("CapEff", "CapBnd", "Seccomp", "NoNewPrivs"):
        assert status_of(first)[field] == status_of(second)[field]
    assert os.readlink(f"/proc/{second}/cwd") == "/etc"


def test_exec_streams_and_exit_code(pyrun: Node, name: str) -> None:
    done = pyrun("exec", "-i", name, "sh", "-c", "cat; echo err >&2; exit 6", input="in\n",
                 check=False)  # fmt: skip
    assert (done.stdout, done.stderr, done.returncode) == ("in\n", "err\n", 6)
    assert pyrun("exec", name, "wc", "-c", input="unseen").stdout == "0\n"


@pytest.mark.parametrize(
    ("code", "command"),
    [(126, "/etc"), (126, "/etc/passwd"), (127, "nosuch"), (127, "/no/such"), (137, "")],
)
def test_exec_exit_codes(pyrun: Node, name: str, code: int, command: str) -> None:
    done = pyrun("exec", name, *([command] if command else ["sh", "-c", "kill -9 $$"]), check=False)
    assert done.returncode == code
    assert not command or command in done.stderr


def test_exec_flags(pyrun: Node, name: str) -> None:
    assert pyrun.out("exec", "-w", "/bin", name, "pwd") == "/bin"
    assert pyrun.out("exec", "-e", "MORE=2", name, "sh", "-c", "echo $OWN $MORE") == "1 2"
    assert pyrun.out("exec", "-u", "nobody:7", name, "sh", "-c", "id -u; id -g") == "65534\n7"
    assert pyrun.out("exec", "-u", "nobody", name, "grep", "CapEff", "/proc/self/status").endswith(
        "0000000000000000"
    )
    full = pyrun.out("exec", "--privileged", name, "grep", "-E", "Seccomp:", "/proc/self/status")
    assert full.endswith("0")
    assert "no such container" in pyrun.fails(125, "exec", "nosuch", "true")


def test_exec_needs_a_running_container(pyrun: Node) -> None:
    name = pyrun.start("busybox", "true")
    pyrun("wait", name)
    assert "not running" in pyrun.fails(125, "exec", name, "true")


def test_ten_megabytes_through_exec(pyrun: Node, name: str, tmp_path: Path) -> None:
    data = os.urandom(10 << 20)
    (tmp_path / "in").write_bytes(data)
    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("wb") as sink:
        process = pyrun.spawn("exec", "-i", name, "cat", stdin=source, stdout=sink)
        with reaped(process):
            assert process.wait(DEADLINE) == 0
    assert hashlib.sha256((tmp_path / "out").read_bytes()).digest() == hashlib.sha256(data).digest()


def test_no_descriptor_of_the_host_reaches_an_exec(pyrun: Node, name: str) -> None:
    assert pyrun.out("exec", name, "ls", "/proc/self/fd").split() == ["0", "1", "2", "3"]


def test_a_killed_client_leaves_the_command_running_and_nothing_else(
    pyrun: Node, name: str
) -> None:
    process = pyrun.spawn("exec", name, "sleep", "98")
    with reaped(process):
        wait_until(lambda: len(pyrun.pids(name)) == 2, "it runs")
    assert len(pyrun.pids(name)) == 2
    pyrun("exec", name, "true")
