"""Run inside the VM with systemd as process 1: pyrun stays in the cgroup systemd lends it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel.cgroup_lab import inside, remove, value, wait_forever
from pyrun.cgroup import api, systemd
from pyrun.explain import steps

MIB = 1 << 20

CREATE = """
import sys
from pyrun.cgroup import api
from pyrun.explain import steps
layout = api.host_layout()
limits = {"memory": {"limit": 67108864}}
steps.run(api.plan_create(layout, f"{layout.base()}/{sys.argv[1]}", limits))
"""


@pytest.fixture
def layout() -> Iterator[api.Layout]:
    with open("/proc/1/comm") as comm:
        assert comm.read() == "systemd\n"
    yield api.host_layout()
    subprocess.run(["systemctl", "stop", systemd.UNIT], check=False, capture_output=True)


def systemctl(*words: str) -> str:
    answer = subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False)
    return answer.stdout.strip()


def test_containers_live_in_a_delegated_unit(layout: api.Layout) -> None:
    path = f"{layout.base()}/web/nginx"
    assert path.startswith("machine.slice/pyrun.service/")
    steps.run(api.plan_create(layout, path, {"memory": {"limit": 32 * MIB}, "pids": {"limit": 9}}))
    assert value(layout, path, "memory", "memory.max") == str(32 * MIB)
    assert systemctl("show", "--value", "-p", "Delegate", systemd.UNIT) == "yes"
    assert systemctl("show", "--value", "-p", "ControlGroup", systemd.UNIT) == "/" + layout.base()
    with inside(layout, path, wait_forever) as pid:
        systemctl("daemon-reload")
        systemctl("daemon-reexec")
        # systemd leaves limits and processes of the delegated part alone.
        assert value(layout, path, "memory", "memory.max") == str(32 * MIB)
        assert api.pids(layout, path) == [pid]
    remove(layout, f"{layout.base()}/web")
    assert systemctl("is-active", systemd.UNIT) == "active"


def test_first_containers_may_come_at_once(layout: api.Layout) -> None:
    started = [subprocess.Popen([sys.executable, "-c", CREATE, f"pod{i}"]) for i in range(3)]
    assert [process.wait() for process in started] == [0, 0, 0]
    for i in range(3):
        assert value(layout, f"{layout.base()}/pod{i}", "memory", "memory.max") == "67108864"
        remove(layout, f"{layout.base()}/pod{i}")


def test_stopping_the_unit_ends_every_container(layout: api.Layout) -> None:
    path = f"{layout.base()}/web/nginx"
    steps.run(api.plan_create(layout, path, {}))
    with inside(layout, path, wait_forever) as pid:
        systemctl("stop", systemd.UNIT)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) in (
            -signal.SIGTERM,
            -signal.SIGKILL,
        )
    steps.run(api.plan_create(layout, path, {"pids": {"limit": 3}}))
    assert value(layout, path, "pids", "pids.max") == "3"
    remove(layout, f"{layout.base()}/web")


def test_a_container_and_its_supervisor_live_in_the_delegated_part(tmp_path: Path) -> None:
    """By /proc alone: the container below pyrun's unit, its supervisor in a leaf of its own."""
    environment = {
        **os.environ,
        "PYRUN_ROOT": str(tmp_path / "root"),
        "PYRUN_RUN_ROOT": str(tmp_path / "run"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }

    def pyrun(*args: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "pyrun", *args],
            env=environment,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout

    try:
        pyrun(
            "run", "-d", "--name", "guest", "--network", "none", "--memory", "32m",
            "busybox", "sleep", "1000",
        )  # fmt: skip
        [found] = json.loads(pyrun("inspect", "guest"))
        cgroup = own_cgroup(found["state"]["pid"])
        assert cgroup.startswith("/" + systemd_base() + "/") and cgroup.endswith("/guest/guest")
        assert Path(f"/sys/fs/cgroup{cgroup}/memory.max").read_text().strip() == str(32 << 20)
        parent = Path(f"/proc/{found['state']['pid']}/stat").read_text().rpartition(")")[2]
        supervisor = own_cgroup(int(parent.split()[1]))
        assert supervisor.rpartition("/")[0] == cgroup.rpartition("/")[0]
        assert supervisor.endswith("/_supervisor")
    finally:
        pyrun("rm", "-f", "guest")
    assert not Path(f"/sys/fs/cgroup{cgroup}").parent.exists()


def own_cgroup(pid: int) -> str:
    [line] = [
        line for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if line[:3] == "0::"
    ]
    return line[3:]


def systemd_base() -> str:
    from pyrun.cgroup.layout import SYSTEMD_BASE

    return SYSTEMD_BASE
