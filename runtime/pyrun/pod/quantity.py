"""Kubernetes quantities: `500m`, `0.5`, `128Mi`, `1e3`, `100M`.

A number and one suffix. `Ki` to `Ei` are powers of 1024, `k` to `E` powers of 1000, `n`, `u` and
`m` are fractions, `e3` and `E3` are a decimal exponent (so `1E` is 10^18 and `1E3` is 1000).
Kubernetes rounds up, never down: a limit is at least what was asked for. So does this module, in
integers only, because a float would lose bytes of large sizes.
"""

from __future__ import annotations

BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}

LARGEST = 2**63 - 1
"""Kubernetes keeps quantities in 64 bits, and so does the kernel."""

# Longer numbers mean nothing, and 1e999999999 must not be computed.
MAX_LENGTH = 64
MAX_EXPONENT = 40


def parse_quantity(text: str, unit: int = 1) -> int:
    """`text` in whole parts of which `unit` make one: ("1.5", 1000) → 1500. Rounds up.

    Raises ValueError, saying what is wrong as the end of a sentence.
    """
    sign, digits, suffix = _split(text)
    whole, _, fraction = digits.partition(".")
    number = int(whole + fraction) * unit
    power = -len(fraction)
    if suffix in BINARY:
        number <<= 10 * BINARY[suffix]
    elif suffix in DECIMAL:
        power += DECIMAL[suffix]
    else:
        power += _exponent(text, suffix)
    if sign == "-" and number:
        raise ValueError("must not be negative")
    scale: int = 10 ** abs(power)
    number = number * scale if power >= 0 else -(-number // scale)
    if number > LARGEST:
        raise ValueError("is larger than 64 bits can hold")
    return number


def _split(text: str) -> tuple[str, str, str]:
    """Sign, digits with at most one dot, suffix."""
    sign = text[:1] if text[:1] in ("+", "-") else ""
    rest = text[len(sign) :]
    suffix = rest.lstrip("0123456789.")
    digits = rest[: len(rest) - len(suffix)]
    if len(text) > MAX_LENGTH or digits.count(".") > 1 or not digits.strip("."):
        raise ValueError("is not a quantity such as 500m, 0.5, 128Mi or 1e3")
    return sign, digits, suffix


def _exponent(text: str, suffix: str) -> int:
    """The power of ten in `e3`, `E-3`."""
    digits = suffix[2:] if suffix[1:2] in ("+", "-") else suffix[1:]
    if suffix[0] not in "eE" or not digits.isdecimal() or not digits.isascii():
        raise ValueError(
            f"has the unknown suffix {suffix!r}: there are {' '.join(BINARY)} (powers of 1024), "
            f"{' '.join(filter(None, DECIMAL))} (powers of 1000) and exponents such as e3"
        )
    if len(digits) > 4 or int(digits) > MAX_EXPONENT:
        raise ValueError(f"has an exponent beyond {MAX_EXPONENT}")
    return -int(digits) if suffix[1] == "-" else int(digits)
