"""bpf(2), as far as cgroup v2 needs it: the program that decides which devices may be used.

v1 had files for this (devices.allow); v2 lets one attach a BPF_PROG_TYPE_CGROUP_DEVICE program to
a cgroup. The kernel runs it at every open(2) and mknod(2) of a device node by a process in the
cgroup or below; 1 allows, 0 makes the call fail with EPERM. With BPF_F_ALLOW_MULTI the programs of
all cgroups above run too, and all must agree: a container can never allow itself more than its pod.

The program is a straight walk through the rules, last one first since later rules win, keeping in
r2 which of the wished accesses (mknod 1, read 2, write 4) are still undecided. Instructions are 8
bytes each: opcode, registers, jump offset, constant (include/uapi/linux/bpf.h).
"""

from __future__ import annotations

import os

from pyrun.errors import KernelError, Unsupported
from pyrun.kernel import const
from pyrun.kernel.libc import c_ulong, ctypes, syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

BPF_PROG_LOAD = 5
BPF_PROG_ATTACH = 8
BPF_PROG_DETACH = 9
BPF_PROG_GET_FD_BY_ID = 13
BPF_PROG_QUERY = 16
BPF_PROG_TYPE_CGROUP_DEVICE = 15
BPF_CGROUP_DEVICE = 6
BPF_F_ALLOW_MULTI = 2
BPF_F_REPLACE = 4

LDX_W, MOV_K, MOV_X, AND_K, RSH_K = 0x61, 0xB7, 0xBF, 0x57, 0x77
JA, JNE_K, JSET_K, EXIT = 0x05, 0x55, 0x45, 0x95
"""The opcodes used: load word; set, copy, and, shift of 64 bits; jumps, return."""

TYPES = {"b": 1, "c": 2}
ACCESS = {"m": 1, "r": 2, "w": 4}
ANY = -1


def device_program(default: bool, rules: list[Any]) -> bytes:
    """The program for `rules`, each (allow, `b` or `c`, major, minor, access); -1 is any number.

    `default` is the answer where no rule speaks. Pure.
    """
    # r1 points to struct bpf_cgroup_dev_ctx {u32 access_type, major, minor}; the low half of
    # access_type is the type, the high half the access.
    code = [
        instruction(LDX_W, 2, 1, 0),
        instruction(MOV_X, 3, 2),
        instruction(AND_K, 3, constant=0xFFFF),
        instruction(RSH_K, 2, constant=16),
        instruction(LDX_W, 4, 1, 4),
        instruction(LDX_W, 5, 1, 8),
    ]
    for rule in reversed(rules):
        code += rule_code(*rule)
    code += [instruction(MOV_K, 0, constant=int(default)), instruction(EXIT)]
    return b"".join(code)


def rule_code(allow: bool, kind: str, major: int, minor: int, access: str) -> list[bytes]:
    """The instructions of one rule."""
    bits = sum(ACCESS[letter] for letter in access)
    if allow:
        # What this rule allows is decided; when nothing is left to decide, allow.
        verdict = [
            instruction(AND_K, 2, constant=~bits & 7),
            instruction(JNE_K, 2, offset=2, constant=0),
            instruction(MOV_K, 0, constant=1),
            instruction(EXIT),
        ]
    else:
        # One denied access among the undecided ones denies all.
        verdict = [
            instruction(JSET_K, 2, offset=1, constant=bits),
            instruction(JA, offset=2),
            instruction(MOV_K, 0, constant=0),
            instruction(EXIT),
        ]
    tests = [(3, TYPES[kind])]
    tests += [(4, major)] if major != ANY else []
    tests += [(5, minor)] if minor != ANY else []
    code = []
    for i, (register, value) in enumerate(tests):
        rest = len(tests) - 1 - i + len(verdict)
        code.append(instruction(JNE_K, register, offset=rest, constant=value))
    return code + verdict


def instruction(
    code: int, to: int = 0, source: int = 0, offset: int = 0, constant: int = 0
) -> bytes:
    """One struct bpf_insn."""
    head = bytes((code, source << 4 | to))
    return head + offset.to_bytes(2, "little") + (constant & 0xFFFFFFFF).to_bytes(4, "little")


