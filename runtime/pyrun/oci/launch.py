"""Making a container process: clone3(2) into its namespaces, then the init plan.

The parent's side is `launch` and `read_message`; the child's is `oci/init.py`. Between them is
one socket that closes itself when execve succeeds.
"""

from __future__ import annotations

import _signal
import _socket
import os
import struct

from pyrun.kernel import const, process
from pyrun.oci.init import ERROR, SETTING_UP, STEP, TERMINAL, Init
from pyrun.store.fastjson import loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Launched:
    """A process on its way: pid and pidfd as seen from here, and the channel that tells how."""

    __slots__ = ("channel", "pid", "pidfd")

    def __init__(self, pid: int, pidfd: int, channel: _socket.socket) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.channel = channel


def launch(order: dict[str, Any], stdio: tuple[int, int, int], target: int = -1) -> Launched:
    """Clone the process that `order` describes and return at once, while it sets itself up.

    order   flags: clone3 flags; plan: [[op, *args], …]; unified: directory of the cgroup v2
            cgroup to be born in, or ""; pid_namespace: path to join first, or "";
            cgroups: what a mount of type cgroup shows; tell_steps: report each step
    stdio   descriptors that become 0, 1 and 2
    target  pidfd of the container to join, for exec
    Raises KernelError when not even the clone works.
    """
    ours, theirs = _socket.socketpair(1, 5 | _SOCK_CLOEXEC)  # AF_UNIX, SOCK_SEQPACKET
    cgroup = own_pid = root = -1
    try:
        if target >= 0:
            flags = const.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
            root = os.open(f"/proc/{order['target']}/root", flags)
        if order["unified"]:
            cgroup = os.open(order["unified"], const.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        if order["pid_namespace"] or target >= 0:
            # setns to a pid namespace moves not the caller but its children from now on.
            own_pid = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
            if target >= 0:
                process.setns(target, const.CLONE_NEWPID)
            else:
                joined = os.open(order["pid_namespace"], os.O_RDONLY | os.O_CLOEXEC)
                try:
                    process.setns(joined, const.CLONE_NEWPID)
                finally:
                    os.close(joined)
        pid, pidfd = process.clone3(order["flags"], cgroup)
        if pid == 0:
            _child(order, stdio, theirs, target, root)
    finally:
        theirs.close()
        if root >= 0:
            os.close(root)
        if cgroup >= 0:
            os.close(cgroup)
        if own_pid >= 0:
            process.setns(own_pid, const.CLONE_NEWPID)
            os.close(own_pid)
    return Launched(pid, pidfd, ours)


_SOCK_CLOEXEC = 0o2000000


def _child(
    order: dict[str, Any],
    stdio: tuple[int, int, int],
    channel: _socket.socket,
    target: int,
    root: int,
) -> None:
    """In the new process. Never returns."""
    try:
        _default_signals()
        # First aside, so that no descriptor is overwritten before it was used.
        high = [os.dup2(fd, 100 + number) for number, fd in enumerate(stdio)]
        for number, fd in enumerate(high):
            os.dup2(fd, number)
            os.close(fd)
        os.setsid()
        os.umask(0o022)
        init = Init(
            channel,
            target=target,
            target_root=root,
            cgroups=[tuple(pair) for pair in order["cgroups"]],
            tell_steps=order.get("tell_steps", False),
        )
        init.run(order["plan"])
    finally:
        os._exit(127)


def _default_signals() -> None:
    """Python ignores SIGPIPE and SIGXFSZ, the launcher blocks some: programs expect neither."""
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    for number in range(1, 32):
        if number not in (9, 19):
            _signal.signal(number, _signal.SIG_DFL)


class Message:
    """One message of the child. kind is STEP, ERROR, TERMINAL, or b"" for the end: it executes."""

    __slots__ = ("errno", "fd", "kind", "step", "text", "took")

    def __init__(
        self,
        kind: bytes,
        step: int = -1,
        errno: int = 0,
        text: str = "",
        fd: int = -1,
        took: int = 0,
    ) -> None:
        self.took = took  # nanoseconds
        self.kind = kind
        self.step = step
        self.errno = errno
        self.text = text
        self.fd = fd


def read_message(channel: _socket.socket) -> Message:
    """The next message. Blocks; the caller polls the channel first when it must not."""
    data, ancillary, _, _ = channel.recvmsg(65536, 64, 0x40000000)  # MSG_CMSG_CLOEXEC
    kind, rest = data[:1], data[1:]
    if kind == STEP:
        step, took = rest.split()
        return Message(STEP, step=int(step), took=int(took))
    if kind == ERROR:
        said = loads(rest.decode())
        return Message(ERROR, said["step"], said["errno"], said["text"])
    if kind == TERMINAL:
        return Message(TERMINAL, fd=struct.unpack("i", ancillary[0][2][:4])[0])
    return Message(b"")


def has_executed(launched: Launched) -> bool:
    """After the end of the channel: whether execve(2) closed it, or the end of the process.

    A process on its way out has lost its memory, and with it /proc/PID/exe, before it closes its
    files. Then its name decides, which execve changes; a short program may be over already.
    """
    try:
        os.readlink(f"/proc/{launched.pid}/exe")
        return True
    except OSError:
        os.waitid(os.P_PIDFD, launched.pidfd, os.WEXITED | os.WNOWAIT)
    with open(f"/proc/{launched.pid}/comm", encoding="utf-8", errors="replace") as file:
        return file.read() != f"{SETTING_UP}\n"
