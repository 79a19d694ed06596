"""seccomp(2): hand the kernel a filter that judges every later system call of this process.

The filter is a classic BPF program, the kind tcpdump uses: an array of 8-byte `struct
sock_filter`. It sees the call's number, architecture and arguments (`struct seccomp_data`), and
its return value is the verdict. It stays for good: execve(2) keeps it, children inherit it, and
later filters can only be stricter. Where the program comes from: `oci/seccomp.py`.
"""

from __future__ import annotations

from pyrun.errors import BadInput
from pyrun.kernel import const
from pyrun.kernel.libc import ctypes, syscall

INSTRUCTION = 8
"""Bytes in a struct sock_filter."""


class sock_fprog(ctypes.Structure):
    """struct sock_fprog of linux/filter.h: how many instructions, and where they are."""

    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def install(program: bytes, flags: int = 0) -> None:
    """Judge every system call of this thread by `program` from now on.

    `flags` are SECCOMP_FILTER_FLAG_*. Raises KernelError: EACCES without no_new_privs and without
    CAP_SYS_ADMIN (a setuid program must not be lied to by its caller's filter), EINVAL for a
    program or a flag that the kernel does not accept. Raises BadInput for what is no program.
    """
    count, rest = divmod(len(program), INSTRUCTION)
    if not count or rest or count > const.BPF_MAXINSNS:
        raise BadInput(
            f"a filter of {len(program)} bytes is not 1 to {const.BPF_MAXINSNS} instructions "
            f"of {INSTRUCTION} bytes"
        )
    syscall(
        const.SYS_seccomp,
        f"seccomp(SECCOMP_SET_MODE_FILTER, {flags:#x}, {count} instructions)",
        const.SECCOMP_SET_MODE_FILTER,
        flags,
        ctypes.byref(sock_fprog(count, program)),
    )
