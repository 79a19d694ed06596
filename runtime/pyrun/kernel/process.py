"""Processes: clone3(2) straight into namespaces and a cgroup, pidfds, identity of a process."""

from __future__ import annotations

import os
import sys

from pyrun.errors import KernelError
from pyrun.kernel import const
from pyrun.kernel.libc import check, ctypes, libc, prctl, syscall


class clone_args(ctypes.Structure):
    """struct clone_args of clone3(2), as of CLONE_ARGS_SIZE_VER2 (88 bytes)."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "flags",
            "pidfd",
            "child_tid",
            "parent_tid",
            "exit_signal",
            "stack",
            "stack_size",
            "tls",
            "set_tid",
            "set_tid_size",
            "cgroup",
        )
    ]


SIGCHLD = 17


def clone3(flags: int, cgroup_fd: int = -1) -> tuple[int, int]:
    """fork(2) with clone flags. Returns (pid, pidfd) in the parent and (0, -1) in the child.

    The caller must be single-threaded. Unlike os.fork() no Python fork handlers run; the child
    may go on in Python because no other thread held a lock.
    Raises KernelError.
    """
    pidfd = ctypes.c_int(-1)
    args = clone_args(
        flags=flags | const.CLONE_PIDFD,
        pidfd=ctypes.addressof(pidfd),
        exit_signal=SIGCHLD,
    )
    if cgroup_fd >= 0:
        args.flags |= const.CLONE_INTO_CGROUP
        args.cgroup = cgroup_fd
    pid = syscall(const.SYS_clone3, f"clone3({flags:#x})", ctypes.byref(args), ctypes.sizeof(args))
    return pid, pidfd.value


def pidfd_open(pid: int) -> int:
    """A descriptor for process `pid`, readable when it ends. Raises KernelError (ESRCH)."""
    return syscall(const.SYS_pidfd_open, f"pidfd_open({pid})", pid, 0)


def pidfd_send_signal(pidfd: int, signal: int) -> None:
    syscall(const.SYS_pidfd_send_signal, f"pidfd_send_signal({signal})", pidfd, signal, None, 0)


def exit_status(pidfd: int, pid: int, started: int) -> int | None:
    """The wait status of an ended process that is somebody else's child; None: nobody knows.

    A zombie's is in /proc/PID/stat, field 52. When its parent has reaped it, ioctl PIDFD_GET_INFO
    tells (struct pidfd_info, Linux 6.15), if the pidfd was opened while it lived. pidfd_open(2).
    """
    import fcntl

    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        if fields[0] in b"ZX" and int(fields[19]) == started:
            return int(fields[49])
    except (FileNotFoundError, ProcessLookupError):
        pass
    info = bytearray(64)
    info[:8] = _PIDFD_INFO_EXIT.to_bytes(8, sys.byteorder)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info)
    except OSError:
        return None
    told = int.from_bytes(info[:8], sys.byteorder) & _PIDFD_INFO_EXIT
    return int.from_bytes(info[60:64], sys.byteorder) if told else None


_PIDFD_GET_INFO = 0xC040FF0B  # _IOWR(0xFF, 11, 64 bytes)
_PIDFD_INFO_EXIT = 1 << 3


def setns(fd: int, kind: int) -> None:
    """setns(2): join the namespace behind `fd`; `kind` is its CLONE_NEW* flag or 0."""
    check(libc.setns(fd, kind), f"setns({kind:#x})")


def unshare(flags: int) -> None:
    check(libc.unshare(flags), f"unshare({flags:#x})")


def sethostname(name: str) -> None:
    data = name.encode()
    check(libc.sethostname(data, len(data)), f"sethostname({name!r})")


def setdomainname(name: str) -> None:
    data = name.encode()
    check(libc.setdomainname(data, len(data)), f"setdomainname({name!r})")


def set_name(name: str) -> None:
    """PR_SET_NAME: what `ps` and /proc/PID/comm show; the kernel keeps 15 bytes of it."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    prctl(const.PR_SET_NAME, ctypes.addressof(buffer))


def start_time(pid: int) -> int:
    """When `pid` started, in clock ticks since boot (proc(5), stat field 22); 0 if there is none.

    pid and start time together name a process for the whole life of this kernel: a pid alone is
    used again.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    # The name in field 2 may hold spaces and brackets; what follows its last `)` does not.
    fields = text[text.rindex(b")") + 2 :].split()
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


def is_alive(pid: int, started: int) -> bool:
    """Whether exactly that process still runs (a zombie does not)."""
    return pid > 0 and start_time(pid) == started != 0


def kill_pid(pid: int, started: int, signal: int) -> bool:
    """Signal exactly that process, through a pidfd, so that a reused pid is never hit."""
    try:
        fd = pidfd_open(pid)
    except KernelError:
        return False
    try:
        if not is_alive(pid, started):
            return False
        pidfd_send_signal(fd, signal)
        return True
    except KernelError:
        return False
    finally:
        os.close(fd)
