"""What the compiled programs decide, rule by rule, on several architectures."""

from typing import Any

import pytest
from bpf_machine import (
    AARCH64,
    ALLOW,
    I386,
    KILL_PROCESS,
    KILL_THREAD,
    LOG,
    TRACE,
    TRAP,
    X32_BIT,
    errno,
    verdict,
)

from pyrun.errors import BadInput, PyrunError, Unsupported
from pyrun.oci.seccomp_compile import compile_profile, filter_flags
from pyrun.oci.seccomp_prologue import NEWER

READ, WRITE, CLONE, OPENAT2, MSEAL = 0, 1, 56, 437, 462  # on x86_64
EPERM, ENOSYS = errno(1), errno(38)


def rule(names: str, action: str = "ALLOW", **more: Any) -> dict[str, Any]:
    return {"names": names.split(), "action": f"SCMP_ACT_{action}", **more}


def test(index: int, op: str, value: int, value_two: int = 0) -> dict[str, Any]:
    return {"index": index, "op": f"SCMP_CMP_{op}", "value": value, "valueTwo": value_two}


test.__test__ = False  # type: ignore[attr-defined]


def build(*rules: dict[str, Any], default: str = "ERRNO", **more: Any) -> bytes:
    more.setdefault("architectures", ["SCMP_ARCH_X86_64"])
    return compile_profile(
        {"defaultAction": f"SCMP_ACT_{default}", "syscalls": list(rules), **more}
    )


def test_default_errno_is_eperm_unless_the_profile_says_another() -> None:
    assert verdict(build(rule("write")), READ) == EPERM
    assert verdict(build(rule("write"), defaultErrnoRet=13), READ) == errno(13)
    assert verdict(build(rule("write"), defaultErrnoRet=0), READ) == errno(0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("KILL", KILL_THREAD),
        ("KILL_THREAD", KILL_THREAD),
        ("KILL_PROCESS", KILL_PROCESS),
        ("TRAP", TRAP),
        ("LOG", LOG),
        ("ALLOW", ALLOW),
        ("ERRNO", EPERM),
        ("TRACE", TRACE | 1),
    ],
)
def test_every_action_works_as_rule_and_as_default(name: str, expected: int) -> None:
    other = "ERRNO" if name != "ERRNO" else "ALLOW"
    program = build(rule("read", name), default=other)
    assert verdict(program, READ) == expected
    assert verdict(build(rule("read openat2", other), default=name), WRITE) == expected


def test_errno_of_a_rule_is_what_the_call_fails_with() -> None:
    program = build(rule("read", "ERRNO", errnoRet=22), rule("write", "TRACE", errnoRet=7))
    assert verdict(program, READ) == errno(22)
    assert verdict(program, WRITE) == TRACE | 7


@pytest.mark.parametrize(
    ("op", "yes", "no"),
    [
        ("EQ", [5], [4, 6, 5 << 32]),
        ("NE", [4, 6], [5]),
        ("LT", [0, 4], [5, 6, 1 << 40]),
        ("LE", [0, 5], [6, 1 << 40]),
        ("GT", [6, 1 << 40], [5, 0]),
        ("GE", [5, 1 << 40], [4]),
    ],
)
def test_comparisons_are_of_64_bits(op: str, yes: list[int], no: list[int]) -> None:
    program = build(rule("read", args=[test(1, op, 5)]))
    assert all(verdict(program, READ, 0, value) == ALLOW for value in yes)
    assert all(verdict(program, READ, 0, value) == EPERM for value in no)


def test_masked_comparison_takes_the_mask_first() -> None:
    program = build(rule("clone", args=[test(0, "MASKED_EQ", 0xF0, 0x30)]))
    assert verdict(program, CLONE, 0x3F) == ALLOW
    assert verdict(program, CLONE, 0x4F) == EPERM


def test_conditions_on_different_arguments_must_all_hold() -> None:
    program = build(rule("read", args=[test(0, "EQ", 1), test(1, "EQ", 2)]))
    assert verdict(program, READ, 1, 2) == ALLOW
    assert verdict(program, READ, 1, 3) == EPERM


