"""Where systemd is pid 1 the cgroup tree is its own: we ask it for a part and stay inside.

systemd's rule (CGROUP_DELEGATION) is that every cgroup has one writer. A unit with Delegate=yes is
the door: systemd makes the unit's cgroup, hands every controller down to it and never touches what
lies below. pyrun asks once per boot for one such unit, a service that has done its work as soon as
it has started: it holds no process, so no resident memory, and the cgroup stays until the unit is
stopped (`systemctl stop pyrun`, which also ends every container in it). `systemctl status pyrun`
shows all pods. crun and podman ask for a scope per container instead; that costs a round trip over
D-Bus and two seconds' worth of units per hundred containers, and buys names in `systemctl`.
"""

from __future__ import annotations

import os

from pyrun.errors import Unsupported

UNIT = "pyrun.service"
SLICE = "machine.slice"

REQUEST = (
    "systemd-run",
    "--quiet",
    f"--unit={UNIT}",
    f"--slice={SLICE}",
    "--service-type=oneshot",
    "--remain-after-exit",
    "--description=pyrun's containers",
    "--property=Delegate=yes",
    "--property=TasksMax=infinity",
    "--property=OOMPolicy=continue",
    "/bin/true",
)


def delegate(directory: str) -> None:
    """Have systemd start the unit which lends pyrun its cgroup, at `directory`; once per boot.

    Raises Unsupported with systemd's answer.
    """
    if os.path.isdir(directory):
        return
    import subprocess

    try:
        answer = subprocess.run(REQUEST, capture_output=True, text=True, timeout=60)
        said = answer.stderr.strip() or f"exit code {answer.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    # Another pyrun may have asked at the same moment ("was already loaded"): the result counts.
    if not os.path.isdir(directory):
        raise Unsupported(
            f"cannot get a cgroup of our own from systemd: {said}",
            hint="systemctl status " + UNIT + "; without a reachable systemd as pid 1 remove "
            "/run/systemd/system and pyrun manages the tree itself",
        )
