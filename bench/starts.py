"""Containers: create, start, run `true`, end, remove. And a command in a running container."""

from __future__ import annotations

from functools import partial

from engines import Engines, security
from measure import Result, alternate, timed


def containers(engines: Engines, rounds: int) -> list[Result]:
    found = []
    for seccomp in ("default", "unconfined"):
        options = ("--network", "none", *security(seccomp))
        cases = {
            "pyrun run --rm": partial(engines.pyrun_run, *options),
            "podman run --rm": partial(engines.podman_run, *options),
            "runc run (a bundle: lower level)": partial(engines.lower_run, "runc", seccomp),
            "crun run (a bundle: lower level)": partial(engines.lower_run, "crun", seccomp),
        }
        title = f"container started and ended, no network, seccomp {seccomp}"
        found.append(alternate(title, cases, rounds))
    cases = {
        "pyrun run --rm": partial(engines.pyrun_run, "--network", "bridge"),
        "podman run --rm": partial(engines.podman_run, "--network", "bridge"),
    }
    title = "container started and ended, on the bridge, seccomp default"
    return [*found, alternate(title, cases, rounds)]


def commands(engines: Engines, rounds: int) -> list[Result]:
    found = []
    for seccomp in ("default", "unconfined"):
        name = f"sleep-{seccomp}"
        engines.start_sleepers(seccomp)
        cases = {
            "pyrun exec": partial(timed, *engines.pyrun, "exec", name, "true"),
            "podman exec": partial(timed, *engines.podman, "exec", name, "true"),
            "runc exec": partial(timed, "runc", "exec", name, "true"),
            "crun exec": partial(timed, "crun", "exec", name, "true"),
        }
        title = f"command in a running container, seccomp {seccomp}"
        found.append(alternate(title, cases, rounds, {"podman exec": 0.4}))
        engines.remove_sleepers(seccomp)
    return found
