"""Device rules of the OCI specification, reduced to what the kernel's two mechanisms need.

`linux.resources.devices` is an ordered list; a later rule wins over an earlier one. v1 keeps a
default ("a") and a list of exceptions that is edited line by line; v2 runs a BPF program. Both
start from the same reduction: a default, and the rules after the last one that matched everything.
Nothing matched means denied: the list says what is allowed.
"""

from __future__ import annotations

from pyrun.errors import BadInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Rule = tuple[bool, str, int, int, str]

ANY = -1
"""A major or minor number that stands for all of them; written `*`."""


def reduce(devices: list[dict[str, Any]]) -> tuple[bool, list[Rule]]:
    """(default, rules): whether unmatched devices are allowed, and (allow, type, major, minor,
    access) in order with type `b` or `c`. Pure. Raises BadInput.
    """
    default = False
    rules: list[Rule] = []
    for device in devices:
        allow = bool(device.get("allow", False))
        kind = device.get("type") or "a"
        major, minor = number(device, "major"), number(device, "minor")
        access = "".join(letter for letter in "rwm" if letter in (device.get("access") or "rwm"))
        if kind not in ("a", "b", "c", "u", "p") or not access:
            raise BadInput(
                f"cannot understand the device rule {device}",
                hint="type is a, b or c; access is made of the letters r, w and m",
            )
        if kind == "a" and major == minor == ANY and access == "rwm":
            default = allow
            rules = []
            continue
        if kind == "p":
            continue  # FIFOs are beyond the kernel's device control, allowed everywhere
        kinds = ("b", "c") if kind == "a" else ("c",) if kind == "u" else (kind,)
        rules += [(allow, each, major, minor, access) for each in kinds]
    return default, rules


def number(device: dict[str, Any], key: str) -> int:
    value = device.get(key)
    return ANY if value is None or value < 0 else int(value)


def line(rule: Rule) -> str:
    """A rule as devices.allow and devices.deny read it: `c 1:3 rwm`."""
    _, kind, major, minor, access = rule
    return f"{kind} {star(major)}:{star(minor)} {access}"


def star(value: int) -> str:
    return "*" if value == ANY else str(value)
