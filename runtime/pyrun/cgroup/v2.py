"""cgroup v2: one tree for all controllers, and the file names and scales that go with it.

OCI's `linux.resources` was written for v1. The functions named after its sections are pure and
return the steps which set the same limits in a v2 `directory`, converted as crun documents it and
runc does it; v1.py has the same names. What v2 has no file for is refused, never dropped.

At the end stands what v2 alone has to do: a cgroup offers only the controllers its parent lists in
cgroup.subtree_control, and a cgroup which lists some may hold no processes itself, the root
excepted ("no internal processes").
"""

from __future__ import annotations

import errno

from pyrun.cgroup import devicerules, files, v1
from pyrun.errors import BadInput, Conflict, Unsupported, errno_text
from pyrun.explain.steps import Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyrun.cgroup.v1 import Section
    from pyrun.explain.steps import Plan

THROTTLES = (
    ("throttleReadBpsDevice", "rbps", "bytes read"),
    ("throttleWriteBpsDevice", "wbps", "bytes written"),
    ("throttleReadIOPSDevice", "riops", "reads"),
    ("throttleWriteIOPSDevice", "wiops", "writes"),
)


def limit(directory: str, name: str, value: object, why: str, optional: bool = False) -> Step:
    """The step that writes `value` to the file `name` of a cgroup."""
    step = v1.limit(directory, name, value, why, optional)
    step.man = f"cgroup-v2: {name}"
    return step


def at_most(value: int) -> int | str:
    """A v1 number as v2 writes it: no limit is `max` instead of -1."""
    return value if value >= 0 else "max"


def refuse(what: str, hint: str = "leave it out, or use a host with cgroup v1") -> Unsupported:
    return Unsupported(f"cannot set {what}: cgroup v2 has nothing like it", hint=hint)


def memory(directory: str, section: Section) -> Plan:
    """Limits on memory. v2 counts swap by itself, OCI counts memory and swap together."""
    most, both = section.get("limit") or 0, section.get("swap") or 0
    v1.check_swap(most, both)
    if both > 0 and most <= 0:
        raise BadInput(
            f"cannot limit memory and swap together to {v1.amount(both)} without a memory limit",
            hint="cgroup v2 limits swap alone; give the memory limit as well (--memory)",
        )
    if section.get("disableOOMKiller"):
        raise refuse("memory.disableOOMKiller")
    if section.get("swappiness") is not None:
        raise refuse("memory.swappiness")
    for key in ("kernel", "kernelTCP"):
        if section.get(key):
            raise refuse(f"memory.{key}", "it is counted in memory.limit already")
    plan: Plan = []
    if most > 0 and section.get("checkBeforeUpdate"):
        plan.append(v1.check_usage(f"{directory}/memory.current", most))
    if most == -1 and both == 0:
        both = -1
    if both:
        swap = both - most if both > 0 else "max"
        why = f"limit its swap to {swap}"
        # Nothing to limit is what "no limit" asks for.
        plan.append(limit(directory, "memory.swap.max", swap, why, swap == "max"))
    if most:
        why = f"limit memory to {v1.amount(most)}"
        plan.append(limit(directory, "memory.max", at_most(most), why))
    if section.get("reservation"):
        why = "leave it this much memory when the host runs short"
        plan.append(limit(directory, "memory.low", at_most(section["reservation"]), why))
    return plan


def weight(shares: int) -> int:
    """cpu.weight (1 to 10000) for v1's cpu.shares (2 to 262144).

    The curve runs through (2, 1), (1024, 100) and (262144, 10000), so that the two defaults
    meet; the straight line which runtimes used before 2025 gave a default container 39.
    """
    if shares <= 2:
        return 1
    if shares >= 262144:
        return 10000
    import math

    power = math.log2(shares)
    return math.ceil(10 ** ((power * power + 125 * power) / 612 - 7 / 34))


