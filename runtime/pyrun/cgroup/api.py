"""Cgroups as the rest of pyrun sees them, the same on v1, v2 and every mixture.

A cgroup is named by its path in the tree, `pyrun/web/nginx`, whatever hierarchies it spans; begin
with `layout.base()`. Limits are the dict `linux.resources` of the OCI runtime specification.

    layout = host_layout()                              what this host has, read once per command
    path = f"{layout.base()}/web/nginx"
    run(plan_create(layout, path, resources))           directories, then limits
    unified_directory(layout, path)                     open it, clone3(CLONE_INTO_CGROUP)
    join_files(layout, path)                            init writes "0" into each, before execve
    run(plan_update(layout, path, resources))
    run(plan_remove(layout, path))                      kills what is left in it

v2 allows processes only in leaves: what belongs to a pod as a whole (its supervisor) goes into a
leaf of its own, `pyrun/web/supervisor`.

How a process joins decides about 10 ms. Moving a whole process (`cgroup.procs`) takes a lock that
waits for an RCU grace period; a single-threaded process that writes 0 into v1's `tasks`, and one
born in its v2 cgroup by CLONE_INTO_CGROUP, need not wait. `join_files` therefore lists `tasks`.
"""

from __future__ import annotations

from pyrun.cgroup import files, v1, v2
from pyrun.cgroup.layout import SYSTEMD_BASE, Hierarchy, Layout, host_layout, read_layout
from pyrun.cgroup.stats import oom_kills, stats
from pyrun.errors import BadInput, Unsupported
from pyrun.explain.steps import Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyrun.explain.steps import Plan

    Resources = dict[str, Any]

__all__ = [
    "Hierarchy",
    "Layout",
    "directories",
    "freeze",
    "host_layout",
    "join_files",
    "kill",
    "oom_kills",
    "pids",
    "plan_create",
    "plan_remove",
    "plan_update",
    "read_layout",
    "stats",
    "thaw",
    "unified_directory",
]

ALWAYS = ("cpu", "cpuset", "io", "memory", "pids")
"""v2 controllers every cgroup of ours has, limited or not: they count, and can be limited later.
hugetlb and rdma cost something in every cgroup and are enabled when they are asked for."""

SECTIONS = (
    ("memory", "memory"),
    ("cpu", "cpu"),
    ("cpu", "cpuset"),
    ("pids", "pids"),
    ("blockIO", "io"),
    ("hugepageLimits", "hugetlb"),
    ("rdma", "rdma"),
)
"""Which controller a section of linux.resources needs; the function of its name plans it."""

CPUSET_KEYS = frozenset(("cpus", "mems"))


def checked(path: str) -> str:
    """A cgroup path without outer slashes. Raises BadInput for one that leaves its place."""
    parts = path.strip("/").split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise BadInput(
            f"cannot use the cgroup path {path!r}",
            hint="it is made of plain names below the top, like pyrun/web",
        )
    return "/".join(parts)


def directories(layout: Layout, path: str) -> list[str]:
    """Every directory of cgroup `path`, one for each hierarchy."""
    path = checked(path)
    return [hierarchy.directory(path) for hierarchy in layout.hierarchies()]


def unified_directory(layout: Layout, path: str) -> str | None:
    """The v2 directory of cgroup `path`, on hybrid hosts as well; None without v2."""
    return layout.unified.directory(checked(path)) if layout.unified else None


def join_files(layout: Layout, path: str, unified: bool = False) -> list[str]:
    """The files a single-threaded process writes `0` into to join cgroup `path`.

    v2 is left to CLONE_INTO_CGROUP; `unified` lists its file as well.
    """
    path = checked(path)
    found = [f"{h.directory(path)}/tasks" for h in layout.hierarchies() if h.version == 1]
    if unified and layout.unified:
        found.append(f"{layout.unified.directory(path)}/cgroup.procs")
    return found


