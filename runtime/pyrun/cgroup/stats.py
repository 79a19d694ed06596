"""What a cgroup has used, in one shape for v1 and v2.

    {"cpu": {"usage", "user", "system"},                    nanoseconds
     "memory": {"usage", "limit", "working_set", "swap"},   bytes; limit 0 where there is none
     "pids": {"current", "limit"},
     "io": {"read_bytes", "write_bytes", "reads", "writes"},
     "oom_kills": n}

A figure whose controller the host lacks is absent, so nobody takes it for zero.
"""

from __future__ import annotations

import errno

from pyrun.cgroup import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyrun.cgroup.layout import Layout

NO_LIMIT = 1 << 60
"""v1 writes "no limit" as the largest number of pages: everything near it means none."""


def stats(layout: Layout, path: str) -> dict[str, Any]:
    """The usage of cgroup `path` and all below it. Raises NotFound where it does not exist."""
    from pyrun.errors import NotFound

    path = path.strip("/")
    found: dict[str, Any] = {}
    for name in ("cpu", "memory", "pids", "io"):
        controller = "cpuacct" if name == "cpu" and "cpuacct" in layout.controllers else name
        hierarchy = layout.controllers.get(controller)
        # v2 counts CPU time in every cgroup, with the controller or without.
        if hierarchy is None and name == "cpu":
            hierarchy = layout.unified
        if hierarchy is None:
            continue
        reader = (V1 if hierarchy.version == 1 else V2)[name]
        try:
            found[name] = reader(hierarchy.directory(path))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise
    if not found:
        raise NotFound(f"cannot read the usage of cgroup {path}: there is no such cgroup")
    found["oom_kills"] = oom_kills(layout, path)
    return found


def oom_kills(layout: Layout, path: str) -> int:
    """How many processes of cgroup `path` the kernel killed for want of memory.

    v2 counts those of the cgroups below as well, v1 does not. 0 where nobody counts.
    """
    hierarchy = layout.controllers.get("memory")
    if hierarchy is None:
        return 0
    directory = hierarchy.directory(path.strip("/"))
    name = "memory.oom_control" if hierarchy.version == 1 else "memory.events"
    try:
        return pairs(f"{directory}/{name}").get("oom_kill", 0)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return 0
        raise


def pairs(path: str) -> dict[str, int]:
    """A file of `name number` lines."""
    return {key: int(value) for key, value in map(str.split, files.read(path).splitlines())}


def number(path: str) -> int:
    """A file of one number; `max`, and v1's largest, become 0."""
    text = files.read(path).strip()
    value = 0 if text == "max" else int(text)
    return 0 if value > NO_LIMIT else value


def cpu_v1(directory: str) -> dict[str, int]:
    usage, user, system = (
        number(f"{directory}/cpuacct.{name}") for name in ("usage", "usage_user", "usage_sys")
    )
    return {"usage": usage, "user": user, "system": system}


def cpu_v2(directory: str) -> dict[str, int]:
    values = pairs(f"{directory}/cpu.stat")
    return {name: values[f"{name}_usec"] * 1000 for name in ("usage", "user", "system")}


def memory_v1(directory: str) -> dict[str, int]:
    usage = number(f"{directory}/memory.usage_in_bytes")
    values = pairs(f"{directory}/memory.stat")
    idle = values["total_inactive_file"]
    return {
        "usage": usage,
        "limit": number(f"{directory}/memory.limit_in_bytes"),
        "working_set": max(usage - idle, 0),
        "swap": values.get("total_swap", 0),
    }


def memory_v2(directory: str) -> dict[str, int]:
    usage = number(f"{directory}/memory.current")
    idle = pairs(f"{directory}/memory.stat")["inactive_file"]
    try:
        swap = number(f"{directory}/memory.swap.current")
    except FileNotFoundError:  # a kernel that counts no swap
        swap = 0
    limit = number(f"{directory}/memory.max")
    return {"usage": usage, "limit": limit, "working_set": max(usage - idle, 0), "swap": swap}


def pids(directory: str) -> dict[str, int]:
    return {
        "current": number(f"{directory}/pids.current"),
        "limit": number(f"{directory}/pids.max"),
    }


def io_v1(directory: str) -> dict[str, int]:
    totals = {"read_bytes": 0, "write_bytes": 0, "reads": 0, "writes": 0}
    for name, unit in (("io_service_bytes", "_bytes"), ("io_serviced", "s")):
        for line in files.read(f"{directory}/blkio.throttle.{name}_recursive").splitlines():
            fields = line.split()
            if len(fields) == 3 and fields[1] in ("Read", "Write"):
                totals[fields[1].lower() + unit] += int(fields[2])
    return totals


def io_v2(directory: str) -> dict[str, int]:
    totals = {"read_bytes": 0, "write_bytes": 0, "reads": 0, "writes": 0}
    names = {"rbytes": "read_bytes", "wbytes": "write_bytes", "rios": "reads", "wios": "writes"}
    for line in files.read(f"{directory}/io.stat").splitlines():
        for field in line.split()[1:]:
            key, _, value = field.partition("=")
            if key in names:
                totals[names[key]] += int(value)
    return totals


V1 = {"cpu": cpu_v1, "memory": memory_v1, "pids": pids, "io": io_v1}
V2 = {"cpu": cpu_v2, "memory": memory_v2, "pids": pids, "io": io_v2}
