"""Quantities: exact, rounded up, and never anything but a number or a ValueError."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrun.pod.quantity import BINARY, DECIMAL, LARGEST, parse_quantity

SUFFIXES = {name: Fraction(1024) ** power for name, power in BINARY.items()} | {
    name: Fraction(10) ** power for name, power in DECIMAL.items()
}


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [
        ("0", 0),
        ("128974848", 128974848),
        ("129e6", 129_000_000),
        ("129M", 129_000_000),
        ("123Mi", 123 << 20),
        ("1Gi", 1 << 30),
        ("1.5Gi", 3 << 29),
        ("100k", 100_000),
        ("1e3", 1000),
        ("1E3", 1000),
        ("1E", 10**18),
        ("1e+3", 1000),
        ("1500e-3", 2),
        (".5Ki", 512),
        ("2.", 2),
        ("+3", 3),
        ("-0", 0),
        ("9223372036854775807", LARGEST),
    ],
)
def test_sizes(text: str, bytes_: int) -> None:
    assert parse_quantity(text) == bytes_


@pytest.mark.parametrize(
    ("text", "millicores"),
    [("500m", 500), ("0.5", 500), ("2", 2000), ("1e-1", 100), ("0.0001", 1), ("1n", 1), ("1u", 1)],
)
def test_cores_round_up_to_a_thousandth(text: str, millicores: int) -> None:
    assert parse_quantity(text, 1000) == millicores


@pytest.mark.parametrize(
    "text",
    ["", ".", "-", "Mi", "1 Mi", " 1", "1MB", "1KiB", "1mi", "1K", "1.2.3", "0x10", "1_000", "1e",
     "e3", "1ee3", "1e3.5", "1e99999", "1e-99999", "1" * 65, "10E", "-1", "-1Mi", "١", "1e³", "NaN",
     "9223372036854775808"],
)  # fmt: skip
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_quantity(text)


@given(st.text(max_size=80))
def test_any_text_is_a_number_or_a_value_error(text: str) -> None:
    try:
        value = parse_quantity(text, 1000)
    except ValueError:
        return
    assert 0 <= value <= LARGEST


@given(
    st.integers(0, 10**12),
    st.text("0123456789", max_size=9),
    st.sampled_from(sorted(SUFFIXES)),
    st.sampled_from([1, 1000]),
)
def test_the_value_is_the_exact_one_rounded_up(
    whole: int, fraction: str, suffix: str, unit: int
) -> None:
    text = f"{whole}.{fraction}{suffix}"
    exact = Fraction(f"{whole}.{fraction or 0}") * SUFFIXES[suffix] * unit
    expected = -(-exact.numerator // exact.denominator)
    if expected > LARGEST:
        with pytest.raises(ValueError):
            parse_quantity(text, unit)
    else:
        assert parse_quantity(text, unit) == expected


@given(st.integers(0, 999), st.integers(-12, 15), st.sampled_from("eE"))
def test_exponents_are_powers_of_ten(number: int, exponent: int, letter: str) -> None:
    exact = Fraction(number) * Fraction(10) ** exponent
    text = f"{number}{letter}{exponent}"
    assert parse_quantity(text) == -(-exact.numerator // exact.denominator)
