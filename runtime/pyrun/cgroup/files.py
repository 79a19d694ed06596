"""What the cgroup steps do: make directories, write limits, kill, freeze, remove.

A cgroup is a directory, a limit is a file in it. These functions are named by the steps which
`api.py` plans, and turn the kernel's short answers (ENOENT, EINVAL, EBUSY) into what they mean for
a cgroup. What only v1 or only v2 needs is in `v1.py` and `v2.py`.
"""

from __future__ import annotations

import errno
import os
import time

from pyrun.errors import BadInput, Conflict, NotFound, Unsupported, errno_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

REMOVE_SECONDS = 5.0
"""How long a cgroup may stay busy with dying processes before removing it is given up."""


def read(path: str) -> str:
    """The text of a cgroup file, or of mountinfo, whose paths may be any bytes. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, 1 << 16):
            parts.append(part)
    finally:
        os.close(fd)
    return os.fsdecode(b"".join(parts))


def write(path: str, text: str) -> None:
    """Write one value. Never creates the file: a cgroup file that is missing means something.

    Raises OSError.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def set_limit(path: str, value: str, optional: bool = False) -> None:
    """Set a limit. `optional`: it asks for what holds anyway where the kernel lacks the file.

    Raises Unsupported, BadInput, Conflict or NotFound with the reason.
    """
    try:
        write(path, value)
    except OSError as error:
        if optional and error.errno == errno.ENOENT:
            return
        raise explained(error, path, value) from error


def set_pair(
    first: str, first_value: str, second: str, second_value: str, optional: bool = False
) -> None:
    """Set two limits which the kernel checks against each other at every write.

    Memory may never exceed memory plus swap, nor a burst its quota: going up one file must be
    written first, going down the other. The kernel knows which; EINVAL says so. `optional`: the
    second asks for what holds anyway where the kernel lacks the file.
    """
    try:
        write(first, first_value)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise explained(error, first, first_value) from error
        set_limit(second, second_value)
        set_limit(first, first_value)
        return
    set_limit(second, second_value, optional)


def set_any(choices: list[list[str]]) -> None:
    """Set the first file that is there: `[[path, value], …]`. Two schedulers, two file names."""
    for path, value in choices:
        if os.path.exists(path):
            set_limit(path, value)
            return
    path, value = choices[-1]
    set_limit(path, value)


def refuse_below_usage(usage: str, value: int) -> None:
    """Raise Conflict when more than `value` bytes are in use already (OCI's checkBeforeUpdate).

    v2 would answer a limit below the usage by killing.
    """
    used = int(read(usage))
    if value < used:
        raise Conflict(
            f"cannot limit memory to {value} bytes: {used} are in use ({usage})",
            hint="choose a higher limit, or stop what uses the memory",
        )


def explained(error: OSError, path: str, value: str) -> Exception:
    """The error to raise for the kernel's refusal to take `value` in cgroup file `path`."""
    directory, name = os.path.split(path)
    what = f"cannot set {name} to {value!r} in {directory}"
    answer = errno_text(error.errno or 0)
    if error.errno == errno.ENOENT:
        if not os.path.isdir(directory):
            return NotFound(f"{what}: there is no such cgroup")
        return Unsupported(f"{what}: the kernel offers no such file there", hint=missing(name))
    if error.errno in (errno.EINVAL, errno.ERANGE, errno.ENODEV, errno.ENXIO, errno.EOPNOTSUPP):
        return BadInput(f"{what}: {answer}", hint=refused(name))
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Unsupported(f"{what}: {answer}", hint=NOT_OURS)
    if error.errno in (errno.EBUSY, errno.ENOSPC):
        return Conflict(f"{what}: {answer}", hint=busy(name))
    error.filename = f"write {value!r} to {path}"
    return error


NOT_OURS = (
    "the cgroup tree is read-only or belongs to somebody else here; inside a container or service, "
    "ask for a delegated one (Delegate=yes, --cgroupns=private with a writable mount)"
)


