"""cgroup v1: one tree for each controller, and the file names that go with them.

The functions named after a section of OCI's `linux.resources` are pure and return the steps which
set its limits in `directory`; v2.py has the same names. At the end stand the two things v1 alone
has to do: giving a new cpuset its CPUs, and editing the device list.
"""

from __future__ import annotations

import os

from pyrun.cgroup import devicerules, files
from pyrun.errors import BadInput, Unsupported
from pyrun.explain.steps import Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyrun.explain.steps import Plan

    Section = dict[str, Any]


MEMORY_FILES = (
    ("reservation", "memory.soft_limit_in_bytes", "give up memory above this when it runs short"),
    ("kernel", "memory.kmem.limit_in_bytes", "limit the kernel's memory for these processes"),
    ("kernelTCP", "memory.kmem.tcp.limit_in_bytes", "limit the memory of TCP buffers"),
)

THROTTLES = (
    ("throttleReadBpsDevice", "blkio.throttle.read_bps_device", "bytes read"),
    ("throttleWriteBpsDevice", "blkio.throttle.write_bps_device", "bytes written"),
    ("throttleReadIOPSDevice", "blkio.throttle.read_iops_device", "reads"),
    ("throttleWriteIOPSDevice", "blkio.throttle.write_iops_device", "writes"),
)


def limit(directory: str, name: str, value: object, why: str, optional: bool = False) -> Step:
    """The step that writes `value` to the file `name` of a cgroup."""
    path = f"{directory}/{name}"
    return Step(
        "cgroup.files.set_limit",
        path,
        str(value),
        optional,
        why=why,
        shell=f"echo {value} > {path}",
        man=f"cgroup-v1: {name}",
    )


def pair(
    directory: str,
    first: tuple[str, int],
    second: tuple[str, int],
    why: str,
    optional: bool = False,
) -> Step:
    """The step that sets two limits which the kernel checks against each other."""
    one, two = f"{directory}/{first[0]}", f"{directory}/{second[0]}"
    return Step(
        "cgroup.files.set_pair",
        one,
        str(first[1]),
        two,
        str(second[1]),
        optional,
        why=why,
        shell=f"echo {first[1]} > {one}; echo {second[1]} > {two}",
        man=f"cgroup-v1: {first[0]}, {second[0]}",
    )


def memory(directory: str, section: Section) -> Plan:
    """Limits on memory; zero means "not asked for", as runc has it. Raises BadInput."""
    plan: Plan = []
    most, both = section.get("limit") or 0, section.get("swap") or 0
    check_swap(most, both)
    if most > 0 and section.get("checkBeforeUpdate"):
        plan.append(check_usage(f"{directory}/memory.usage_in_bytes", most))
    if most and (both or most == -1):
        # Lifting the limit on memory alone would stop at an older limit on memory plus swap.
        both = both or -1
        why = f"limit memory to {amount(most)}, memory and swap together to {amount(both)}"
        files = ("memory.limit_in_bytes", most), ("memory.memsw.limit_in_bytes", both)
        plan.append(pair(directory, *files, why, both == -1))
    elif most:
        why = f"limit memory to {amount(most)}"
        plan.append(limit(directory, "memory.limit_in_bytes", most, why))
    elif both:
        why = f"limit memory and swap together to {amount(both)}"
        plan.append(limit(directory, "memory.memsw.limit_in_bytes", both, why, both == -1))
    for key, name, why in MEMORY_FILES:
        if section.get(key):
            plan.append(limit(directory, name, section[key], why))
    if section.get("swappiness") is not None:
        why = "say how willingly this memory is swapped out"
        plan.append(limit(directory, "memory.swappiness", section["swappiness"], why))
    if section.get("disableOOMKiller"):
        why = "let processes wait instead of being killed when memory runs out"
        plan.append(limit(directory, "memory.oom_control", 1, why))
    return plan


def check_swap(most: int, both: int) -> None:
    """Raise BadInput where memory and swap together are to be less than memory."""
    if 0 < both < most or (most == -1 and both > 0):
        raise BadInput(
            f"cannot limit memory to {amount(most)} but memory and swap together to {amount(both)}",
            hint="swap counts memory and swap together; it cannot be the smaller one",
        )


