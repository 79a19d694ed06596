"""A place of its own to measure in: mount, network, PID and cgroup namespaces that end with us.

Engines leave things behind: bridges, firewall rules, pinned namespaces, cgroups, monitors. Here
they can, because all of it belongs to namespaces that nobody else sees, and goes with them. The
engines also cannot disturb what already runs on this host, pyrun's own pods included.

On a host with cgroup v1 the engines are shown a pure v1 view: crun 1.8 refuses hybrid hosts, and
podman makes plain folders for controllers that are mounted nowhere and then fails to remove them.
Next: `engines.py`.
"""

from __future__ import annotations

import errno
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

CGROUP = "pyrun-bench"
TOP = Path("/sys/fs/cgroup")


def run(*command: str | Path) -> str:
    """Run a command of the set-up and return what it prints."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout


def is_v1() -> bool:
    return not (TOP / "cgroup.controllers").exists()


def hierarchies() -> Iterator[Path]:
    """The mounted cgroup trees of a v1 or hybrid host."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, _ = line.split(" ", 3)
        if kind in ("cgroup", "cgroup2"):
            yield Path(where)


# outside


def enter(script: Path, arguments: list[str], work: Path) -> int:
    """Run `script` inside, wait for it, and clean up whatever happened; returns its exit code."""
    joined = make_cgroups() if is_v1() else []
    moves = "".join(f"echo $$ > {shlex.quote(str(d))}/cgroup.procs; " for d in joined)
    namespaces = "--mount --net --pid --fork --kill-child --mount-proc --propagation private"
    # A cgroup namespace shows the cgroup that one is in when it is made as the root.
    cgroup = "--cgroup" if joined else ""
    # catatonit is pid 1 in there: engines leave orphans, and somebody has to reap them.
    inside = shlex.join(["catatonit", "--", sys.executable, "-B", str(script), *arguments])
    try:
        command = f"{moves}exec unshare {namespaces} {cgroup} {inside}"
        return subprocess.run(["sh", "-c", command], check=False).returncode
    finally:
        for directory in joined or [TOP / "libpod_parent"]:
            remove_cgroup(directory)
        run("rm", "-rf", "--one-file-system", work)


def make_cgroups() -> list[Path]:
    """Our own cgroup in every v1 hierarchy, so that all the engines' cgroups lie below it."""
    made = []
    for mount in hierarchies():
        directory = mount / CGROUP
        directory.mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):
            if (mount / name).exists():
                (directory / name).write_text((mount / name).read_text())
        made.append(directory)
    return made


def remove_cgroup(directory: Path) -> None:
    """Remove a cgroup with all below it, once the last process that was killed has left."""
    deadline = time.monotonic() + 5
    for below, _, _ in os.walk(directory, topdown=False):
        while True:
            try:
                os.rmdir(below)
                break
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)


# inside


def furnish(work: Path) -> None:
    """What the engines need in here: /run and /dev/shm of their own, cgroups, a network."""
    run("mount", "-t", "tmpfs", "-o", "mode=755", "bench", "/run")
    run("mount", "-t", "tmpfs", "bench", "/dev/shm")
    if is_v1():
        show_only_v1(work)
    run("ip", "link", "set", "lo", "up")


def show_only_v1(work: Path) -> None:
    """Put a read-only /sys/fs/cgroup in place that has the v1 hierarchies and nothing else."""
    view = work / "cgroup"
    view.mkdir()
    run("mount", "-t", "tmpfs", "-o", "mode=755", "cgroup", view)
    known = Path("/proc/cgroups").read_text().splitlines()
    mounted = [line for line in known if line.startswith("#") or line.split()[1] != "0"]
    options = [line.split()[0] for line in mounted if not line.startswith("#")]
    for option in [*options, "none,name=systemd"]:
        directory = view / option.rpartition("=")[2]
        directory.mkdir()
        done = subprocess.run(
            ["mount", "-t", "cgroup", "-o", option, "cgroup", directory], capture_output=True
        )
        if done.returncode:  # no such tree (systemd's), or one that shares its mount
            directory.rmdir()
    run("umount", "--recursive", TOP)
    run("mount", "--move", view, TOP)
    run("mount", "-o", "remount,ro", TOP)
    (work / "cgroups").write_text("\n".join(mounted) + "\n")
    run("mount", "--bind", work / "cgroups", "/proc/cgroups")
