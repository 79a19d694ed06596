"""Runs a classic BPF program the way the kernel does (seccomp's subset of it), for tests.

It can ask for the verdict on architectures that this machine does not execute. What the kernel
itself says about its own architecture is in tests/kernel/test_seccomp.py.
"""

import struct

X86_64, I386, AARCH64 = 0xC000003E, 0x40000003, 0xC00000B7
X32_BIT = 0x40000000

ALLOW, KILL_THREAD, KILL_PROCESS = 0x7FFF0000, 0x00000000, 0x80000000
LOG, TRAP, TRACE = 0x7FFC0000, 0x00030000, 0x7FF00000


def errno(number: int) -> int:
    return 0x00050000 | number


def verdict(program: bytes, number: int, *arguments: int, arch: int = X86_64) -> int:
    """What the program returns for one system call. Raises when it does what seccomp refuses."""
    data = struct.pack(
        "=IIQ6Q",
        number & 0xFFFFFFFF,
        arch,
        0,
        *(value & 0xFFFFFFFFFFFFFFFF for value in [*arguments, 0, 0, 0, 0, 0, 0][:6]),
    )
    code = list(struct.iter_unpack("=HBBI", program))
    accumulator = index = 0
    scratch = [0] * 16
    while True:
        operation, jump_true, jump_false, k = code[index]
        index += 1
        if operation == 0x06:
            return k
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, k)
        elif operation == 0x54:
            accumulator &= k
        elif operation == 0x02:
            scratch[k] = accumulator
        elif operation == 0x60:
            accumulator = scratch[k]
        elif operation == 0x05:
            index += k
        else:
            test = {
                0x15: accumulator == k,
                0x25: accumulator > k,
                0x35: accumulator >= k,
                0x45: bool(accumulator & k),
            }[operation]
            index += jump_true if test else jump_false