def test_of_conditions_on_one_argument_any_is_enough_as_runc_has_it() -> None:
    program = build(rule("read", args=[test(0, "EQ", 1), test(0, "EQ", 2), test(1, "EQ", 9)]))
    assert verdict(program, READ, 2) == ALLOW
    assert verdict(program, READ, 7, 9) == ALLOW
    assert verdict(program, READ, 7) == EPERM


def test_rules_for_one_name_add_up() -> None:
    program = build(
        rule("read", args=[test(0, "EQ", 1)]),
        rule("read", "ERRNO", args=[test(0, "EQ", 2)], errnoRet=5),
    )
    assert verdict(program, READ, 1) == ALLOW
    assert verdict(program, READ, 2) == errno(5)
    assert verdict(program, READ, 3) == EPERM


def test_names_nobody_knows_are_passed_over() -> None:
    program = build(rule("read frobnicate"), rule("frobnicate", args=[test(0, "EQ", 1)]))
    assert verdict(program, READ) == ALLOW


def test_numbers_above_the_profiles_highest_get_enosys() -> None:
    program = build(rule("read write openat2"))
    assert verdict(program, CLONE) == EPERM
    assert verdict(program, OPENAT2) == ALLOW
    assert verdict(program, OPENAT2 + 1) == ENOSYS
    assert verdict(program, 999) == ENOSYS


def test_numbers_without_a_name_get_enosys_also_below() -> None:
    program = build(rule("read openat2"))
    assert verdict(program, 400) == ENOSYS  # between the old table and the common one
    assert verdict(program, 425) == EPERM  # io_uring_setup is known, and not allowed


def test_profile_that_names_nothing_refuses_everything_alike() -> None:
    assert verdict(build(), 999) == EPERM


@pytest.mark.parametrize("default", ["ALLOW", "LOG", "TRACE"])
def test_permissive_default_lets_unknown_numbers_through(default: str) -> None:
    program = build(rule("write", "KILL"), default=default)
    assert verdict(program, 999) == verdict(program, READ)


def test_calls_newer_than_libseccomp_are_judged_by_number() -> None:
    program = build(rule("mseal"), rule("statmount", "ERRNO", errnoRet=5))
    assert verdict(program, MSEAL) == ALLOW
    assert verdict(program, NEWER["statmount"]) == errno(5)
    assert verdict(program, NEWER["lsm_get_self_attr"]) == EPERM
    assert verdict(program, MSEAL + 1) == ENOSYS
    denied = build(rule("mseal", "ERRNO"), default="ALLOW")
    assert verdict(denied, MSEAL) == EPERM


def test_common_numbers_are_those_of_the_kernel() -> None:
    expected = {"clone3": 435, "openat2": 437, "memfd_secret": 447, "futex_waitv": 449,
                "cachestat": 451, "fchmodat2": 452, "map_shadow_stack": 453, "futex_requeue": 456,
                "listmount": 458, "mseal": 462, "removexattrat": 466, "file_setattr": 469,
                "listns": 470}  # fmt: skip
    assert expected.items() <= NEWER.items()


def test_common_numbers_agree_with_libseccomp_where_it_knows_them() -> None:
    import pyseccomp

    for name, number in NEWER.items():
        assert pyseccomp.resolve_syscall(0, name) in (number, -1), name