def missing(name: str) -> str:
    """Why a kernel may not have cgroup file `name`, and what helps."""
    for prefix, hint in (
        ("memory.memsw", "swap accounting is off; boot with swapaccount=1"),
        ("memory.swap", "the kernel counts no swap; boot with swapaccount=1 or leave swap out"),
        ("cpu.rt_", "the kernel is built without CONFIG_RT_GROUP_SCHED"),
        ("cpu.idle", "idle groups need Linux 5.15"),
        ("cpu.cfs", "the kernel is built without CONFIG_CFS_BANDWIDTH"),
        ("cpu.max", "the kernel is built without CONFIG_CFS_BANDWIDTH, or is older than 5.14"),
        ("io.weight", "weights need the bfq scheduler or CONFIG_BLK_CGROUP_IOCOST"),
        ("blkio", "weights need the bfq scheduler (modprobe bfq), throttling CONFIG_BLK_DEV_"),
        ("hugetlb", "this machine has no huge pages of that size; see /sys/kernel/mm/hugepages"),
        ("cgroup.freeze", "the v2 freezer needs Linux 5.2"),
    ):
        if name.startswith(prefix):
            return hint
    return "the controller is not enabled there (cgroup.subtree_control), or the kernel lacks it"


def refused(name: str) -> str:
    """What the kernel usually dislikes about a value for `name`."""
    for prefix, hint in (
        ("memory.limit", "the limit may not exceed the memory+swap limit; set both"),
        ("memory.memsw", "memory+swap may not be less than the memory limit; set both"),
        ("cpuset", "the CPUs or nodes must be online and a part of the parent cgroup's"),
        ("cpu.rt_", "the parent cgroup must own that much real-time runtime first"),
        ("cpu", "the quota must be 1000 or more, its share no larger than the parent cgroup's"),
        ("blkio", "the device is given as MAJOR:MINOR of a whole disk; see lsblk"),
        ("io.", "the device is given as MAJOR:MINOR of a whole disk; see lsblk"),
        ("devices", "a device rule may not allow what the parent cgroup denies"),
    ):
        if name.startswith(prefix):
            return hint
    return "the value is outside of what the kernel accepts"


def busy(name: str) -> str:
    """Why a write to `name` meets EBUSY or ENOSPC."""
    if name.startswith("memory"):
        return "more memory is in use than the new limit; stop something first"
    if name.startswith("cpuset"):
        return "processes in the cgroup would be left without a CPU or a memory node"
    return "processes in the cgroup or below it stand in the way"


def mkdirs(top: str, path: str) -> list[str]:
    """Make cgroup `path` below `top` with its parents; returns the directories, topmost first.

    Another pyrun may remove an empty parent at this very moment: then it is made again.
    Raises Unsupported or Conflict with the reason.
    """
    steps = path.split("/")
    levels = ["/".join([top, *steps[: i + 1]]) for i in range(len(steps))]
    for _ in range(100):
        try:
            _make_missing(levels)
            return levels
        except FileNotFoundError:
            if not os.path.isdir(top):
                break
        except OSError as error:
            raise not_made(error, levels[-1]) from error
    raise Conflict(f"cannot make cgroup {levels[-1]}: its parents keep vanishing")


def _make_missing(levels: list[str]) -> None:
    """mkdir the last of `levels`, and what it needs; mostly the parents are there already."""
    try:
        os.mkdir(levels[-1], 0o755)
    except FileExistsError:
        pass
    except FileNotFoundError:
        if len(levels) == 1:
            raise
        _make_missing(levels[:-1])
        try:
            os.mkdir(levels[-1], 0o755)
        except FileExistsError:
            pass


def not_made(error: OSError, directory: str) -> Exception:
    """The error to raise when mkdir(2) of a cgroup fails."""
    what = f"cannot make cgroup {directory}: {errno_text(error.errno or 0)}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Unsupported(what, hint=NOT_OURS)
    if error.errno == errno.EAGAIN:
        return Conflict(what, hint="cgroup.max.descendants or cgroup.max.depth above is reached")
    if error.errno == errno.ENOSPC:
        return Conflict(what, hint="the kernel's 65535 memory cgroups are used up (dying ones too)")
    return error


def subtree(directory: str) -> Iterator[str]:
    """`directory` and all cgroups below it, deepest first."""
    try:
        with os.scandir(directory) as entries:
            children = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return
    for child in children:
        yield from subtree(child)
    yield directory


