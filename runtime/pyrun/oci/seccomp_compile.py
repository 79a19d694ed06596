"""linux.seccomp → BPF: config-linux.md, Seccomp, compiled by libseccomp(3).

libseccomp turns names into numbers, architecture by architecture, and rules into a binary search.
Two things it cannot do are written here by hand, as a prologue in front of its program
(`seccomp_prologue.py`): calls newer than the library, and ENOSYS for what nobody knows.

Where rules contradict each other libseccomp decides: the broader rule, the one without
conditions, wins. Names that neither it nor pyrun knows are passed over, as runc does.
"""

from __future__ import annotations

import os

from pyrun.errors import BadInput, Unsupported
from pyrun.kernel import const
from pyrun.oci import seccomp_prologue as prologue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Condition = tuple[int, int, int, int]  # argument, operator, value, value two
    Rule = tuple[list[str], int, list[list[Condition]]]  # names, action, alternatives

# linux/seccomp.h: what a filter returns. ERRNO and TRACE carry a number in their low 16 bits.
ACTIONS = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
PERMISSIVE = ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE")
"""Default actions under which an unknown call goes through (or to a tracer that decides)."""

# libseccomp's tokens: AUDIT_ARCH_* of linux/audit.h, except x32, which shares x86_64's.
ARCHITECTURES = {
    "SCMP_ARCH_X86": 0x40000003, "SCMP_ARCH_X86_64": 0xC000003E, "SCMP_ARCH_X32": 0x4000003E,
    "SCMP_ARCH_ARM": 0x40000028, "SCMP_ARCH_AARCH64": 0xC00000B7,
    "SCMP_ARCH_LOONGARCH64": 0xC0000102, "SCMP_ARCH_RISCV64": 0xC00000F3,
    "SCMP_ARCH_MIPS": 0x00000008, "SCMP_ARCH_MIPS64": 0x80000008,
    "SCMP_ARCH_MIPS64N32": 0xA0000008, "SCMP_ARCH_MIPSEL": 0x40000008,
    "SCMP_ARCH_MIPSEL64": 0xC0000008, "SCMP_ARCH_MIPSEL64N32": 0xE0000008,
    "SCMP_ARCH_PPC": 0x00000014, "SCMP_ARCH_PPC64": 0x80000015, "SCMP_ARCH_PPC64LE": 0xC0000015,
    "SCMP_ARCH_S390": 0x00000016, "SCMP_ARCH_S390X": 0x80000016,
    "SCMP_ARCH_PARISC": 0x0000000F, "SCMP_ARCH_PARISC64": 0x8000000F,
    "SCMP_ARCH_M68K": 0x00000004, "SCMP_ARCH_SH": 0x4000002A, "SCMP_ARCH_SHEB": 0x0000002A,
}  # fmt: skip

OPERATORS = {
    "SCMP_CMP_NE": 1, "SCMP_CMP_LT": 2, "SCMP_CMP_LE": 3, "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5, "SCMP_CMP_GT": 6, "SCMP_CMP_MASKED_EQ": 7,
}  # fmt: skip

FLAGS = {
    # One thread installs the filter, just before execve, and no listener can be asked for: there
    # is nobody to synchronise with and nobody to wait for.
    "SECCOMP_FILTER_FLAG_TSYNC": 0,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": 0,
    "SECCOMP_FILTER_FLAG_LOG": const.SECCOMP_FILTER_FLAG_LOG,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": const.SECCOMP_FILTER_FLAG_SPEC_ALLOW,
}

EPERM = 1
MAX_ERRNO = 4095
TREE_FROM = 32
"""From so many rules on a binary search pays; and libseccomp 2.5 makes a wrong one for none."""


def filter_flags(profile: dict[str, Any]) -> int:
    """`flags` as the kernel's bits. Without the key it is SPEC_ALLOW, as runc has it: kernels
    before 5.16 otherwise slow the whole container down against Spectre v4.
    """
    if profile.get("flags") is None:
        return const.SECCOMP_FILTER_FLAG_SPEC_ALLOW
    bits = 0
    for index, name in enumerate(items(profile, "flags", "linux.seccomp.flags")):
        if not isinstance(name, str) or name not in FLAGS:
            raise BadInput(f"linux.seccomp.flags[{index}]: {name!r} is not a seccomp flag")
        bits |= FLAGS[name]
    return bits


def compile_profile(profile: dict[str, Any]) -> bytes:
    """The program for linux.seccomp `profile`: an array of struct sock_filter.

    Raises BadInput with the path of what is wrong, Unsupported for what cannot be done here.
    """
    top = "linux.seccomp"
    if not isinstance(profile, dict):
        raise BadInput(f"{top}: is not an object")
    default = action(profile, "defaultAction", "defaultErrnoRet", f"{top}.defaultAction")
    machines = [
        architecture(name, f"{top}.architectures[{index}]")
        for index, name in enumerate(items(profile, "architectures", f"{top}.architectures"))
    ]
    rules = [
        (f"{top}.syscalls[{index}]", parse_rule(rule, f"{top}.syscalls[{index}]"))
        for index, rule in enumerate(items(profile, "syscalls", f"{top}.syscalls"))
    ]
    try:
        import pyseccomp
    except (ImportError, RuntimeError, AttributeError) as error:
        raise Unsupported(
            f"{top}: cannot compile a system call filter: {error}",
            hint="install libseccomp (Debian: apt-get install libseccomp2), or run with "
            "--security-opt seccomp=unconfined",
        ) from error

    native = pyseccomp.system_arch()
    program = pyseccomp.SyscallFilter(default)
    for index, token in enumerate(machines):
        try:
            if not program.exist_arch(token):
                program.add_arch(token)
        except OSError as error:
            raise BadInput(
                f"{top}.architectures[{index}]: libseccomp cannot filter it on this machine: "
                f"{error.strerror}"
            ) from error
    if sum(len(names) for _, (names, _, _) in rules) >= TREE_FROM:
        try:
            program.set_attr(pyseccomp.Attr.CTL_OPTIMIZE, 2)
        except OSError:  # before libseccomp 2.5: a list does the same, slower
            pass
    for path, rule in rules:
        _add_rule(pyseccomp, program, default, rule, path)

    permissive = profile["defaultAction"] in PERMISSIVE
    head = prologue.build(
        list(dict.fromkeys([native, *machines])),
        [rule for _, rule in rules],
        lambda arch, name: int(pyseccomp.resolve_syscall(arch, name)),
        lambda arch, number: _is_known(pyseccomp, arch, number),
        enosys=not permissive and default != prologue.ENOSYS,
    )
    code = head + _export(program)
    if len(code) > const.BPF_MAXINSNS * 8:
        raise BadInput(
            f"{top}: the profile compiles to {len(code) // 8} instructions, the kernel takes "
            f"{const.BPF_MAXINSNS}",
            hint="name fewer architectures or fewer conditions",
        )
    return code


