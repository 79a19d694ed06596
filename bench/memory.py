"""What an idle pod of three costs in memory.

Memory is the proportional set size (PSS: a page shared by n processes counts 1/n for each) of
every process that the engine keeps beside the payload: pyrun's supervisor, podman's conmon per
container and its pod's infra container. Pages that are shared with programs outside the bench
(another Python on the host) count for less than on an empty machine; anonymous memory, which is
printed too, has no such luck.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from engines import SLEEP, Engines
from measure import Result, progress
from podtimes import podman_flags, podman_remove, pyrun_flags, pyrun_remove


class Memory(NamedTuple):
    """Of all processes together; sizes in kB."""

    processes: int
    pss: int
    anonymous: int


def resident() -> Memory:
    """What all processes of the lab hold, but for the payload, pid 1 and the bench itself."""
    total = Memory(0, 0, 0)
    for name in os.listdir("/proc"):
        process = Path("/proc", name)
        if not name.isdigit() or int(name) in (1, os.getpid()):
            continue
        try:
            if (process / "comm").read_text().strip() == SLEEP[0]:
                continue
            lines = (process / "smaps_rollup").read_text().splitlines()[1:]
        except OSError:  # it has ended
            continue
        sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        total = Memory(
            total.processes + 1, total.pss + sizes["Pss"], total.anonymous + sizes["Pss_Anon"]
        )
    return total


def idle(engines: Engines, counts: list[int]) -> list[Result]:
    """PSS per idle pod, when there are so many pods."""
    found = []
    for count in counts:
        title = f"memory per idle pod of three, pods: {count} (target: 1024 kB at ten)"
        result = Result(title, "pyrun", {}, "kB")
        for engine, create, remove in (
            ("pyrun", pyrun_flags, pyrun_remove),
            ("podman", podman_flags, podman_remove),
        ):
            before = resident()
            names = [engines.name() for _ in range(count)]
            for number, name in enumerate(names, 1):
                create(engines, name)
                progress(f"  {engine}: pod {number} of {count}")
            after = resident()
            result.samples[engine] = [(after.pss - before.pss) / count]
            processes = (after.processes - before.processes) / count
            anonymous = (after.anonymous - before.anonymous) / count
            result.notes[engine] = f"{processes:.0f} processes, {anonymous:.0f} kB anonymous"
            for name in names:
                remove(engines, name)
        progress("")
        print("\n".join(result.lines()), flush=True)
        found.append(result)
    return found
