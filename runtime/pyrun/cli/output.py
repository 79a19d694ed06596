"""How pyrun speaks: tables for people, JSON for programs, errors, the story of each step.

Data goes to stdout, stories and errors to stderr.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from pyrun.errors import PyrunError, StepFailed
from pyrun.explain import steps


def table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> None:
    """Left-aligned columns, as wide as their widest cell, three spaces apart."""
    lines = [list(header), *(list(map(str, row)) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        print("   ".join(cells).rstrip())


def port_texts(state: dict[str, Any]) -> list[str]:
    """The published ports in a sandbox's state: `*:8080->80/tcp`."""
    return [
        f"{host or '*'}:{port}->{inner}/{protocol}"
        for host, port, inner, protocol in state.get("ports", [])
    ]


def print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False))


def human_size(size: int) -> str:
    """`1234567` → `1.23MB`: decimal units, three digits, as docker prints sizes."""
    amount = float(size)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 1000 or unit == "TB":
            return f"{amount:.3g}{unit}" if unit != "B" else f"{size}B"
        amount /= 1000
    raise AssertionError("unreachable")


def ago(moment: float | str) -> str:
    """Seconds since the epoch, or an RFC 3339 time, as `3 minutes ago`."""
    if isinstance(moment, str):
        if not moment:
            return "unknown"
        from datetime import datetime

        # Python reads six digits of a second; Go writes nine.
        head, _, rest = moment.partition(".")
        zone = rest.lstrip("0123456789") if rest else ""
        try:
            seconds = time.time() - datetime.fromisoformat(head + zone).timestamp()
        except ValueError:
            return moment
    else:
        seconds = time.time() - moment
    seconds = max(0, int(seconds))
    for name, length in (
        ("year", 31536000), ("month", 2592000), ("week", 604800),
        ("day", 86400), ("hour", 3600), ("minute", 60),
    ):  # fmt: skip
        if seconds >= 2 * length or (seconds >= length and name == "minute"):
            count = seconds // length
            return f"{count} {name}{'s' if count > 1 else ''} ago"
    return f"{seconds} second{'s' if seconds != 1 else ''} ago"


def tell(notes: Sequence[str]) -> None:
    """Say what the user should know although nothing went wrong."""
    for note in notes:
        print(f"pyrun: {note}", file=sys.stderr)


def print_error(error: PyrunError) -> None:
    print(f"pyrun: {error.message}", file=sys.stderr)
    if isinstance(error, StepFailed):
        print(f"  step: {error.step}", file=sys.stderr)
        for left in error.left:
            print(f"  left behind: {left}", file=sys.stderr)
    for line in error.hint.splitlines():
        print(f"  hint: {line}", file=sys.stderr)


class Explainer(steps.Narrator):
    """Prints every step as it happens: what, why, how long, the shell twin, the man page."""

    def __init__(self) -> None:
        self.count = 0
        self.plans: dict[str, list[steps.Step]] = {}

    def done(self, step: steps.Step, nanoseconds: int) -> None:
        self.count += 1
        self.say(f"{self.count:3}. {step.why or step.op}", step, f"{nanoseconds / 1e6:.2f} ms")

    wants_inside = True

    def inside(self, name: str, plan: list[steps.Step]) -> None:
        self.plans[name] = plan

    def inside_done(self, name: str, index: int, nanoseconds: int) -> None:
        self.count += 1
        step = self.plans[name][index]
        took = f"{nanoseconds / 1e6:.2f} ms" if nanoseconds else "until it executes"
        self.say(f"{self.count:3}. inside {name}: {step.why or step.op}", step, took)

    def undone(self, step: steps.Step) -> None:
        assert step.undo is not None
        op, args = step.undo
        print(f"undo {op}({', '.join(map(steps.short, args))})", file=sys.stderr)

    def say(self, title: str, step: steps.Step, took: str) -> None:
        lines = [title, f"       {step!r}  [{took}]"]
        if step.shell:
            lines += [f"       $ {line}" for line in step.shell.splitlines()]
        if step.man:
            lines.append(f"       see {step.man}")
        print("\n".join(lines), file=sys.stderr)