def set_device_rules(directory: str, default: bool, rules: list[Any]) -> None:
    """Attach the program for `rules` to a v2 cgroup, in place of one attached before.

    Raises Unsupported where the kernel has no such programs or does not allow us any.
    """
    try:
        cgroup = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            program = load(device_program(default, rules))
            try:
                replace(cgroup, program)
            finally:
                os.close(program)
        finally:
            os.close(cgroup)
    except KernelError as error:
        if error.errno in (1, 22, 38, 95):  # EPERM, EINVAL, ENOSYS, EOPNOTSUPP
            raise Unsupported(
                f"cannot restrict devices in {directory}: {error}",
                hint="the kernel needs CONFIG_CGROUP_BPF, and pyrun CAP_BPF or CAP_SYS_ADMIN",
            ) from error
        raise


def replace(cgroup: int, program: int) -> None:
    """Attach `program`; the ones found attached before are detached after it, so that there is
    no moment without rules.
    """
    old = attached(cgroup)
    fds = [bpf(BPF_PROG_GET_FD_BY_ID, "bpf(BPF_PROG_GET_FD_BY_ID)", (i, 4)) for i in old]
    try:
        if len(fds) == 1:
            attach(cgroup, program, BPF_F_ALLOW_MULTI | BPF_F_REPLACE, fds[0])
            return
        attach(cgroup, program, BPF_F_ALLOW_MULTI, 0)
        for fd in fds:
            bpf(
                BPF_PROG_DETACH,
                "bpf(BPF_PROG_DETACH, BPF_CGROUP_DEVICE)",
                (cgroup, 4),
                (fd, 4),
                (BPF_CGROUP_DEVICE, 4),
            )
    finally:
        for fd in fds:
            os.close(fd)


def load(code: bytes) -> int:
    """BPF_PROG_LOAD of a cgroup device program: its descriptor. Raises KernelError."""
    text = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"Apache-2.0")
    return bpf(
        BPF_PROG_LOAD,
        f"bpf(BPF_PROG_LOAD, BPF_PROG_TYPE_CGROUP_DEVICE, {len(code) // 8} instructions)",
        (BPF_PROG_TYPE_CGROUP_DEVICE, 4),
        (len(code) // 8, 4),
        (ctypes.addressof(text), 8),
        (ctypes.addressof(licence), 8),
    )


def attach(cgroup: int, program: int, flags: int, replaced: int) -> None:
    """BPF_PROG_ATTACH to a cgroup. Raises KernelError."""
    bpf(
        BPF_PROG_ATTACH,
        "bpf(BPF_PROG_ATTACH, BPF_CGROUP_DEVICE)",
        (cgroup, 4),
        (program, 4),
        (BPF_CGROUP_DEVICE, 4),
        (flags, 4),
        (replaced, 4),
    )


def attached(cgroup: int) -> list[int]:
    """The ids of the device programs attached to a cgroup itself. Raises KernelError."""
    ids = (ctypes.c_uint32 * 64)()
    attr = pack((cgroup, 4), (BPF_CGROUP_DEVICE, 4), (0, 8), (ctypes.addressof(ids), 8), (64, 4))
    call(BPF_PROG_QUERY, "bpf(BPF_PROG_QUERY, BPF_CGROUP_DEVICE)", attr)
    return list(ids[: int.from_bytes(attr.raw[24:28], "little")])


def bpf(command: int, name: str, *fields: tuple[int, int]) -> int:
    """bpf(2) with a union bpf_attr made of `fields`, each (value, bytes). Raises KernelError."""
    return call(command, name, pack(*fields))


def pack(*fields: tuple[int, int]) -> Any:
    data = b"".join(value.to_bytes(size, "little") for value, size in fields)
    return ctypes.create_string_buffer(data, 128)


def call(command: int, name: str, attr: Any) -> int:
    return syscall(const.SYS_bpf, name, command, ctypes.byref(attr), c_ulong(128))