def plan_create(
    layout: Layout, path: str, resources: Resources, devices: list[Any] | None = None
) -> Plan:
    """The steps that make cgroup `path` and limit it. `devices` overrides resources["devices"].

    Pure. Raises Unsupported for a limit this host cannot enforce, BadInput for a senseless one.
    """
    path = checked(path)
    if devices is not None:
        resources = {**resources, "devices": devices}
    limits = plan_limits(layout, path, resources)
    needed = needed_controllers(layout, resources)
    plan: Plan = []
    if layout.systemd and inside(path, SYSTEMD_BASE):
        plan.append(delegation(layout))
    plan += make_v1(layout, path)
    if layout.unified:
        plan.append(make_v2(layout, layout.unified, path, needed))
    return plan + limits


def plan_update(layout: Layout, path: str, resources: Resources) -> Plan:
    """The steps that change the limits of a living cgroup; what is not named stays as it is.

    Pure. Raises as plan_create does.
    """
    path = checked(path)
    plan = plan_limits(layout, path, resources)
    needed = [c for c in needed_controllers(layout, resources) if c not in ALWAYS]
    if layout.unified and needed:
        plan.insert(0, make_v2(layout, layout.unified, path, needed, undo=False))
    return plan


def plan_remove(layout: Layout, path: str, above: str = "") -> Plan:
    """The steps that end what still runs in cgroup `path` and remove it with all below it.

    `above` names a cgroup between it and the base that goes with the last one in it.
    Pure; running it tolerates that nothing is there.
    """
    path = checked(path)
    where = directories(layout, path)
    unified, other, freezer = killing(layout, path)
    kill_it = Step(
        "cgroup.files.kill_all",
        unified,
        other,
        freezer,
        why="end every process that is left in the cgroup, at once",
        shell=f"echo 1 > {unified}/cgroup.kill"
        if unified
        else f"kill -9 $(cat {other}/cgroup.procs)",
        man="cgroup-v2: cgroup.kill",
    )
    remove = Step(
        "cgroup.files.remove",
        where,
        parents(layout, path, above),
        True,
        why="remove the cgroup from every hierarchy",
        shell="find " + " ".join(where) + " -depth -type d -exec rmdir {} +",
        man="cgroups(7)",
    )
    return [kill_it, remove]


def pids(layout: Layout, path: str) -> list[int]:
    """The processes in cgroup `path` and below it; none where it does not exist."""
    return sorted({pid for d in directories(layout, path)[-1:] for pid in files.pids(d)})


def kill(layout: Layout, path: str, signal: int = 9) -> None:
    """Send `signal` to every process in cgroup `path` and below it; none there is fine."""
    path = checked(path)
    if signal == 9:
        files.kill_all(*killing(layout, path))
    else:
        files.signal_all(directories(layout, path)[-1], signal)


def freeze(layout: Layout, path: str, frozen: bool = True) -> None:
    """Stop every process in cgroup `path` and below it where it stands, and wait until they are.

    Raises NotFound without the cgroup, Conflict when they do not freeze within 5 s.
    """
    # v2's freezer first, on hybrid hosts too: what it froze can be killed, traced and moved.
    hierarchy = layout.unified or layout.controllers.get("freezer")
    if hierarchy is None:
        raise Unsupported(
            "cannot pause: this host has neither the v1 freezer nor a v2 tree",
            hint="mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified",
        )
    files.set_frozen(hierarchy.directory(checked(path)), hierarchy.version, frozen)


def thaw(layout: Layout, path: str) -> None:
    """Let the frozen processes of cgroup `path` go on. Raises as freeze() does."""
    freeze(layout, path, False)


def killing(layout: Layout, path: str) -> tuple[str, str, bool]:
    """The arguments of kill_all: the v2 directory, a v1 one, whether that is the freezer's."""
    trees = [h for h in layout.hierarchies() if h.version == 1]
    trees.sort(key=lambda h: "freezer" not in h.controllers)
    other = trees[0].directory(path) if trees else ""
    return (
        unified_directory(layout, path) or "",
        other,
        bool(trees) and ("freezer" in trees[0].controllers),
    )


def inside(path: str, base: str) -> bool:
    return path == base or path.startswith(base + "/")