def _add_rule(pyseccomp: Any, program: Any, default: int, rule: Rule, path: str) -> None:
    names, verdict, alternatives = rule
    if verdict == default:  # libseccomp takes it for a mistake; it only says the default again
        return
    for name in names:
        number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
        if number == prologue.UNKNOWN:
            if name in prologue.NEWER and alternatives:
                raise Unsupported(
                    f"{path}: libseccomp on this host does not know {name}, and pyrun cannot "
                    "look at its arguments without it",
                    hint="use a newer libseccomp, or a rule without `args`",
                )
            continue
        for conditions in alternatives or [[]]:
            try:
                program.add_rule(verdict, number, *(pyseccomp.Arg(*one) for one in conditions))
            except OSError as error:
                raise BadInput(
                    f"{path}: libseccomp refuses the rule for {name}: {error.strerror}",
                    hint="another rule for the same call and arguments has another action",
                ) from error


def _is_known(pyseccomp: Any, arch: int, number: int) -> bool:
    try:
        return bool(pyseccomp.resolve_syscall(arch, number))
    except ValueError:
        return False


def _export(program: Any) -> bytes:
    with open(os.memfd_create("filter", os.MFD_CLOEXEC), "rb") as file:
        program.export_bpf(file)
        file.seek(0)
        return file.read()


def parse_rule(rule: Any, path: str) -> Rule:
    """One entry of `syscalls`: names, action, and the alternatives of its conditions.

    All conditions of a rule must hold, but where two look at the same argument libseccomp has no
    way to say "and": each then becomes a rule of its own, as runc does, so that one is enough.
    """
    if not isinstance(rule, dict):
        raise BadInput(f"{path}: is not an object")
    names = items(rule, "names", f"{path}.names")
    if not names or not all(isinstance(name, str) and name and "\0" not in name for name in names):
        raise BadInput(f"{path}.names: wants a list of system call names")
    verdict = action(rule, "action", "errnoRet", f"{path}.action")
    conditions = [
        _condition(argument, f"{path}.args[{index}]")
        for index, argument in enumerate(items(rule, "args", f"{path}.args"))
    ]
    if not conditions:
        return names, verdict, []
    if len({condition[0] for condition in conditions}) < len(conditions):
        return names, verdict, [[condition] for condition in conditions]
    return names, verdict, [conditions]


def _condition(argument: Any, path: str) -> Condition:
    if not isinstance(argument, dict):
        raise BadInput(f"{path}: is not an object")
    operator = argument.get("op")
    if not isinstance(operator, str) or operator not in OPERATORS:
        raise BadInput(f"{path}.op: {operator!r} is not one of {', '.join(OPERATORS)}")
    return (
        _number(argument.get("index"), 5, f"{path}.index"),
        OPERATORS[operator],
        _number(argument.get("value"), 2**64 - 1, f"{path}.value"),
        _number(argument.get("valueTwo") or 0, 2**64 - 1, f"{path}.valueTwo"),
    )


def action(table: dict[str, Any], key: str, errno_key: str, path: str) -> int:
    """`table[key]` as what the filter returns, with the errno beside it."""
    name = table.get(key)
    if name == "SCMP_ACT_NOTIFY":
        raise Unsupported(f"{path}: SCMP_ACT_NOTIFY needs a listener, which comes with pyrun-oci")
    if not isinstance(name, str) or name not in ACTIONS:
        raise BadInput(f"{path}: {name!r} is not one of {', '.join(ACTIONS)}")
    errno = table.get(errno_key)
    if name in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
        where = f"{path.rpartition('.')[0]}.{errno_key}".lstrip(".")
        return ACTIONS[name] | _number(EPERM if errno is None else errno, MAX_ERRNO, where)
    if errno:
        raise BadInput(f"{path}: {name} returns no errno, but {errno_key} is {errno!r}")
    return ACTIONS[name]


def architecture(name: Any, path: str) -> int:
    """libseccomp's token for `SCMP_ARCH_…`."""
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise BadInput(f"{path}: {name!r} is not an architecture like SCMP_ARCH_X86_64")
    return ARCHITECTURES[name]


def items(table: dict[str, Any], key: str, path: str) -> list[Any]:
    """The list `table[key]`; empty where it is missing or null."""
    value = table.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadInput(f"{path}: is not a list")
    return value


def _number(value: Any, most: int, path: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise BadInput(f"{path}: {value!r} is not a number from 0 to {most}")
    return value