def pids(directory: str) -> list[int]:
    """The processes in a cgroup and below it."""
    found: list[int] = []
    for each in subtree(directory):
        try:
            found += map(int, read(f"{each}/cgroup.procs").split())
        except OSError as error:
            # ENODEV: removed while open. EOPNOTSUPP: a threaded cgroup, whose domain lists them.
            if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
                raise
    return found


def signal_all(directory: str, signal: int) -> int:
    """Send `signal` to every process in a cgroup and below it; how many there were."""
    me = os.getpid()
    found = [pid for pid in pids(directory) if pid > 0 and pid != me]
    for pid in found:
        try:
            os.kill(pid, signal)
        except ProcessLookupError:
            pass
    return len(found)


def kill_all(unified: str, other: str, freezer: bool) -> None:
    """SIGKILL every process in a cgroup and below it; none there is fine.

    `unified` is its v2 directory, where one file does it and nothing escapes. Where that is
    missing (pure v1, or a kernel before 5.14) a fork bomb could outrun a loop of kill(2), so the
    v1 directory `other` is frozen meanwhile if it is the `freezer`: frozen processes do not fork.
    """
    done = bool(unified) and kill_file(unified)
    if not other and not done:
        other, freezer = unified, False
    deadline = time.monotonic() + REMOVE_SECONDS
    pause = 0.0005
    while other and pids(other) and time.monotonic() < deadline:
        if freezer and not done:
            try:
                set_frozen(other, 1, True)
            except (Conflict, NotFound):
                pass  # some process hangs in the kernel; kill the others all the same
        signal_all(other, 9)
        if freezer:
            thaw_all(other)
        time.sleep(pause)
        pause = min(pause * 2, 0.05)


def kill_file(directory: str) -> bool:
    """Kill with v2's cgroup.kill; False where there is none."""
    try:
        write(f"{directory}/cgroup.kill", "1")
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise
        return not os.path.isdir(directory)
    return True


def thaw_all(directory: str) -> None:
    """Thaw a v1 cgroup and those below it: what is frozen there cannot even die."""
    for each in subtree(directory):
        try:
            write(f"{each}/freezer.state", "THAWED")
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise


def set_frozen(directory: str, version: int, frozen: bool) -> None:
    """Freeze or thaw a cgroup and wait until it is so. Raises NotFound, or Conflict after 5 s."""
    name, value = (
        ("freezer.state", "FROZEN" if frozen else "THAWED")
        if version == 1
        else ("cgroup.freeze", str(int(frozen)))
    )
    deadline = time.monotonic() + REMOVE_SECONDS
    while True:
        # v1: a process that forked while freezing leaves FREEZING behind; writing again helps.
        set_limit(f"{directory}/{name}", value)
        if version == 1:
            reached = read(f"{directory}/{name}").strip() == value
        else:
            reached = f"frozen {value}\n" in read(f"{directory}/cgroup.events")
        if reached:
            return
        if time.monotonic() > deadline:
            raise Conflict(
                f"cannot {'freeze' if frozen else 'thaw'} {directory} within {REMOVE_SECONDS:g} s",
                hint="a process hangs in the kernel (state D in ps)",
            )
        time.sleep(0.001)


def remove(directories: list[str], parents: list[str], kill: bool = False) -> None:
    """Remove cgroups with all below them; what is not there is fine.

    A dying process keeps its cgroup busy for a moment: waits up to 5 s. `kill` kills what is
    found in it meanwhile. `parents` are removed too when they are empty. Raises Conflict.
    """
    deadline = time.monotonic() + REMOVE_SECONDS
    for directory in directories:
        try:
            os.rmdir(directory)  # mostly nothing is left in it, and looking takes time
        except OSError:
            for each in subtree(directory):
                _remove_one(each, deadline, kill)
    for parent in parents:
        try:
            os.rmdir(parent)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EBUSY, errno.ENOTEMPTY):
                raise


def _remove_one(directory: str, deadline: float, kill: bool) -> None:
    pause = 0.0005
    while True:
        try:
            os.rmdir(directory)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
        if kill:
            signal_all(directory, 9)
        if time.monotonic() > deadline:
            raise Conflict(
                f"cannot remove cgroup {directory}: EBUSY (processes {pids(directory)} are in it)",
                hint="end them, or see what they wait for: cat /proc/PID/stack",
            )
        time.sleep(pause)
        pause = min(pause * 2, 0.05)
