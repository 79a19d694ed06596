"""Which cgroup hierarchies this host has, controller by controller.

A controller (memory, pids, …) is bound to one hierarchy at a time: to a v1 mount of its own, to a
v1 mount it shares (`cpu,cpuacct`), or to the single v2 tree. Hosts mix them: systemd's "hybrid"
mode keeps the controllers on v1 and mounts an empty v2 tree beside them, others leave v2 only what
nobody mounted elsewhere. So every controller is looked up on its own.

The truth is in /proc/self/mountinfo. /proc/cgroups lists what is compiled in, mounted or not, and
a folder made for an unmounted controller below /sys/fs/cgroup is just a folder in a tmpfs: it
limits nothing and says nothing. Next: `api.py` plans with a layout.
"""

from __future__ import annotations

import os

from pyrun.cgroup.files import read
from pyrun.errors import Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

CONTROLLERS = frozenset(
    "cpu cpuacct cpuset memory devices freezer net_cls blkio perf_event net_prio hugetlb pids "
    "rdma misc".split()
)
"""The v1 controllers by kernel name; `blkio` is called `io` in v2 and in a Layout."""

BASE = "pyrun"
"""The cgroup all of pyrun's cgroups lie in where no systemd manages the tree."""

SYSTEMD_BASE = "machine.slice/pyrun.service"
"""The same where systemd is pid 1: a unit whose inside systemd leaves to us (`systemd.py`)."""


class Hierarchy:
    """One mounted cgroup tree.

    mount        where it is mounted
    root         which cgroup of the tree the mount shows as its top (`/` unless in a container)
    own          the cgroup this process is in, relative to the mount; "" is the top
    controllers  what it controls, by v2 name
    """

    __slots__ = ("controllers", "mount", "own", "root", "version")

    def __init__(
        self, version: int, mount: str, root: str, own: str, controllers: tuple[str, ...]
    ) -> None:
        self.version = version
        self.mount = mount
        self.root = root
        self.own = own
        self.controllers = controllers

    def directory(self, path: str) -> str:
        """Where cgroup `path` is, as a directory."""
        return f"{self.mount}/{path}" if path else self.mount

    def __repr__(self) -> str:
        return f"Hierarchy(v{self.version}, {self.mount}, {','.join(self.controllers)})"


class Layout:
    """What this host has; a pure value.

    controllers  name → the hierarchy that has it; v1's `blkio` is listed as `io`
    unified      the v2 tree, on hybrid hosts too: cgroup.kill and CLONE_INTO_CGROUP work in it
                 whatever it controls
    named        v1 trees without a controller, by name (`systemd`)
    systemd      whether systemd is pid 1 and owns the trees
    """

    __slots__ = ("controllers", "named", "systemd", "unified")

    def __init__(
        self,
        controllers: dict[str, Hierarchy],
        unified: Hierarchy | None,
        named: dict[str, Hierarchy],
        systemd: bool,
    ) -> None:
        self.controllers = controllers
        self.unified = unified
        self.named = named
        self.systemd = systemd

    def hierarchies(self) -> list[Hierarchy]:
        """Every hierarchy that matters, each once, v1 first: those with controllers, and v2."""
        found = {h.mount: h for h in self.controllers.values() if h.version == 1}
        if self.unified:
            found[self.unified.mount] = self.unified
        return list(found.values())

    def base(self) -> str:
        """The cgroup under which pyrun makes its own: `pyrun`, or systemd's unit for it."""
        return SYSTEMD_BASE if self.systemd else BASE


