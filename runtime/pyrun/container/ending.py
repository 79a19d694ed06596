"""The last act of a lone container's supervisor: its sandbox has no purpose any more.

Here, in the process that outlives the CLI, so that `--rm` keeps its word when nobody waits. Loaded
only then: the resident supervisor does not need it.
"""

from __future__ import annotations

import os

from pyrun.cgroup import api as cgroup
from pyrun.container import lifecycle, sandbox
from pyrun.container import record as records_of
from pyrun.explain import steps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyrun.explain.steps import Plan
    from pyrun.store.paths import Paths


def leave_supervisor_cgroup(layout: cgroup.Layout) -> None:
    """Step out of the cgroup that is about to be removed: into the top of every hierarchy."""
    for hierarchy in layout.hierarchies() if layout.systemd else []:
        file = f"{hierarchy.mount}/{'tasks' if hierarchy.version == 1 else 'cgroup.procs'}"
        try:
            with open(file, "w", encoding="ascii") as procs:
                procs.write("0")
        except OSError:
            continue


def after_exit(paths: Paths, name: str) -> None:
    """In the supervisor of a lone container that has ended: take its sandbox down, and remove the
    container where `--rm` asked for it."""
    with sandbox.lock(paths, name):
        if not os.path.exists(f"{paths.sandbox(name)}/record.json"):
            return  # removed meanwhile
        record = records_of.sandbox(paths, name)
        layout = cgroup.host_layout()
        leave_supervisor_cgroup(layout)
        plan: Plan = []
        members = [records_of.container(paths, member) for member in record["members"]]
        for member in members:
            plan += lifecycle.plan_member_down(paths, member, layout)
        plan += sandbox.plan_down(paths, record, layout)
        if any(member["remove"] for member in members):
            for member in members:
                plan += lifecycle.plan_forget_container(paths, member)
            plan += sandbox.plan_forget_sandbox(paths, record)
        steps.run(plan)
