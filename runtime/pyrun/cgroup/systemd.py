"""Where systemd is pid 1 the cgroup tree is its own: we ask it for a part and stay inside.

systemd's rule (systemd.io/CGROUP_DELEGATION) is that every cgroup has one writer. A unit with
Delegate=yes is the door: systemd makes the unit's cgroup, hands every controller down to it and
never touches what lies below. pyrun asks once per boot for one such unit, pyrun.service:
`systemctl status pyrun` shows all pods, `systemctl stop pyrun` ends them all. crun and podman ask
for a scope per container instead, a round trip over D-Bus each time.

systemd removes a unit's cgroup when it is empty, so one `sleep` stays in it, in a leaf of its own:
v2 wants no processes beside child cgroups that have controllers. The service has no main process
(Type=forking, GuessMainPID=no); it is alive while anything is alive in it.
"""

from __future__ import annotations

import errno
import os
import time

from pyrun.cgroup import files
from pyrun.errors import Unsupported

UNIT = "pyrun.service"
SLICE = "machine.slice"
LEAF = "_idle"
"""The leaf for the process that keeps the unit's cgroup; no pod can be called so."""

SECONDS = 30.0

REQUEST = (
    "systemd-run",
    "--quiet",
    "--collect",
    f"--unit={UNIT}",
    f"--slice={SLICE}",
    "--description=The containers of pyrun",
    "--property=Type=forking",
    "--property=GuessMainPID=no",
    "--property=Delegate=yes",
    "--property=TasksMax=infinity",
    "--property=OOMPolicy=continue",
    "/bin/sh",
    "-c",
    "sleep infinity &",
)


def delegate(directory: str) -> None:
    """Have systemd start the unit which lends pyrun its cgroup, at `directory`; once per boot.

    Raises Unsupported with systemd's answer.
    """
    if ready(directory):
        return
    import subprocess

    try:
        answer = subprocess.run(REQUEST, capture_output=True, text=True, timeout=SECONDS)
        said = answer.stderr.strip() or f"exit code {answer.returncode}, but no {directory}"
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    # Another pyrun may have asked a moment ago ("was already loaded"), and systemd puts processes
    # into the unit's cgroup while it starts: touch nothing before one is there.
    deadline = time.monotonic() + (SECONDS if "already" in said else 1)
    while not ready(directory):
        if time.monotonic() > deadline:
            raise Unsupported(
                f"cannot get a cgroup of our own from systemd: {said}",
                hint=f"systemctl status {UNIT}; journalctl -u {UNIT}",
            )
        settle(directory)
        time.sleep(0.005)


def ready(directory: str) -> bool:
    """Whether the unit's cgroup is there and all in it are in leaves."""
    try:
        return os.path.isdir(f"{directory}/{LEAF}") and not files.read(f"{directory}/cgroup.procs")
    except FileNotFoundError:
        return False


def settle(directory: str) -> None:
    """Move the processes of the unit's cgroup into its leaf."""
    try:
        found = files.read(f"{directory}/cgroup.procs").split()
        if found and not still_starting():
            files.mkdirs(directory, LEAF)
            for pid in found:
                files.write(f"{directory}/{LEAF}/cgroup.procs", pid)
    except OSError as error:
        # The unit is just being made or gone again, or the process has ended: look again.
        if error.errno not in (errno.ENOENT, errno.ENODEV, errno.ESRCH):
            raise


def still_starting() -> bool:
    """Whether systemd is still about to start processes of the unit."""
    import subprocess

    state = subprocess.run(
        ("systemctl", "is-active", UNIT), capture_output=True, text=True, timeout=SECONDS
    )
    return state.stdout.strip() != "active"
