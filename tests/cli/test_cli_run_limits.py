"""`pyrun run`'s limits: the numbers in the cgroup files, and that the kernel acts on them."""

from __future__ import annotations

import json
import os
import resource

import pytest

from support import Node, read, status_of


def test_memory_limit_is_in_the_cgroup(pyrun: Node) -> None:
    name = pyrun.start("--memory", "48m", "busybox", "sleep", "100")
    found = pyrun.limit(name, "memory", "memory.limit_in_bytes", "memory.max")
    assert int(found) == 48 << 20


def test_too_much_memory_ends_in_137_and_is_shown(pyrun: Node) -> None:
    done = pyrun("run", "--name", "hungry", "--memory", "16m", "--memory-swap", "16m", "busybox",
                 "sh", "-c", "x=a; while :; do x=$x$x; done", check=False)  # fmt: skip
    assert done.returncode == 137
    assert "out of memory" in pyrun.out("ps", "-a")
    assert json.loads(pyrun.out("inspect", "hungry"))[0]["state"]["oom_killed"] is True


def test_cpus(pyrun: Node) -> None:
    name = pyrun.start("--cpus", "0.25", "busybox", "sleep", "100")
    if pyrun.layout.controllers["cpu"].version == 2:
        quota, period = read(pyrun.cgroup(name, "cpu") / "cpu.max").split()
    else:
        quota, period = (
            read(pyrun.cgroup(name, "cpu") / f"cpu.cfs_{what}_us") for what in ("quota", "period")
        )
    assert int(quota) * 4 == int(period)


def test_cpu_shares(pyrun: Node) -> None:
    name = pyrun.start("--cpu-shares", "512", "busybox", "sleep", "100")
    found = pyrun.limit(name, "cpu", "cpu.shares", "cpu.weight")
    assert int(found) == (512 if pyrun.layout.controllers["cpu"].version == 1 else 20)


def test_cpuset_cpus(pyrun: Node) -> None:
    name = pyrun.start("--cpuset-cpus", "0", "busybox", "sleep", "100")
    assert pyrun.limit(name, "cpuset", "cpuset.cpus", "cpuset.cpus") == "0"
    assert os.sched_getaffinity(pyrun.pid(name)) == {0}


def test_pids_limit_refuses_a_fork(pyrun: Node) -> None:
    done = pyrun("run", "--name", "few", "--pids-limit", "3", "busybox", "sh", "-c",
                 "sleep 9 & sleep 9 & sleep 9 & sleep 9 & wait", check=False)  # fmt: skip
    assert "can't fork" in done.stderr and done.returncode == 2
    name = pyrun.start("--pids-limit", "3", "busybox", "sleep", "100")
    assert pyrun.limit(name, "pids", "pids.max", "pids.max") == "3"


def test_limits_hold_for_exec_too(pyrun: Node) -> None:
    name = pyrun.start("--pids-limit", "2", "busybox", "sleep", "100")
    pyrun("exec", name, "true")
    done = pyrun("exec", name, "sh", "-c", "sleep 1 & true", check=False)
    assert done.returncode == 2 and "can't fork" in done.stderr


def test_ulimit(pyrun: Node) -> None:
    name = pyrun.start("--ulimit", "nofile=123:456", "--ulimit", "core=0", "busybox", "sleep", "9")
    pid = pyrun.pid(name)
    assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (123, 456)
    assert resource.prlimit(pid, resource.RLIMIT_CORE) == (0, 0)


def test_a_ulimit_above_what_the_host_allows_is_lowered_with_a_note(pyrun: Node) -> None:
    bounding = int(status_of("self")["CapBnd"], 16)
    if bounding >> 24 & 1:
        pytest.skip("kernel lacks nothing here: CAP_SYS_RESOURCE may raise every limit")
    _, ceiling = resource.getrlimit(resource.RLIMIT_NOFILE)
    done = pyrun("run", "--rm", "--ulimit", f"nofile={ceiling + 5}", "busybox",
                 "sh", "-c", "ulimit -Hn")  # fmt: skip
    assert done.stdout == f"{ceiling}\n"
    assert f"lowered to {ceiling}" in done.stderr


def test_oom_score_adj(pyrun: Node) -> None:
    name = pyrun.start("--oom-score-adj", "300", "busybox", "sleep", "100")
    assert read(f"/proc/{pyrun.pid(name)}/oom_score_adj") == "300\n"


def test_shm_size(pyrun: Node) -> None:
    name = pyrun.start("--shm-size", "1m", "busybox", "sleep", "100")
    found = os.statvfs(f"/proc/{pyrun.pid(name)}/root/dev/shm")
    assert found.f_frsize * found.f_blocks == 1 << 20
