"""Killed, interrupted and failing at every step: nothing stays, or `rm -f` takes it away.

The real command runs, with a narrator that strikes when step N is done: see `strike`.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from support import DEADLINE, ENTRY, Node, namespace, read, reaped, status_of, wait_until

STRIKE = """
import os, signal, sys
sys.path += {path!r}
from pyrun.explain import steps
class Striker(steps.Narrator):
    count = 0
    def done(self, step, nanoseconds):
        self.count += 1
        if self.count == {number}:
            print("struck after", step.op, file=sys.stderr, flush=True)
            {deed}
steps.narrator = Striker()
from pyrun.__main__ import main
main()
"""
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
FAIL = "raise OSError(5, 'struck')"
INTERRUPT = "os.kill(os.getpid(), signal.SIGINT)"


def strike(pyrun: Node, number: int, deed: str, *args: str) -> subprocess.CompletedProcess[str]:
    """`pyrun ARGS`, struck after `number` steps."""
    path = [part for part in ENTRY.split("'") if part.startswith("/")]
    script = STRIKE.format(path=path, number=number, deed=deed)
    return subprocess.run(
        [sys.executable, "-IS", "-c", script, *args], env=pyrun.env, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def every_step(pyrun: Node, deed: str, *args: str) -> Iterator[tuple[str, str]]:
    """Strike after every step in turn. Yields (the container's name, what it said)."""
    for number in range(1, 200):
        name = next(pyrun.names)
        done = strike(pyrun, number, deed, args[0], "--name", name, *args[1:])
        assert "Traceback" not in done.stderr, done.stderr
        if "struck after" not in done.stderr:
            assert done.returncode == 0, done.stderr
            assert number > 5
            pyrun("rm", "-f", name)
            return
        yield name, f"{number} {done.stderr}"


@pytest.mark.parametrize(
    "args",
    [
        ["create", "-v", "/data", "busybox", "true"],
        ["run", "-d", "-m", "32m", "-p", "127.0.0.1::80", "busybox", "sleep", "100"],
        ["run", "-d", "--rm", "--network", "none", "busybox", "sleep", "100"],
    ],
    ids=["create", "run", "run-rm"],
)
def test_kill_9_after_every_step_leaves_what_rm_removes(pyrun: Node, args: list[str]) -> None:
    before = pyrun.traces()
    struck = dict(every_step(pyrun, KILL, *args))
    pyrun("ps", "-a")
    pyrun("rm", "-f", *struck)
    wait_until(lambda: not pyrun.traces() - before, "rm -f removes all of it", 10)


@pytest.mark.parametrize("deed", [FAIL, INTERRUPT], ids=["failure", "Ctrl-C"])
def test_a_failure_or_ctrl_c_after_every_step_is_undone(pyrun: Node, deed: str) -> None:
    before = pyrun.traces()
    for name, said in every_step(
        pyrun, deed, "run", "-d", "-p", "127.0.0.1::80", "-v", "/data", "busybox", "sleep", "100"
    ):
        left = pyrun.traces() - before
        if left:  # a supervisor may need a moment to end
            wait_until(lambda: not pyrun.traces() - before, f"{name} undone: {said}", 5)
        assert "left behind" not in said
        if deed == FAIL:
            assert said.count("pyrun: ") == 1 and "EIO" in said


def test_kill_9_of_start_after_every_step(pyrun: Node) -> None:
    pyrun("create", "--name", "one", "busybox", "sleep", "100")
    for number in range(1, 200):
        done = strike(pyrun, number, KILL, "start", "one")
        if done.returncode == 0:
            break
        # Whatever is half up, another start puts it right.
        pyrun("start", "one")
        assert status_of(pyrun.pid("one"))["Name"] == "sleep"
        pyrun("kill", "one")
    assert number > 5


def test_kill_9_of_rm_after_every_step(pyrun: Node) -> None:
    before = pyrun.traces()
    names = []
    for number in range(1, 200):
        name = pyrun.start("-p", "127.0.0.1::80", "busybox", "sleep", "100")
        done = strike(pyrun, number, KILL, "rm", "-f", name)
        if done.returncode == 0:
            break
        names.append(name)
    assert number > 5
    pyrun("rm", "-f", *names)
    wait_until(lambda: not pyrun.traces() - before, "rm -f removes all of it", 10)


def test_kill_9_at_any_moment_of_an_attached_run(pyrun: Node) -> None:
    before = pyrun.traces()
    chance = random.Random(1)
    names = []
    for _ in range(15):
        name = next(pyrun.names)
        names.append(name)
        process = pyrun.spawn("run", "--name", name, "busybox", "true")
        with reaped(process):
            time.sleep(chance.uniform(0.05, 0.3))  # the moment is what varies
            process.kill()
    pyrun("rm", "-f", *names)
    wait_until(lambda: not pyrun.traces() - before, "rm -f removes all of it", 10)


def test_sigterm_at_any_moment_leaves_nothing(pyrun: Node) -> None:
    before = pyrun.traces()
    chance = random.Random(2)
    for _ in range(15):
        process = pyrun.spawn("run", "--rm", "busybox", "true")
        with reaped(process):
            time.sleep(chance.uniform(0.05, 0.3))  # the moment is what varies
            process.terminate()
            process.communicate(timeout=DEADLINE)
        wait_until(lambda: not pyrun.traces() - before, "nothing is left", 10)


# the supervisor


def kill_supervisor(pyrun: Node, name: str) -> None:
    pid = pyrun.supervisor(name)
    os.kill(pid, signal.SIGKILL)
    wait_until(
        lambda: not os.path.exists(f"/proc/{pid}") or status_of(pid)["State"].startswith("Z"),
        "the supervisor is gone",
    )


def test_a_container_survives_its_supervisor(pyrun: Node) -> None:
    name = pyrun.start("busybox", "sh", "-c", "while :; do echo x; sleep 0.01; done")
    pid = pyrun.pid(name)
    kill_supervisor(pyrun, name)
    assert status_of(pid)["State"][0] in "SR"
    assert "Up " in pyrun.out("ps")
    assert "supervisor" in pyrun.fails(125, "exec", name, "true")
    pyrun("stop", "-t", "0", name)
    assert not os.path.exists(f"/proc/{pid}") or status_of(pid)["State"].startswith("Z")
    assert "Exited" in pyrun.out("ps", "-a")
    pyrun("start", name)
    assert pyrun.out("exec", name, "echo", "again") == "again"


def test_rm_wins_whatever_happened_to_the_supervisor(pyrun: Node) -> None:
    before = pyrun.traces()
    one = pyrun.start("-p", "127.0.0.1::80", "busybox", "sleep", "100")
    two = pyrun.start("busybox", "sleep", "100")
    kill_supervisor(pyrun, one)
    os.kill(pyrun.supervisor(two), signal.SIGSTOP)
    pyrun("rm", "-f", one, two)
    wait_until(lambda: not pyrun.traces() - before, "nothing is left", 10)


def test_a_supervisor_forked_by_another_lives_and_dies_alone(pyrun: Node) -> None:
    one = pyrun.start("busybox", "sleep", "100")
    two = pyrun.start("busybox", "sleep", "100")
    held = {os.readlink(f"/proc/{pyrun.supervisor(two)}/fd/{fd}")
            for fd in os.listdir(f"/proc/{pyrun.supervisor(two)}/fd")}  # fmt: skip
    assert not [path for path in held if one in path]
    kill_supervisor(pyrun, one)
    assert pyrun.out("exec", two, "echo", "alive") == "alive"
    pyrun("rm", "-f", one)
    assert pyrun.out("exec", two, "echo", "alive") == "alive"


def test_a_reboot_ends_containers_and_start_works(pyrun: Node) -> None:
    """What a reboot leaves: the root, an empty run root, no process."""
    up = pyrun.start("busybox", "sh", "-c", "echo x >> /boots; sleep 100")
    never = pyrun.out("create", "busybox", "true")
    kill_supervisor(pyrun, up)
    for pid in pyrun.pids(up):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not pyrun.pids(up), "its processes are gone")
    for line in reversed(read("/proc/self/mountinfo").splitlines()):
        place = line.split()[4]
        if place.startswith(pyrun.paths.run_root + "/"):
            subprocess.run(["umount", place], check=True)
    for entry in os.listdir(pyrun.paths.run_root):
        subprocess.run(["rm", "-r", f"{pyrun.paths.run_root}/{entry}"], check=True)
    subprocess.run(["ip", "link", "delete", pyrun.paths.bridge], check=True)
    assert pyrun.out("ps", "-q") == ""
    text = pyrun.out("ps", "-a")
    assert "Exited (255)" in text and "Created" in text
    pyrun("start", up)
    assert namespace(pyrun.pid(up), "net") != namespace("self", "net")
    wait_until(lambda: pyrun.out("exec", up, "cat", "/boots") == "x\nx", "it runs again")
    pyrun("start", "-a", never)


