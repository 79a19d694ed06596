"""Pods of three: up and down, from flags and from a Kubernetes file; and many pods."""

from __future__ import annotations

from collections.abc import Callable

from engines import IMAGE, SLEEP, Engines
from measure import Result, alternate, progress, timed

MEMBERS = 3
FEW = 10
"""How many of the first and last pods are compared."""

Engine = Callable[[Engines, str], float]


def manifest(name: str) -> str:
    """A Kubernetes Pod. Always, the default, would make podman restart what it removes."""
    command = ", ".join(f'"{word}"' for word in SLEEP)
    members = "".join(
        f"    - name: c{number}\n      image: {IMAGE}\n      command: [{command}]\n"
        for number in range(MEMBERS)
    )
    head = f"apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n"
    return f"{head}spec:\n  restartPolicy: Never\n  containers:\n{members}"


def pyrun_flags(engines: Engines, name: str) -> float:
    member = ("--container", f"{IMAGE} {' '.join(SLEEP)}")
    return timed(*engines.pyrun, "pod", "create", "--name", name, *(member * MEMBERS))


def podman_flags(engines: Engines, name: str) -> float:
    seconds = timed(*engines.podman, "pod", "create", "--name", name)
    for _ in range(MEMBERS):
        seconds += timed(*engines.podman, "run", "-d", "--pod", name, IMAGE, *SLEEP)
    return seconds


def pyrun_file(engines: Engines, name: str) -> float:
    path = engines.work / "pod.yaml"
    path.write_text(manifest(name))
    return timed(*engines.pyrun, "pod", "create", "-f", str(path))


def podman_file(engines: Engines, name: str) -> float:
    path = engines.work / "pod.yaml"
    path.write_text(manifest(name))
    return timed(*engines.podman, "play", "kube", str(path))


def pyrun_remove(engines: Engines, name: str) -> float:
    return timed(*engines.pyrun, "pod", "rm", "--force", name)


def podman_remove(engines: Engines, name: str) -> float:
    return timed(*engines.podman, "pod", "rm", "--force", "--time", "0", name)


def up_and_down(engines: Engines, rounds: int) -> list[Result]:
    found = []
    for source, pyrun, podman, peer, target in (
        ("flags", pyrun_flags, podman_flags, "podman pod create + 3 run", 0.15),
        ("a YAML file", pyrun_file, podman_file, "podman play kube", 0.25),
    ):
        down = Result(f"pod of three from {source}, removed", "pyrun pod rm -f", {}, "s")
        down.targets["podman pod rm -f -t 0"] = 0.1
        up = alternate(
            f"pod of three from {source}, up",
            {
                "pyrun pod create": up_then_down(engines, pyrun, pyrun_remove, down, down.mine),
                peer: up_then_down(engines, podman, podman_remove, down, "podman pod rm -f -t 0"),
            },
            rounds,
            {peer: target},
        )
        print("\n".join(down.lines()), flush=True)
        found += [up, down]
    return found


def up_then_down(
    engines: Engines, create: Engine, remove: Engine, down: Result, who: str
) -> Callable[[], float]:
    """A case that takes a pod up, and puts the time of taking it down into `down`."""

    def case() -> float:
        name = engines.name()
        seconds = create(engines, name)
        down.samples.setdefault(who, []).append(remove(engines, name))
        return seconds

    return case


def many(engines: Engines, count: int, peers: int) -> list[Result]:
    """`count` pods of one, each with an address: is the last as fast as the first?"""
    result = Result(f"one more pod of one, {count} times", "pyrun, the last ten", {}, "s")
    result.targets = {"pyrun, the first ten": 1.0, f"podman, all {peers}": 0.2}
    names = [engines.name() for _ in range(count)]
    times = []
    for number, name in enumerate(names, 1):
        member = ("--container", f"{IMAGE} {' '.join(SLEEP)}")
        times.append(timed(*engines.pyrun, "pod", "create", "--name", name, *member))
        progress(f"  pod {number} of {count}")
    removed = timed(*engines.pyrun, "pod", "rm", "--force", *names)
    result.samples = {"pyrun, the last ten": times[-FEW:], "pyrun, the first ten": times[:FEW]}
    result.notes["pyrun, the last ten"] = f"all removed in {removed:.1f} s"

    names = [engines.name() for _ in range(peers)]
    times = []
    for number, name in enumerate(names, 1):
        seconds = timed(*engines.podman, "pod", "create", "--name", name)
        seconds += timed(*engines.podman, "run", "-d", "--pod", name, IMAGE, *SLEEP)
        times.append(seconds)
        progress(f"  pod {number} of {peers}")
    removed = timed(*engines.podman, "pod", "rm", "--force", "--time", "0", *names)
    result.samples[f"podman, all {peers}"] = times
    result.notes[f"podman, all {peers}"] = f"all removed in {removed:.1f} s"
    progress("")
    print("\n".join(result.lines()), flush=True)
    return [result]