def cpu(directory: str, section: Section) -> Plan:
    """Weight and bandwidth."""
    if section.get("realtimeRuntime") or section.get("realtimePeriod"):
        raise refuse("cpu.realtimeRuntime")
    plan: Plan = []
    if section.get("idle") is not None:
        why = (
            "run it only when nothing else wants the CPU" if section["idle"] else "run it as usual"
        )
        plan.append(limit(directory, "cpu.idle", section["idle"], why))
    if section.get("shares") and not section.get("idle"):
        value = weight(section["shares"])
        why = f"give it the weight {value} ({section['shares']} shares) when the CPU is short"
        plan.append(limit(directory, "cpu.weight", value, why))
    quota, period, burst = (section.get(key) or 0 for key in ("quota", "period", "burst"))
    if quota:
        text = f"{at_most(quota)} {period}" if period else f"{at_most(quota)}"
        every = f"in every {period} µs" if period else "in every period"
        plan.append(limit(directory, "cpu.max", text, f"let it run {at_most(quota)} µs {every}"))
    elif period:
        plan.append(
            Step(
                "cgroup.v2.set_period",
                f"{directory}/cpu.max",
                period,
                why=f"count its CPU time in periods of {period} µs",
                shell=f"read q p < {directory}/cpu.max; echo $q {period} > {directory}/cpu.max",
                man="cgroup-v2: cpu.max",
            )
        )
    if burst:
        why = f"let it save up to {burst} µs of unused quota"
        plan.append(limit(directory, "cpu.max.burst", burst, why))
    return plan


def set_period(path: str, period: int) -> None:
    """Change the period in cpu.max and keep the quota, which must be written along with it."""
    quota = files.read(path).split()[0]
    files.set_limit(path, f"{quota} {period}")


def cpuset(directory: str, section: Section) -> Plan:
    """Which CPUs and memory nodes."""
    return as_v2(v1.cpuset(directory, section))


def pids(directory: str, section: Section) -> Plan:
    """How many tasks; zero and less mean no limit."""
    return as_v2(v1.pids(directory, section))


def rdma(directory: str, section: dict[str, Section]) -> Plan:
    """Handles and objects of RDMA adapters."""
    return as_v2(v1.rdma(directory, section))


def as_v2(plan: Plan) -> Plan:
    """Steps for files which v1 and v2 have under one name."""
    for step in plan:
        step.man = step.man.replace("cgroup-v1", "cgroup-v2")
    return plan


def io_weight(weight: int) -> int:
    """io.weight (1 to 10000) for v1's blkio.weight (10 to 1000)."""
    return 1 + (weight - 10) * 9999 // 990


def io(directory: str, section: Section) -> Plan:
    """Weights and throttles of block devices."""
    plan: Plan = []
    if section.get("leafWeight") or any(d.get("leafWeight") for d in v1.weights(section)):
        raise refuse("blockIO.leafWeight", "use weight")
    if section.get("weight"):
        plan.append(any_weight(directory, "", section["weight"]))
    for device in v1.weights(section):
        number = f"{device['major']}:{device['minor']} "
        plan.append(any_weight(directory, number, device["weight"]))
    for key, word, what in THROTTLES:
        for device in section.get(key) or ():
            number, rate = f"{device['major']}:{device['minor']}", device["rate"] or "max"
            why = f"limit {what} on {number} to {rate} a second"
            plan.append(limit(directory, "io.max", f"{number} {word}={rate}", why))
    return plan


def any_weight(directory: str, device: str, value: int) -> Step:
    """The step that sets a weight by the bfq scheduler's file or the io.cost controller's."""
    if not 10 <= value <= 1000:
        raise BadInput(f"cannot set the disk weight {value}", hint="it ranges from 10 to 1000")
    bfq, cost = f"{directory}/io.bfq.weight", f"{directory}/io.weight"
    return Step(
        "cgroup.files.set_any",
        [[bfq, f"{device}{value}"], [cost, f"{device}{io_weight(value)}"]],
        why=f"give its accesses to {device.strip() or 'disks'} the weight {value}",
        shell=f"echo {device}{value} > {bfq}",
        man="cgroup-v2: io.weight",
    )


def hugetlb(directory: str, section: list[Section]) -> Plan:
    """Huge pages, by page size: those in use, and those promised to a mapping."""
    plan: Plan = []
    for size in section:
        why = f"limit huge pages of {size['pageSize']}"
        name, value = f"hugetlb.{size['pageSize']}", at_most(size["limit"])
        plan.append(limit(directory, f"{name}.max", value, why))
        # Without it a process maps more than it may touch and dies of SIGBUS; new in Linux 5.7.
        plan.append(limit(directory, f"{name}.rsvd.max", value, why, True))
    return plan