def parents(layout: Layout, path: str, above: str = "") -> list[str]:
    """The directories of the cgroups that only group others, deepest first: `above`, and pyrun's
    own top where `path` or `above` lies right below it.

    Removed along with the last cgroup in them; systemd's unit is systemd's to remove.
    """
    found = directories(layout, above) if above else []
    if not layout.systemd and (above or path).rpartition("/")[0] == layout.base():
        found += directories(layout, layout.base())
    return found


def delegation(layout: Layout) -> Step:
    """The step that asks systemd for a cgroup of our own."""
    from pyrun.cgroup import systemd

    tree = layout.named.get("systemd") or layout.unified
    assert tree, "systemd always has a tree of its own"
    return Step(
        "cgroup.systemd.delegate",
        tree.directory(SYSTEMD_BASE),
        why="ask systemd, who owns the cgroup tree, for a part that is ours",
        shell=" ".join(f"'{word}'" if " " in word else word for word in systemd.REQUEST),
        man="systemd-run(1), systemd.resource-control(5): Delegate=",
    )


def make_v1(layout: Layout, path: str) -> Plan:
    """The steps that make the directories of the v1 hierarchies."""
    trees = [h for h in layout.hierarchies() if h.version == 1]
    sets = [h for h in trees if "cpuset" in h.controllers]
    others = [h for h in trees if "cpuset" not in h.controllers]
    plan: Plan = []
    if others:
        mounts = [h.mount for h in others]
        names = ",".join(mount.rpartition("/")[2] for mount in mounts)
        top = mounts[0].rpartition("/")[0]
        alike = len(mounts) > 1 and all(mount.rpartition("/")[0] == top for mount in mounts)
        where = f"{top}/{{{names}}}/{path}" if alike else " ".join(f"{m}/{path}" for m in mounts)
        plan.append(
            Step(
                "cgroup.v1.make",
                mounts,
                path,
                why="make the cgroup in the tree of every v1 controller",
                undo=("cgroup.files.remove", (dirs(others, path), up(layout, others, path))),
                shell=f"mkdir -p {where}",
                man="cgroups(7)",
            )
        )
    for tree in sets:
        own = tree.directory(path)
        above = own.rpartition("/")[0]
        plan.append(
            Step(
                "cgroup.v1.inherit_cpuset",
                tree.mount,
                path,
                why="make its cpuset with the parent's CPUs and memory nodes: v1 gives it none",
                undo=("cgroup.files.remove", ([own], up(layout, [tree], path))),
                shell=f"mkdir -p {own}; cat {above}/cpuset.cpus > {own}/cpuset.cpus; "
                f"cat {above}/cpuset.mems > {own}/cpuset.mems",
                man="cpuset(7)",
            )
        )
    return plan


def make_v2(
    layout: Layout, tree: Hierarchy, path: str, needed: list[str], undo: bool = True
) -> Step:
    """The step that makes the v2 directory with its controllers."""
    wanted = [c for c in tree.controllers if c in ALWAYS or c in needed]
    owned = SYSTEMD_BASE.count("/") + 1 if layout.systemd and inside(path, SYSTEMD_BASE) else 0
    own = tree.directory(path)
    enable = " ".join(f"+{name}" for name in wanted)
    shell = f"mkdir -p {own}"
    if wanted:
        shell += f"; echo {enable} > {own.rpartition('/')[0]}/cgroup.subtree_control"
    return Step(
        "cgroup.v2.make",
        tree.mount,
        path,
        wanted,
        needed,
        owned,
        why="make the cgroup in the v2 tree" + (f" and let it have {enable}" if wanted else ""),
        undo=("cgroup.files.remove", ([own], up(layout, [tree], path))) if undo else None,
        shell=shell,
        man="cgroup-v2: cgroup.subtree_control",
    )


def dirs(trees: list[Hierarchy], path: str) -> list[str]:
    return [tree.directory(path) for tree in trees]


def up(layout: Layout, trees: list[Hierarchy], path: str) -> list[str]:
    """As parents(), in some of the trees."""
    allowed = parents(layout, path)
    return [d for d in dirs(trees, layout.base()) if d in allowed]


