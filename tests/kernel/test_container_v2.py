"""Containers on a cgroup v2 host, by the kernel's own files. Runs inside the test VM.

The VM's kernel has no nftables families for IP, so these containers have no bridge network.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.v2

MEMORY = 48 << 20


@pytest.fixture
def node(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Roots of its own, on the VM's tmpfs."""
    environment = {
        **os.environ,
        "PYRUN_ROOT": str(tmp_path / "root"),
        "PYRUN_RUN_ROOT": str(tmp_path / "run"),
    }
    yield environment
    pyrun(environment, "rm", "-f", "-a")


def pyrun(environment: dict[str, str], *args: str, code: int = 0) -> str:
    source = str(Path(__file__).parents[2] / "runtime")
    path = os.pathsep.join([source, *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "pyrun", *args],
        env={**environment, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stderr
    return done.stdout


def own_cgroup(environment: dict[str, str], name: str) -> Path:
    """The cgroup directory of the container's first process, from /proc alone."""
    [found] = json.loads(pyrun(environment, "inspect", name))
    text = Path(f"/proc/{found['state']['pid']}/cgroup").read_text()
    [path] = [line[3:] for line in text.splitlines() if line.startswith("0::")]
    return Path("/sys/fs/cgroup") / path.strip("/")


def test_limits_stand_in_the_v2_files(node: dict[str, str]) -> None:
    pyrun(
        node, "run", "-d", "--name", "limited", "--network", "none",
        "--memory", str(MEMORY), "--cpus", "0.5", "--pids-limit", "20", "--cpu-shares", "512",
        "busybox", "sleep", "1000",
    )  # fmt: skip
    cgroup = own_cgroup(node, "limited")
    assert cgroup.parts[-2:] == ("limited", "limited")
    assert (cgroup / "memory.max").read_text().strip() == str(MEMORY)
    assert (cgroup / "cpu.max").read_text().split() == ["50000", "100000"]
    assert (cgroup / "pids.max").read_text().strip() == "20"
    assert (cgroup / "cpu.weight").read_text().strip() != "100"
    assert "sleep" in pyrun(node, "exec", "limited", "ps")
    pyrun(node, "rm", "-f", "limited")
    assert not cgroup.exists() and not cgroup.parent.exists()


def test_memory_limit_kills_and_is_told(node: dict[str, str]) -> None:
    hog = "x=a; while true; do x=$x$x; done"
    pyrun(
        node, "run", "--name", "hog", "--network", "none", "--memory", "16m", "--memory-swap",
        "16m", "busybox", "sh", "-c", hog, code=137,
    )  # fmt: skip
    [found] = json.loads(pyrun(node, "inspect", "hog"))
    assert found["state"]["oom_killed"] is True


def test_device_program_guards_v2(node: dict[str, str]) -> None:
    """mknod is allowed, opening is not: the eBPF program of the cgroup decides."""
    script = "mknod /dev/loop-x b 7 0 && ! dd if=/dev/loop-x of=/dev/null count=1"
    pyrun(node, "run", "--rm", "--network", "none", "busybox", "sh", "-c", script)


def test_the_container_sees_its_own_cgroup_as_root(node: dict[str, str]) -> None:
    out = pyrun(
        node, "run", "--rm", "--network", "none", "--memory", str(MEMORY), "busybox", "sh", "-c",
        "cat /proc/self/cgroup; cat /sys/fs/cgroup/memory.max",
    )  # fmt: skip
    assert out.splitlines() == ["0::/", str(MEMORY)]


def test_pause_freezes(node: dict[str, str]) -> None:
    pyrun(node, "run", "-d", "--name", "cold", "--network", "none", "busybox", "sleep", "1000")
    cgroup = own_cgroup(node, "cold")
    pyrun(node, "pause", "cold")
    assert "frozen 1" in (cgroup / "cgroup.events").read_text()
    pyrun(node, "unpause", "cold")
    assert "frozen 0" in (cgroup / "cgroup.events").read_text()
