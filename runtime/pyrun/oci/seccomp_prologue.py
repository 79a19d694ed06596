"""What stands before libseccomp's program: answers for system calls that the library cannot name.

A kernel gets new calls faster than a distribution a new libseccomp. Two things follow.

A call that the profile allows must work although the library has no name for it. Since Linux 5.1
all architectures give a new call the same number, so a short table of our own is enough.

A call that nobody knows must fail with ENOSYS, "this kernel does not have it", because that is
what a C library waits for before it takes the older way. The profile's default, mostly EPERM,
makes it give up: programs of glibc 2.34 could not start a thread where clone3 gave EPERM. Unknown
is a number above the highest one that the profile mentions (runc's rule: whoever wrote the
profile cannot have meant it), and a number below it that has no name.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyrun.oci.seccomp_compile import Rule

    Range = tuple[int, int, int]  # first number, last number, verdict

NEWER = {
    name: number
    for number, name in enumerate(
        "pidfd_send_signal io_uring_setup io_uring_enter io_uring_register open_tree move_mount "
        "fsopen fsconfig fsmount fspick pidfd_open clone3 close_range openat2 pidfd_getfd "
        "faccessat2 process_madvise epoll_pwait2 mount_setattr quotactl_fd landlock_create_ruleset "
        "landlock_add_rule landlock_restrict_self memfd_secret process_mrelease futex_waitv "
        "set_mempolicy_home_node cachestat fchmodat2 map_shadow_stack futex_wake futex_wait "
        "futex_requeue statmount listmount lsm_get_self_attr lsm_set_self_attr lsm_list_modules "
        "mseal setxattrat getxattrat listxattrat removexattrat open_tree_attr file_getattr "
        "file_setattr listns rseq_slice_yield".split(),
        start=424,
    )
}
"""The calls of Linux 5.1 to 7.0 by number: scripts/syscall.tbl, from 424 on without a gap."""

X86_64, X32 = 0xC000003E, 0x4000003E
X86_64_ONLY = {"uretprobe": 335, "uprobe": 336}
"""Calls that only the kernel itself makes, from code it has put into a traced process."""

# The architectures whose numbers begin at `base` and follow the common table from 424 on.
# x32 is x86_64 with one bit set in every number. MIPS counts from 4000 and is left to libseccomp.
BASES = {
    X86_64: 0, X32: 0x40000000, 0x40000003: 0, 0xC00000B7: 0, 0x40000028: 0,
    0xC00000F3: 0, 0xC0000102: 0, 0xC0000015: 0, 0x80000016: 0,
}  # fmt: skip
LIMIT = 0xF0000
"""Far above every number; 32-bit ARM has calls of its own from here on, which libseccomp knows."""

UNKNOWN = -1
"""libseccomp's answer for a name it has never heard; other negatives mean "not on this one"."""

ENOSYS = 0x00050000 | 38
"""SECCOMP_RET_ERRNO with the errno."""

# linux/bpf_common.h: load a word, jumps, return. A sock_filter is code, jt, jf, k.
LOAD, JUMP, JUMP_EQ, JUMP_GT, JUMP_GE, RETURN = 0x20, 0x05, 0x15, 0x25, 0x35, 0x06
NUMBER_AT, ARCH_AT = 0, 4  # offsets in struct seccomp_data


def build(
    machines: list[int],
    rules: list[Rule],
    resolve: Callable[[int, str], int],
    is_known: Callable[[int, int], bool],
    enosys: bool,
) -> bytes:
    """The prologue for the `machines` (libseccomp's tokens) of a filter; b"" where none is needed.

    resolve, is_known  libseccomp's tables: (token, name) → number, (token, number) → has a name
    enosys             whether unknown numbers get ENOSYS
    """
    sections: dict[int, list[Range]] = {}
    for token in machines:
        if token in BASES:
            audit = X86_64 if token == X32 else token
            sections.setdefault(audit, []).extend(_ranges(token, rules, resolve, is_known, enosys))
    return b"".join(_section(audit, sorted(ranges)) for audit, ranges in sections.items() if ranges)


def _ranges(
    token: int,
    rules: list[Rule],
    resolve: Callable[[int, str], int],
    is_known: Callable[[int, int], bool],
    enosys: bool,
) -> list[Range]:
    base = BASES[token]
    own = {**NEWER, **X86_64_ONLY} if token == X86_64 else NEWER
    numbers = {name: base + number for name, number in own.items()}
    verdicts: dict[int, int] = {}
    highest = -1
    for names, verdict, alternatives in rules:
        for name in names:
            number = resolve(token, name)
            if number < 0 and name in numbers:
                number = numbers[name]
                if not alternatives:
                    verdicts.setdefault(number, verdict)
            if number < base + LIMIT:
                highest = max(highest, number)
    if enosys and highest >= 0:
        named = set(numbers.values())
        for number in range(base, highest + 1):
            if number not in named and not is_known(token, number):
                verdicts[number] = ENOSYS
    ranges: list[Range] = []
    for number, verdict in sorted(verdicts.items()):
        if ranges and ranges[-1][1] == number - 1 and ranges[-1][2] == verdict:
            ranges[-1] = (ranges[-1][0], number, verdict)
        else:
            ranges.append((number, number, verdict))
    if enosys and highest >= 0:
        ranges.append((highest + 1, base + LIMIT - 1, ENOSYS))
    return ranges


def _section(audit: int, ranges: list[Range]) -> bytes:
    """Code that answers for `ranges` on one architecture and otherwise falls through.

    Most calls have low numbers: one comparison with the lowest range lets them pass.
    """
    body = [_instruction(LOAD, NUMBER_AT)]
    answers: list[bytes] = []
    for first, last, verdict in ranges:
        if first == last:
            answers.append(_instruction(JUMP_EQ, first, 0, 1))
        else:
            answers += [_instruction(JUMP_GE, first, 0, 2), _instruction(JUMP_GT, last, 1, 0)]
        answers.append(_instruction(RETURN, verdict))
    # A conditional jump reaches 255 instructions, JUMP any number: go round a long jump.
    body += [_instruction(JUMP_GE, ranges[0][0], 1, 0), _instruction(JUMP, len(answers)), *answers]
    head = [
        _instruction(LOAD, ARCH_AT),
        _instruction(JUMP_EQ, audit, 1, 0),
        _instruction(JUMP, len(body)),
    ]
    return b"".join(head + body)


def _instruction(code: int, k: int, jump_true: int = 0, jump_false: int = 0) -> bytes:
    """One struct sock_filter in the machine's own byte order."""
    return struct.pack("=HBBI", code, jump_true, jump_false, k)
