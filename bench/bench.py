"""Measure pyrun side by side with its peers; run by script/bench. Standard library only.

    script/bench                       everything, about six minutes
    script/bench --quick               a look, about two minutes
    script/bench --only pods,exec      some of it

The figures go to bench/results/DATE.txt, every single sample to DATE.json beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import lab
import memory
import podtimes
import starts
import unpack
from engines import Engines
from measure import Result

CHECKOUT = Path(__file__).resolve().parent.parent
SUITES = ("run", "exec", "pods", "unpack", "memory", "many")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="script/bench",
        description="Measure pyrun side by side with runc, crun, podman, umoci and containerd.",
        epilog="The figures are written to bench/results/.",
    )
    parser.add_argument("--quick", action="store_true", help="few rounds: a look, not a figure")
    parser.add_argument("--only", default=",".join(SUITES), help=f"some of: {','.join(SUITES)}")
    parser.add_argument(
        "--pyrun", metavar="PATH", default="/usr/local/bin/pyrun", help="another pyrun to measure"
    )
    parser.add_argument("--inside", metavar="WORK", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.suites = arguments.only.split(",")
    if unknown := set(arguments.suites) - set(SUITES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(SUITES)}")
    return arguments


def main() -> int:
    arguments = parse()
    if arguments.inside:
        measure(arguments, Path(arguments.inside))
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # either way, clean up
    begin = time.monotonic()
    stem = CHECKOUT / "bench" / "results" / time.strftime("%Y-%m-%d-%H%M%S")
    if "unpack" in arguments.suites:
        unpack.debian_and_nginx(CHECKOUT)
    work = Path(tempfile.mkdtemp(prefix="pyrun-bench.", dir="/var/tmp"))
    again = [*sys.argv[1:], "--inside", str(work)]
    os.environ["PYRUN_BENCH_RESULT"] = str(stem)
    try:
        code = lab.enter(Path(__file__).resolve(), again, work)
    except KeyboardInterrupt:
        code = 130
    took = f"{time.monotonic() - begin:.0f} s"
    if code:
        print(f"bench: FAILED after {took} (exit {code}); everything it made has been removed")
    else:
        print(f"bench: done in {took}, figures in {stem.relative_to(CHECKOUT)}.txt")
    return code


def measure(arguments: argparse.Namespace, work: Path) -> None:
    quick = arguments.quick
    print("bench: preparing the engines", flush=True)
    lab.furnish(work)
    heading = machine(arguments.pyrun)
    engines = Engines(work, CHECKOUT, arguments.pyrun)
    suites: dict[str, Callable[[], list[Result]]] = {
        "run": lambda: starts.containers(engines, 4 if quick else 25),
        "exec": lambda: starts.commands(engines, 4 if quick else 25),
        "pods": lambda: podtimes.up_and_down(engines, 3 if quick else 15),
        "unpack": lambda: unpack.unpacking(
            engines, unpack.debian_and_nginx(CHECKOUT), 1 if quick else 5
        ),
        "memory": lambda: memory.idle(engines, [1] if quick else [1, 10]),
        "many": lambda: podtimes.many(engines, *((20, 5) if quick else (200, 20))),
    }
    found: list[Result] = []
    for name in SUITES:
        if name in arguments.suites:
            print(f"bench: {name}", flush=True)
            found += suites[name]()
    heading.append(f"load average before and after: {heading.pop()}; {load()}")
    write(Path(os.environ["PYRUN_BENCH_RESULT"]), heading, found)


def machine(pyrun: str) -> list[str]:
    """Where this was measured; the last line is the load."""
    versions = [lab.run(name, "--version").splitlines()[0] for name in ("podman", "crun", "runc")]
    python = lab.run(pyrun, "--version").strip()
    return [
        time.strftime("%Y-%m-%d %H:%M"),
        f"{os.cpu_count()} cores, kernel {platform.release()}, {python}, {', '.join(versions)}",
        load(),
    ]


def load() -> str:
    return " ".join(Path("/proc/loadavg").read_text().split()[:3])


def write(stem: Path, heading: list[str], found: list[Result]) -> None:
    stem.parent.mkdir(exist_ok=True)
    text = "\n".join(heading) + "\n\n" + "\n\n".join("\n".join(r.lines()) for r in found) + "\n"
    stem.with_suffix(".txt").write_text(text)
    samples = {"machine": heading, "results": [result.as_json() for result in found]}
    stem.with_suffix(".json").write_text(json.dumps(samples, indent=1))


if __name__ == "__main__":
    sys.exit(main())
