"""`pyrun stop`, `kill`, `wait`, `pause`, `unpause` and `rm`."""

from __future__ import annotations

import os
import time

import pytest

from support import DEADLINE, Node, reaped, status_of, wait_until

TRAP = "trap 'echo caught {0}; exit 3' {0}; echo ready; while :; do sleep 0.05; done"


def ready(pyrun: Node, name: str) -> None:
    wait_until(lambda: "ready" in pyrun.out("logs", name), "the trap is set")


def test_stop_sends_the_stop_signal_and_returns_when_it_has_ended(pyrun: Node) -> None:
    name = pyrun.start("--stop-signal", "USR1", "busybox", "sh", "-c", TRAP.format("USR1"))
    ready(pyrun, name)
    assert pyrun.out("stop", "-t", "60", name) == name
    assert pyrun.pids(name) == []
    assert pyrun.out("wait", name) == "3"
    assert "caught USR1" in pyrun.out("logs", name)


def test_stop_kills_after_the_grace_period(pyrun: Node) -> None:
    name = pyrun.start("busybox", "sleep", "100")  # pid 1 ignores TERM
    pyrun("stop", "-t", "1", name)
    assert pyrun.out("wait", name) == "137"


def test_stop_timeout_of_the_container(pyrun: Node) -> None:
    name = pyrun.start("--stop-timeout", "0", "busybox", "sleep", "100")
    pyrun("stop", name)
    assert pyrun.out("wait", name) == "137"


def test_stop_ends_every_process_not_only_the_first(pyrun: Node) -> None:
    name = pyrun.start("--pid", "host", "busybox", "sh", "-c", "sleep 100 & sleep 100 & wait")
    wait_until(lambda: len(pyrun.pids(name)) == 3, "all run")
    pids = pyrun.pids(name)
    pyrun("stop", "-t", "0", name)
    # Orphans, which whoever adopts them reaps in his own time.
    for pid in pids:
        assert not os.path.exists(f"/proc/{pid}") or status_of(pid)["State"].startswith("Z")


def test_stop_of_what_has_ended_is_fine_and_of_what_is_not_there_an_error(pyrun: Node) -> None:
    name = pyrun.start("busybox", "true")
    pyrun("wait", name)
    pyrun("stop", name)
    assert "no such container" in pyrun.fails(125, "stop", "nosuch")


@pytest.mark.parametrize("signal", ["HUP", "SIGHUP", "1"])
def test_kill_sends_any_signal_and_returns_at_once(pyrun: Node, signal: str) -> None:
    name = pyrun.start("busybox", "sh", "-c", TRAP.format("HUP"))
    ready(pyrun, name)
    pyrun("kill", "-s", signal, name)
    assert pyrun.out("wait", name) == "3"


def test_kill_ends_it_without_asking(pyrun: Node) -> None:
    name = pyrun.start("busybox", "sleep", "100")
    pyrun("kill", name)
    assert pyrun.pids(name) == [] and pyrun.out("wait", name) == "137"
    assert "not running" in pyrun.fails(125, "kill", name)
    assert "not a signal" in pyrun.fails(125, "kill", "-s", "NOSUCH", name)


def test_wait_blocks_until_the_end(pyrun: Node) -> None:
    name = pyrun.start("-i", "busybox", "sh", "-c", "sleep 100; exit 9")
    process = pyrun.spawn("wait", name)
    with reaped(process):
        pid = pyrun.pid(name)
        inner = next(p for p in wait_until(lambda: more(pyrun, name), "two run") if p != pid)
        os.kill(inner, 9)
        out, _ = process.communicate(timeout=DEADLINE)
    assert out == b"9\n"


def more(pyrun: Node, name: str) -> list[int]:
    pids = pyrun.pids(name)
    return pids if len(pids) > 1 else []


def test_wait_for_several_prints_each_code(pyrun: Node) -> None:
    one = pyrun.start("busybox", "sh", "-c", "exit 1")
    two = pyrun.start("busybox", "sh", "-c", "exit 2")
    assert pyrun.out("wait", one, two).split() == ["1", "2"]


def test_pause_freezes_and_unpause_thaws(pyrun: Node) -> None:
    name = pyrun.start("busybox", "sh", "-c", "while :; do :; done")
    pid = pyrun.pid(name)

    def ticks() -> int:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[11])

    pyrun("pause", name)
    assert "(paused)" in pyrun.out("ps")
    before = ticks()
    time.sleep(0.15)  # not to wait for something, but to see that nothing happens
    assert ticks() == before
    pyrun("unpause", name)
    wait_until(lambda: ticks() > before, "it goes on")
    assert "(paused)" not in pyrun.out("ps")


def test_a_paused_container_can_be_stopped_killed_and_removed(pyrun: Node) -> None:
    for end in (["stop", "-t", "0"], ["kill"], ["rm", "-f"]):
        name = pyrun.start("busybox", "sleep", "100")
        pyrun("pause", name)
        pyrun(*end, name)
        assert pyrun.pids(name) == []


def test_pause_needs_something_that_runs(pyrun: Node) -> None:
    name = pyrun.out("create", "busybox", "true")
    assert "not running" in pyrun.fails(125, "pause", name)


def test_rm_refuses_what_runs_and_force_does_not(pyrun: Node) -> None:
    before = pyrun.traces()
    name = pyrun.start("busybox", "sleep", "100")
    assert "is running" in pyrun.fails(125, "rm", name)
    assert status_of(pyrun.pid(name))["Name"] == "sleep"
    pyrun("rm", "-f", name)
    wait_until(lambda: pyrun.traces() == before, "nothing is left")
    pyrun("rm", "-f", name)
    assert "no such container" in pyrun.fails(125, "rm", name)


def test_rm_all(pyrun: Node) -> None:
    pyrun("create", "busybox", "true")
    pyrun.start("busybox", "sleep", "100")
    pyrun("rm", "-f", "--all")
    assert pyrun.out("ps", "-aq") == ""