def asked(resources: Resources, section: str, controller: str) -> Any:
    """The part of `resources` that is for `controller`; empty where nothing is asked of it."""
    content = resources.get(section)
    if not content or section != "cpu":
        return content
    wanted = {k: v for k, v in content.items() if (k in CPUSET_KEYS) == (controller == "cpuset")}
    return wanted if any(v not in (None, "") for v in wanted.values()) else {}


def plan_limits(layout: Layout, path: str, resources: Resources) -> Plan:
    """The steps that write the limits. Raises Unsupported, BadInput."""
    plan: Plan = []
    for section, controller in SECTIONS:
        content = asked(resources, section, controller)
        if not content:
            continue
        hierarchy = layout.controllers.get(controller)
        room = v1 if hierarchy is None or hierarchy.version == 1 else v2
        directory = hierarchy.directory(path) if hierarchy else path
        steps = getattr(room, controller)(directory, content)
        if steps and hierarchy is None:
            raise no_controller(layout, section, controller)
        plan += steps
    network = resources.get("network") or {}
    if network.get("classID") or network.get("priorities"):
        plan += network_steps(layout, path, network)
    if resources.get("devices"):
        plan += device_steps(layout, path, resources["devices"])
    if resources.get("unified"):
        plan += unified_steps(layout, path, resources["unified"])
    return plan


def needed_controllers(layout: Layout, resources: Resources) -> list[str]:
    """The v2 controllers without which `resources` cannot be honoured."""
    needed = [c for section, c in SECTIONS if asked(resources, section, c)]
    needed += [name.partition(".")[0] for name in resources.get("unified") or ()]
    offered = layout.unified.controllers if layout.unified else ()
    return [c for c in offered if c in needed]


def device_steps(layout: Layout, path: str, rules: list[Any]) -> Plan:
    """The device list goes to the v1 controller where there is one, else to a BPF program."""
    if "devices" in layout.controllers:
        return v1.devices(layout.controllers["devices"].directory(path), rules)
    if layout.unified:
        return v2.devices(layout.unified.directory(path), rules)
    raise no_controller(layout, "devices", "devices")


def unified_steps(layout: Layout, path: str, values: dict[str, str]) -> Plan:
    """OCI's `unified` names v2 files; each must belong to a controller v2 has here."""
    offered = layout.unified.controllers if layout.unified else ()
    for name in values:
        controller = name.partition(".")[0]
        if controller != "cgroup" and controller not in offered:
            raise no_controller(layout, f"unified[{name!r}]", controller, version="v2 ")
    assert layout.unified or not values
    return v2.unified(layout.unified.directory(path), values) if layout.unified else []


def network_steps(layout: Layout, path: str, section: dict[str, Any]) -> Plan:
    """The class id and priorities of packets: v1 only, and seldom mounted."""
    plan: Plan = []
    if section.get("classID"):
        if "net_cls" not in layout.controllers:
            raise no_controller(layout, "network.classID", "net_cls")
        where = layout.controllers["net_cls"].directory(path)
        why = "mark its packets for traffic control"
        plan.append(v1.limit(where, "net_cls.classid", section["classID"], why))
    for entry in section.get("priorities") or ():
        if "net_prio" not in layout.controllers:
            raise no_controller(layout, "network.priorities", "net_prio")
        where = layout.controllers["net_prio"].directory(path)
        text = f"{entry['name']} {entry['priority']}"
        plan.append(v1.limit(where, "net_prio.ifpriomap", text, "give its packets a priority"))
    return plan


def no_controller(layout: Layout, what: str, controller: str, version: str = "") -> Unsupported:
    """The error for a limit whose controller this host has nowhere."""
    have = ", ".join(
        f"{name} (v{hierarchy.version})" for name, hierarchy in sorted(layout.controllers.items())
    )
    return Unsupported(
        f"cannot set resources.{what}: this host has no {version}{controller} controller",
        hint=f"it has {have or 'none'}; a controller can be switched off on the kernel's command "
        f"line (cgroup_disable=), and some must be switched on (cgroup_enable={controller})",
    )
