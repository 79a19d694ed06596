"""Capabilities: names and numbers, the five sets, and how they survive the change of user.

capabilities(7). The bounding set and the flags go through python-prctl; capset(2) and the ambient
set, for which it has no call, go to the kernel directly.
"""

from __future__ import annotations

import prctl as python_prctl

from pyrun.kernel import const
from pyrun.kernel.libc import c_uint, ctypes, prctl, syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

NAMES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
    "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO "
    "SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME "
    "SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG "
    "WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
).split()
"""Index is the capability's number in linux/capability.h; without the CAP_ prefix."""

NUMBERS = {f"CAP_{name}": number for number, name in enumerate(NAMES)}

DEFAULT = (
    "CAP_CHOWN CAP_DAC_OVERRIDE CAP_FSETID CAP_FOWNER CAP_MKNOD CAP_NET_RAW CAP_SETGID CAP_SETUID "
    "CAP_SETFCAP CAP_SETPCAP CAP_NET_BIND_SERVICE CAP_SYS_CHROOT CAP_KILL CAP_AUDIT_WRITE"
).split()
"""Docker's default set."""


def mask(names: Iterable[str]) -> int:
    return sum(1 << NUMBERS[name] for name in set(names))


def names(bits: int) -> list[str]:
    return [f"CAP_{name}" for number, name in enumerate(NAMES) if bits >> number & 1]


def own_bounding() -> int:
    """The bounding set of this process as bits: nothing outside it can be given to a container."""
    # Bytes, not text: this also runs in a new container, where no codec can be loaded any more.
    with open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"CapBnd:"):
                return int(line.split()[1], 16)
    return 0


def drop_bounding(keep: int) -> None:
    """Drop every capability outside `keep` from the bounding set, for good."""
    present = own_bounding()
    for number in range(present.bit_length()):
        if present >> number & 1 and not keep >> number & 1:
            python_prctl.capbset_drop(number)


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2), version 3: two 32-bit words a set."""
    header = (c_uint * 2)(const.LINUX_CAPABILITY_VERSION_3, 0)
    words = []
    for shift in (0, 32):
        words += [bits >> shift & 0xFFFFFFFF for bits in (effective, permitted, inheritable)]
    data = (c_uint * 6)(*words)
    syscall(
        const.SYS_capset,
        f"capset({effective:#x}, {permitted:#x}, {inheritable:#x})",
        ctypes.byref(header),
        ctypes.byref(data),
    )


def set_ambient(bits: int) -> None:
    """Replace the ambient set; the kernel wants each one permitted and inheritable already."""
    prctl(const.PR_CAP_AMBIENT, const.PR_CAP_AMBIENT_CLEAR_ALL)
    for number in range(bits.bit_length()):
        if bits >> number & 1:
            prctl(const.PR_CAP_AMBIENT, const.PR_CAP_AMBIENT_RAISE, number)
