"""Device rules: their reduction, and the BPF program against a plain reading of the rules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrun.cgroup.devicerules import reduce
from pyrun.errors import BadInput
from pyrun.kernel import bpf

KINDS = {"b": 1, "c": 2}

RULES = st.lists(
    st.tuples(
        st.booleans(),
        st.sampled_from("bc"),
        st.integers(-1, 3),
        st.integers(-1, 3),
        st.sampled_from(["r", "w", "m", "rw", "rm", "wm", "rwm"]),
    ),
    max_size=6,
)


def run(program: bytes, kind: str, major: int, minor: int, access: str) -> int:
    """What the kernel's BPF machine would answer, for the instructions bpf.py uses."""
    wished = sum(bpf.ACCESS[letter] for letter in access)
    context = {0: wished << 16 | KINDS[kind], 4: major, 8: minor}
    registers = [0] * 11
    position = 0
    while True:
        code, both, *_ = program[position * 8 : position * 8 + 2]
        to, source = both & 15, both >> 4
        offset = int.from_bytes(program[position * 8 + 2 : position * 8 + 4], "little", signed=True)
        constant = int.from_bytes(program[position * 8 + 4 : position * 8 + 8], "little")
        position += 1
        if code == bpf.LDX_W:
            assert source == 1
            registers[to] = context[offset]
        elif code == bpf.MOV_K:
            registers[to] = constant
        elif code == bpf.MOV_X:
            registers[to] = registers[source]
        elif code == bpf.AND_K:
            registers[to] &= constant
        elif code == bpf.RSH_K:
            registers[to] >>= constant
        elif (
            code == bpf.JA
            or (code == bpf.JNE_K and registers[to] != constant)
            or (code == bpf.JSET_K and registers[to] & constant)
        ):
            position += offset
        elif code == bpf.EXIT:
            return registers[0]


def allowed(
    default: bool,
    rules: list[tuple[bool, str, int, int, str]],
    kind: str,
    major: int,
    minor: int,
    access: str,
) -> bool:
    """Each wished access by itself: the last rule that speaks of it decides."""
    for letter in access:
        verdict = default
        for allow, rule_kind, rule_major, rule_minor, rule_access in rules:
            same = rule_kind == kind and rule_major in (-1, major) and rule_minor in (-1, minor)
            if same and letter in rule_access:
                verdict = allow
        if not verdict:
            return False
    return True


@given(
    default=st.booleans(),
    rules=RULES,
    kind=st.sampled_from("bc"),
    major=st.integers(0, 4),
    minor=st.integers(0, 4),
    access=st.sampled_from(["r", "w", "m", "rw", "rwm"]),
)
def test_program_answers_as_the_rules_read(
    default: bool,
    rules: list[tuple[bool, str, int, int, str]],
    kind: str,
    major: int,
    minor: int,
    access: str,
) -> None:
    program = bpf.device_program(default, rules)
    expected = allowed(default, rules, kind, major, minor, access)
    assert run(program, kind, major, minor, access) == expected


def test_rules_before_a_rule_for_everything_do_not_matter() -> None:
    null = {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rw"}
    everything = {"allow": False, "access": "rwm"}
    assert reduce([null, everything]) == (False, [])
    assert reduce([everything, null]) == (False, [(True, "c", 1, 3, "rw")])
    assert reduce([{"allow": True, "type": "a"}, {**null, "allow": False}]) == (
        True,
        [(False, "c", 1, 3, "rw")],
    )


def test_nothing_said_means_denied() -> None:
    assert reduce([{"allow": True, "type": "b", "major": 8, "access": "r"}]) == (
        False,
        [(True, "b", 8, -1, "r")],
    )


def test_rule_for_all_types_covers_block_and_character_devices() -> None:
    assert reduce([{"allow": True, "type": "a", "major": 5, "access": "m"}])[1] == [
        (True, "b", 5, -1, "m"),
        (True, "c", 5, -1, "m"),
    ]


@pytest.mark.parametrize("rule", [{"type": "x"}, {"access": "q"}])
def test_senseless_rule_is_refused(rule: dict[str, str]) -> None:
    with pytest.raises(BadInput):
        reduce([rule])