def read_layout(
    mountinfo: str, self_cgroup: str, unified_controllers: str = "", systemd: bool = False
) -> Layout:
    """The layout told by /proc/self/mountinfo, /proc/self/cgroup and the v2 root's
    cgroup.controllers (an empty text where v2 is not mounted). Pure.
    """
    own = {}
    for line in self_cgroup.splitlines():
        _, names, path = line.split(":", 2)
        own[names] = path
    layout = Layout({}, None, {}, systemd)
    for mount, root, kind, options in cgroup_mounts(mountinfo):
        if kind == "cgroup2":
            if layout.unified:
                continue  # the same tree once more: there is only one
            offered = tuple(unified_controllers.split())
            hierarchy = Hierarchy(2, mount, root, below(root, own.get("", "/")), offered)
            layout.unified = hierarchy
            for name in offered:
                # A controller on a v1 mount never shows in cgroup.controllers as well.
                layout.controllers.setdefault(name, hierarchy)
            continue
        bound = [o for o in options.split(",") if o in CONTROLLERS]
        labels = [o[5:] for o in options.split(",") if o.startswith("name=")]
        key = ",".join([*bound, *(f"name={label}" for label in labels)])
        v2_names = tuple("io" if name == "blkio" else name for name in bound)
        hierarchy = Hierarchy(1, mount, root, below(root, own.get(key, "/")), v2_names)
        for name in v2_names:
            layout.controllers.setdefault(name, hierarchy)
        if not bound:
            for label in labels:
                layout.named[label] = hierarchy
    return layout


def cgroup_mounts(mountinfo: str) -> list[tuple[str, str, str, str]]:
    """The cgroup mounts one can reach, as (mount point, root, type, super options).

    A mount hides what was mounted at or below its mount point before, whatever its type.
    """
    found: dict[str, tuple[str, str, str, str]] = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        if len(fields) < 5:
            continue
        mount = unescape(fields[4])
        if found and mount != "/":
            for hidden in [m for m in found if m == mount or m.startswith(mount + "/")]:
                del found[hidden]
        kind, _, options = right.partition(" ")
        if kind in ("cgroup", "cgroup2"):
            found[mount] = (mount, unescape(fields[3]), kind, options.split(" ", 1)[-1])
    return list(found.values())


def unescape(text: str) -> str:
    r"""mountinfo writes blank, tab, newline and backslash as `\040` and so on."""
    if "\\" not in text:
        return text
    head, *rest = text.split("\\")
    return head + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)


def below(root: str, path: str) -> str:
    """The path of cgroup `path` seen from a mount whose top is `root`, without a leading slash.

    In a container without a cgroup namespace /proc/self/cgroup speaks of the whole tree and the
    mount shows only the container's part of it.
    """
    if root != "/" and (path == root or path.startswith(root + "/")):
        path = path[len(root) :]
    return path.strip("/")


def host_layout() -> Layout:
    """The layout of this host as this process sees it.

    Raises Unsupported where no cgroup file system is mounted at all.
    """
    # A host of many pods has thousands of mounts. Only what is a cgroup file system, or could lie
    # over one, is worth parsing.
    mountinfo = "\n".join(
        line
        for line in read("/proc/self/mountinfo").splitlines()
        if "cgroup" in line or " /sys " in line or " /sys/fs " in line
    )
    mounts = cgroup_mounts(mountinfo)
    tree = next((mount for mount, _, kind, _ in mounts if kind == "cgroup2"), None)
    layout = read_layout(
        mountinfo,
        read("/proc/self/cgroup"),
        read(f"{tree}/cgroup.controllers") if tree else "",
        # What sd_booted(3) looks at.
        os.path.isdir("/run/systemd/system"),
    )
    return really_mounted(layout)


def really_mounted(layout: Layout, magic: Callable[[str], int] | None = None) -> Layout:
    """`layout` without the hierarchies whose mount point is something else by now.

    Raises Unsupported where nothing is left.
    """
    from pyrun.kernel import const
    from pyrun.kernel.statfs import filesystem_type

    ask = magic or filesystem_type
    expected = {1: const.CGROUP_SUPER_MAGIC, 2: const.CGROUP2_SUPER_MAGIC}
    for hierarchy in layout.hierarchies():
        if ask(hierarchy.mount) == expected[hierarchy.version]:
            continue
        for name in hierarchy.controllers:
            layout.controllers.pop(name, None)
        if layout.unified is hierarchy:
            layout.unified = None
    if not layout.hierarchies():
        raise Unsupported(
            "no cgroup file system is mounted here, so nothing can be limited or cleaned up",
            hint="mount -t cgroup2 cgroup2 /sys/fs/cgroup",
        )
    return layout