def check_usage(usage: str, most: int) -> Step:
    """The step that refuses a limit below what is in use."""
    return Step(
        "cgroup.files.refuse_below_usage",
        usage,
        most,
        why="check that no more than the new limit is in use",
        shell=f"cat {usage}",
        man="runtime-spec: config-linux, checkBeforeUpdate",
    )


def amount(value: int) -> str:
    """A number of bytes as a sentence has it."""
    if value < 0:
        return "no limit"
    for size, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if value >= size and value % size == 0:
            return f"{value // size} {unit}"
    return f"{value} bytes"


def cpu(directory: str, section: Section) -> Plan:
    """Shares, quota and real-time runtime."""
    plan: Plan = []
    if section.get("idle") is not None:
        why = (
            "run it only when nothing else wants the CPU" if section["idle"] else "run it as usual"
        )
        plan.append(limit(directory, "cpu.idle", section["idle"], why))
    if section.get("shares") and not section.get("idle"):  # an idle group takes no shares
        why = f"give it {section['shares']} shares of the CPU when there is not enough for all"
        plan.append(limit(directory, "cpu.shares", section["shares"], why))
    quota, period, burst = (section.get(key) or 0 for key in ("quota", "period", "burst"))
    if quota and period:
        why = f"let it run {quota} µs in every {period} µs"
        files = ("cpu.cfs_period_us", period), ("cpu.cfs_quota_us", quota)
        plan.append(pair(directory, *files, why))
    elif period:
        why = f"count its CPU time in periods of {period} µs"
        plan.append(limit(directory, "cpu.cfs_period_us", period, why))
    elif quota:
        why = f"let it run {quota} µs in every period"
        plan.append(limit(directory, "cpu.cfs_quota_us", quota, why))
    if burst:
        why = f"let it save up to {burst} µs of unused quota"
        plan.append(limit(directory, "cpu.cfs_burst_us", burst, why))
    for key, name in (
        ("realtimePeriod", "cpu.rt_period_us"),
        ("realtimeRuntime", "cpu.rt_runtime_us"),
    ):
        if section.get(key):
            plan.append(limit(directory, name, section[key], "bound its real-time threads"))
    return plan


def cpuset(directory: str, section: Section) -> Plan:
    """Which CPUs and memory nodes."""
    plan: Plan = []
    if section.get("cpus"):
        why = f"keep it on the CPUs {section['cpus']}"
        plan.append(limit(directory, "cpuset.cpus", section["cpus"], why))
    if section.get("mems"):
        why = f"keep its memory on the nodes {section['mems']}"
        plan.append(limit(directory, "cpuset.mems", section["mems"], why))
    return plan


def pids(directory: str, section: Section) -> Plan:
    """How many tasks; zero and less mean no limit."""
    if section.get("limit") is None:
        return []
    most = section["limit"] if section["limit"] > 0 else "max"
    return [limit(directory, "pids.max", most, f"limit processes and threads to {most}")]


def io(directory: str, section: Section) -> Plan:
    """Weights and throttles of block devices."""
    plan: Plan = []
    if section.get("leafWeight") or any(d.get("leafWeight") for d in weights(section)):
        raise Unsupported(
            "cannot set blockIO.leafWeight: it left the kernel with the CFQ scheduler in Linux 5.0",
            hint="use weight",
        )
    if section.get("weight"):
        why = f"give its disk accesses the weight {section['weight']}"
        plan.append(any_of(directory, WEIGHT_FILES, str(section["weight"]), why))
    for device in weights(section):
        value = f"{device['major']}:{device['minor']} {device['weight']}"
        why = f"give its accesses to {device['major']}:{device['minor']} a weight"
        plan.append(any_of(directory, WEIGHT_DEVICE_FILES, value, why))
    for key, name, what in THROTTLES:
        for device in section.get(key) or ():
            number, rate = f"{device['major']}:{device['minor']}", device["rate"]
            why = f"limit {what} on {number} to {rate} a second"
            plan.append(limit(directory, name, f"{number} {rate}", why))
    return plan