def devices(directory: str, section: list[Section]) -> Plan:
    """Which devices may be opened and made: a BPF program, since v2 has no file for it."""
    default, rules = devicerules.reduce(section)
    listed = ", ".join(f"{'' if rule[0] else 'not '}{devicerules.line(rule)}" for rule in rules)
    return [
        Step(
            "kernel.bpf.set_device_rules",
            directory,
            default,
            [list(rule) for rule in rules],
            why=f"let a small program in the kernel decide on devices: {listed or default}",
            shell=f"bpftool cgroup attach {directory} cgroup_device pinned PROGRAM multi",
            man="bpf(2): BPF_PROG_TYPE_CGROUP_DEVICE",
        )
    ]


def unified(directory: str, section: dict[str, str]) -> Plan:
    """OCI's `unified`: v2 files by name, one write for each line of a value."""
    plan: Plan = []
    for name, value in section.items():
        if "/" in name or "." not in name:
            raise BadInput(
                f"cannot set unified[{name!r}]: that is not the name of a cgroup file",
                hint="for instance memory.high",
            )
        for line in value.splitlines() or [""]:
            plan.append(limit(directory, name, line, f"Set {name} as the caller wants it"))
    return plan


def make(mount: str, path: str, controllers: list[str], needed: list[str], owned: int) -> None:
    """Make cgroup `path` and let it have `controllers`; `owned` levels belong to systemd.

    Controllers which the kernel will not hand down are an error only when `needed` names them.
    Raises Unsupported or Conflict.
    """
    parts = path.split("/")
    parents = ["/".join([mount, *parts[:i]]) for i in range(len(parts))][owned:]
    for _ in range(100):
        files.mkdirs(mount, path)
        try:
            for parent in parents:
                enable(parent, controllers, needed)
            return
        except FileNotFoundError:
            continue  # another pyrun removed the empty parent; make it again
    raise Conflict(f"cannot make cgroup {mount}/{path}: its parents keep vanishing")


def enable(directory: str, controllers: list[str], needed: list[str]) -> None:
    """Let the children of a cgroup have `controllers`; they may have them already.

    Raises Unsupported or Conflict, and FileNotFoundError where the cgroup is gone.
    """
    if not controllers:
        return
    file = f"{directory}/cgroup.subtree_control"
    try:
        files.write(file, " ".join(f"+{name}" for name in controllers))
        return
    except OSError as error:
        if error.errno == errno.EBUSY:
            # Processes inside. One by one cpu and pids would be taken all the same, and make it a
            # threaded cgroup, below which memory can never be limited again.
            if needed:
                raise not_enabled(error, directory, needed[0]) from error
            return
    # The kernel takes all or none; one by one shows which it refuses.
    for name in controllers:
        try:
            files.write(file, f"+{name}")
        except OSError as error:
            if name in needed:
                raise not_enabled(error, directory, name) from error


def not_enabled(error: OSError, directory: str, name: str) -> Exception:
    """The error to raise when a cgroup's children cannot have controller `name`."""
    what = f"cannot enable the {name} controller below {directory}: {errno_text(error.errno or 0)}"
    if error.errno == errno.ENOENT:
        try:
            offered = files.read(f"{directory}/cgroup.controllers").split()
        except FileNotFoundError:
            return error
        return Unsupported(f"{what}; it offers {', '.join(offered) or 'none'}", hint=files.NOT_OURS)
    if error.errno == errno.EBUSY:
        return Conflict(
            what,
            hint="the cgroup holds processes itself, and v2 allows controllers below or processes "
            f"inside, not both. Move them: mkdir {directory}/leaf; "
            f"for p in $(cat {directory}/cgroup.procs); do echo $p > {directory}/leaf/"
            "cgroup.procs; done",
        )
    if error.errno == errno.EINVAL and name == "cpu":
        return Unsupported(what, hint="real-time processes outside the root cgroup forbid it")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Unsupported(what, hint=files.NOT_OURS)
    return Unsupported(what)
