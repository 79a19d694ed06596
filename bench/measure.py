"""Alternating measurements, medians and ratios.

The competitors take turns, one measurement each per round, so that whatever else the machine does
hits all of them alike; the order changes from round to round. What counts is the median and the
ratio of medians, not a figure alone.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from statistics import median

Case = Callable[[], float]
"""Does the work once and returns the seconds (or kilobytes) it took; preparing does not count."""


class Failed(Exception):
    """A command that was measured failed."""


class Result:
    """What one comparison found. `targets`: peer → the highest ratio pyrun aims at."""

    def __init__(self, title: str, mine: str, targets: dict[str, float], unit: str) -> None:
        self.title = title
        self.mine = mine
        self.targets = targets
        self.unit = unit
        self.samples: dict[str, list[float]] = {}
        self.failures: dict[str, str] = {}
        self.notes: dict[str, str] = {}

    def middle(self, name: str) -> float:
        return median(self.samples[name])

    def lines(self) -> list[str]:
        found = [f"{self.title}"]
        for name, values in self.samples.items():
            line = f"  {name:34}{self.show(median(values)):>11}"
            if len(values) > 1:
                line += f"   min {self.show(min(values)):>11}"
            if name != self.mine and self.mine in self.samples:
                line += f"   pyrun/it {self.middle(self.mine) / self.middle(name):5.2f}"
                line += self.verdict(name)
            found.append(line + (f"   {self.notes[name]}" if name in self.notes else ""))
        found += [f"  {name:34}not measured: {why}" for name, why in self.failures.items()]
        return found

    def verdict(self, peer: str) -> str:
        if peer not in self.targets:
            return ""
        met = self.middle(self.mine) <= self.targets[peer] * self.middle(peer)
        return f"  (target {self.targets[peer]:.2f}: {'met' if met else 'missed'})"

    def show(self, value: float) -> str:
        return f"{value * 1000:.1f} ms" if self.unit == "s" else f"{value:.0f} {self.unit}"

    def as_json(self) -> dict[str, object]:
        return {
            "title": self.title,
            "unit": self.unit,
            "samples": self.samples,
            "targets": self.targets,
            "failures": self.failures,
            "notes": self.notes,
        }


def timed(*command: str) -> float:
    """The seconds a command takes from its start until it has ended. Raises Failed."""
    begin = time.perf_counter()
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise Failed(f"exit {done.returncode}: {done.stderr.strip()[:400]}")
    return seconds


def progress(text: str) -> None:
    """A line that the next one overwrites; nothing where nobody watches."""
    if sys.stdout.isatty():
        print(f"\r{text}\033[K", end="", flush=True)


def alternate(
    title: str,
    cases: Mapping[str, Case],
    rounds: int,
    targets: dict[str, float] | None = None,
    *,
    warm: bool = True,
    unit: str = "s",
) -> Result:
    """Measure every case `rounds` times in turn. The first case is pyrun's; one that fails is
    left out from then on."""
    result = Result(title, next(iter(cases)), targets or {}, unit)
    alive = dict(cases)
    for number in range(-1 if warm else 0, rounds):
        names = list(alive)
        shift = number % len(names) if names else 0
        for name in names[shift:] + names[:shift]:
            try:
                value = alive[name]()
            except Failed as error:
                result.failures[name] = str(error)
                result.samples.pop(name, None)
                del alive[name]
                continue
            if number >= 0:
                result.samples.setdefault(name, []).append(value)
        progress(f"  {title}: round {max(number + 1, 0)} of {rounds}")
    progress("")
    result.samples = {name: result.samples[name] for name in cases if name in result.samples}
    print("\n".join(result.lines()), flush=True)
    return result