WEIGHT_FILES = ("blkio.weight", "blkio.bfq.weight")
WEIGHT_DEVICE_FILES = ("blkio.weight_device", "blkio.bfq.weight_device")


def weights(section: Section) -> list[Section]:
    """The devices that are given a weight."""
    return [d for d in section.get("weightDevice") or () if d.get("weight") or d.get("leafWeight")]


def any_of(directory: str, names: tuple[str, ...], value: str, why: str) -> Step:
    """The step that writes `value` to whichever of the files `names` this kernel has."""
    return Step(
        "cgroup.files.set_any",
        [[f"{directory}/{name}", value] for name in names],
        why=why,
        shell=f"echo {value} > {directory}/{names[0]}",
        man=f"cgroup-v1: {names[0]}",
    )


def hugetlb(directory: str, section: list[Section]) -> Plan:
    """Huge pages, by page size."""
    return [
        limit(
            directory,
            f"hugetlb.{size['pageSize']}.limit_in_bytes",
            size["limit"],
            f"limit huge pages of {size['pageSize']}",
        )
        for size in section
    ]


def rdma(directory: str, section: dict[str, Section], man: str = "cgroup-v1") -> Plan:
    """Handles and objects of RDMA adapters; the same file in v1 and v2."""
    plan: Plan = []
    for device, most in section.items():
        handles, objects = most.get("hcaHandles"), most.get("hcaObjects")
        text = device
        text += f" hca_handle={handles}" if handles is not None else ""
        text += f" hca_object={objects}" if objects is not None else ""
        step = limit(directory, "rdma.max", text, f"limit what it takes of adapter {device}")
        step.man = f"{man}: rdma.max"
        plan.append(step)
    return plan


def devices(directory: str, section: list[Section]) -> Plan:
    """Which devices may be opened and made."""
    default, rules = devicerules.reduce(section)
    edits = [["allow" if default else "deny", "a"]]
    edits += [["allow" if rule[0] else "deny", devicerules.line(rule)] for rule in rules]
    return [
        Step(
            "cgroup.v1.edit_devices",
            directory,
            edits,
            why="deny every device, then allow those on the list"
            if not default
            else "allow every device except those on the list",
            shell="; ".join(f"echo '{text}' > {directory}/devices.{verb}" for verb, text in edits),
            man="cgroup-v1: devices.allow",
        )
    ]


def edit_devices(directory: str, edits: list[list[str]]) -> None:
    """Write each line to devices.allow or devices.deny. Raises BadInput, Unsupported …"""
    doors = {}
    path = line = ""
    try:
        for verb, line in edits:
            path = f"{directory}/devices.{verb}"
            if verb not in doors:
                doors[verb] = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            os.write(doors[verb], line.encode())
    except OSError as error:
        raise files.explained(error, path, line) from error
    finally:
        for fd in doors.values():
            os.close(fd)


def make(mounts: list[str], path: str) -> None:
    """Make cgroup `path` in every one of the trees. Raises Unsupported or Conflict."""
    for mount in mounts:
        files.mkdirs(mount, path)


def inherit_cpuset(mount: str, path: str) -> None:
    """Make cpuset `path` with its parents, giving each that has none its parent's CPUs and nodes.

    A new v1 cpuset is empty, and ENOSPC is what a process gets that wants to join it.
    Raises Unsupported or Conflict.
    """
    levels = files.mkdirs(mount, path)
    for name in ("cpuset.cpus", "cpuset.mems"):
        inherited(levels, name)


def inherited(levels: list[str], name: str) -> str:
    """The value of file `name` in the last of `levels`, taken from above where it is empty."""
    file = f"{levels[-1]}/{name}"
    value = files.read(file).strip()
    if not value:
        above = levels[:-1]
        top = levels[0].rpartition("/")[0]
        value = inherited(above, name) if above else files.read(f"{top}/{name}").strip()
        files.set_limit(file, value)
    return value