# many


def test_the_same_name_twice_at_once_goes_to_one(pyrun: Node) -> None:
    for _ in range(3):
        processes = [pyrun.spawn("run", "-d", "--name", "one", "busybox", "sleep", "100")
                     for _ in range(4)]  # fmt: skip
        codes = []
        for process in processes:
            with reaped(process):
                _, said = process.communicate(timeout=DEADLINE)
                codes.append(process.returncode)
                assert process.returncode == 0 or b"taken" in said, said
        assert sorted(codes) == [0, 125, 125, 125]
        assert status_of(pyrun.pid("one"))["Name"] == "sleep"
        pyrun("rm", "-f", "one")


def test_a_hundred_containers_at_once(pyrun: Node) -> None:
    before = pyrun.traces()
    names = [next(pyrun.names) for _ in range(100)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: pyrun.start("busybox", "sleep", "1000", name=name), names))
    pids = {pyrun.pid(name) for name in names}
    assert len(pids) == 100
    assert len({namespace(pid, "net") for pid in pids}) == 100
    leases = os.listdir(pyrun.paths.leases)
    assert len(set(leases)) == 100
    with ThreadPoolExecutor(4) as pool:
        parts = [names[start::4] for start in range(4)]
        list(pool.map(lambda part: pyrun("rm", "-f", *part), parts))
    wait_until(lambda: not pyrun.traces() - before, "nothing is left", 10)