def test_i386_and_x32_are_judged_by_their_own_numbers() -> None:
    program = build(
        rule("read mseal"),
        architectures=["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    )
    assert verdict(program, 3, arch=I386) == ALLOW  # read
    assert verdict(program, 4, arch=I386) == EPERM
    assert verdict(program, MSEAL, arch=I386) == ALLOW
    assert verdict(program, 999, arch=I386) == ENOSYS
    assert verdict(program, X32_BIT | READ) == ALLOW
    assert verdict(program, X32_BIT | WRITE) == EPERM
    assert verdict(program, X32_BIT | MSEAL) == ALLOW
    assert verdict(program, X32_BIT | 999) == ENOSYS


def test_architecture_that_is_not_listed_is_killed() -> None:
    program = build(rule("read"))
    assert verdict(program, 3, arch=I386) == KILL_THREAD
    assert verdict(program, 63, arch=AARCH64) == KILL_THREAD
    assert verdict(program, X32_BIT | READ) == KILL_THREAD


def test_foreign_architecture_can_be_listed() -> None:
    program = build(rule("read mseal"), architectures=["SCMP_ARCH_AARCH64"])
    assert verdict(program, 63, arch=AARCH64) == ALLOW
    assert verdict(program, MSEAL, arch=AARCH64) == ALLOW
    assert verdict(program, READ) == ALLOW  # the native one is always in


def test_rule_that_repeats_the_default_changes_nothing() -> None:
    assert verdict(build(rule("read", "ERRNO"), rule("write")), READ) == EPERM


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"defaultAction": "SCMP_ACT_MAYBE"}, "linux.seccomp.defaultAction"),
        ({"defaultAction": None}, "linux.seccomp.defaultAction"),
        ({"defaultErrnoRet": -1}, "linux.seccomp.defaultErrnoRet"),
        ({"defaultErrnoRet": 5000}, "linux.seccomp.defaultErrnoRet"),
        ({"architectures": ["SCMP_ARCH_PDP11"]}, r"linux.seccomp.architectures\[0\]"),
        ({"architectures": ["SCMP_ARCH_S390X"]}, r"linux.seccomp.architectures\[0\]"),
        ({"architectures": "SCMP_ARCH_X86"}, "linux.seccomp.architectures"),
        ({"syscalls": {}}, "linux.seccomp.syscalls"),
        ({"syscalls": [3]}, r"linux.seccomp.syscalls\[0\]"),
        ({"syscalls": [rule("")]}, r"linux.seccomp.syscalls\[0\].names"),
        ({"syscalls": [rule("read"), rule("read", "X")]}, r"linux.seccomp.syscalls\[1\].action"),
        ({"syscalls": [rule("read", errnoRet=1)]}, r"linux.seccomp.syscalls\[0\].action"),
        ({"syscalls": [rule("read", "ERRNO", errnoRet="EPERM")]}, r"syscalls\[0\].errnoRet"),
        ({"syscalls": [rule("read", args=[test(6, "EQ", 1)])]}, r"syscalls\[0\].args\[0\].index"),
        ({"syscalls": [rule("read", args=[test(0, "IS", 1)])]}, r"syscalls\[0\].args\[0\].op"),
        ({"syscalls": [rule("read", args=[test(0, "EQ", -1)])]}, r"syscalls\[0\].args\[0\].value"),
        ({"syscalls": [rule("read", args=[test(0, "EQ", 2**64)])]}, r"args\[0\].value"),
    ],
)
def test_mistake_is_reported_with_its_place(change: dict[str, Any], place: str) -> None:
    with pytest.raises(BadInput, match=place):
        compile_profile({"defaultAction": "SCMP_ACT_ERRNO", **change})


def test_contradicting_rules_are_reported() -> None:
    with pytest.raises(BadInput, match=r"syscalls\[1\].*read"):
        build(
            rule("read", "KILL", args=[test(0, "EQ", 1)]),
            rule("read", "TRAP", args=[test(0, "EQ", 1)]),
        )


@pytest.mark.parametrize("where", ["default", "rule"])
def test_notify_is_not_supported_yet(where: str) -> None:
    with pytest.raises(Unsupported, match="comes with pyrun-oci"):
        if where == "default":
            build(default="NOTIFY")
        else:
            build(rule("read", "NOTIFY"))


def test_arguments_of_a_call_libseccomp_does_not_know_are_not_supported() -> None:
    import pyseccomp

    name = next((name for name in NEWER if pyseccomp.resolve_syscall(0, name) == -1), "")
    if not name:
        pytest.skip("kernel lacks calls that this libseccomp does not know")
    with pytest.raises(Unsupported, match=rf"syscalls\[0\].*{name}"):
        build(rule(name, args=[test(0, "EQ", 1)]))


def test_flags_have_to_be_known_ones() -> None:
    with pytest.raises(BadInput, match=r"flags\[0\]"):
        filter_flags({"flags": ["SECCOMP_FILTER_FLAG_FAST"]})


def test_profile_larger_than_the_kernel_takes_is_reported() -> None:
    with pytest.raises(BadInput, match="the kernel takes 4096"):
        build(*(rule("read", args=[test(0, "EQ", value)]) for value in range(5000)))


def test_every_error_is_ours() -> None:
    for junk in (None, [], 5, {"defaultAction": []}, {"defaultAction": {}}):
        with pytest.raises(PyrunError):
            compile_profile(junk)  # type: ignore[arg-type]
