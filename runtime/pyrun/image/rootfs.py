"""Importing: the plain tar of a root file system becomes an image of one layer.

What a Dockerfile would say about it is given as `--change` lines. The build of whole Dockerfiles is
elsewhere; the handful of instructions that only describe an image are read here.
"""

from __future__ import annotations

import os
import shlex
import time

from pyrun.errors import BadInput
from pyrun.image import manifest, reference
from pyrun.image.archive import STDIN, Place, open_file
from pyrun.image.blame import Blame
from pyrun.image.candidate import Candidate, Layer
from pyrun.image.stage import put
from pyrun.image.stream import CHUNK, write_all
from pyrun.image.work import Work
from pyrun.store import fastjson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from pyrun.image.store import Image, ImageStore, Progress

INSTRUCTIONS = "CMD ENTRYPOINT ENV EXPOSE LABEL STOPSIGNAL USER VOLUME WORKDIR"


def import_rootfs(
    store: ImageStore,
    source: str,
    *,
    name: str,
    changes: Sequence[str],
    message: str,
    progress: Progress | None,
) -> Image:
    """See ImageStore.import_."""
    wanted = [reference.parse(name).key] if name else []
    if any("@" in one for one in wanted):
        raise BadInput(f"{name!r} has a digest: a digest names content and cannot be given")
    run = apply_changes(changes)
    said = "standard input" if source == STDIN else source
    with Blame(f"cannot import {said}"), Work(store) as work:
        fd = _regular_file(source, work)
        try:
            size = os.fstat(fd).st_size
            if not size:
                raise BadInput("it is empty")
            layer = Layer(Place(fd, 0, size), "")
            candidate = _Imported(layer, wanted, run, message or f"imported from {said}")
            return put(store, work, [candidate], progress)[0]
        finally:
            os.close(fd)


class _Imported(Candidate):
    """Its config names the layer's digest, which is known only when the layer was read."""

    __slots__ = ("created", "message", "run")

    def __init__(self, layer: Layer, names: list[str], run: dict[str, Any], message: str) -> None:
        super().__init__({}, b"", [layer], names)
        self.run = run
        self.message = message
        self.created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(_now()))

    def complete(self) -> None:
        self.config = {
            "architecture": manifest.architecture()[0],
            "os": "linux",
            "created": self.created,
            "config": self.run,
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in self.layers]},
            "history": [{"created": self.created, "comment": self.message}],
        }
        self.config_bytes = fastjson.dumps(self.config).encode()


def _now() -> float:
    """reproducible-builds.org: SOURCE_DATE_EPOCH takes the place of the clock."""
    stated = os.environ.get("SOURCE_DATE_EPOCH", "")
    return int(stated) if stated.isdigit() else time.time()


def _regular_file(source: str, work: Work) -> int:
    """A descriptor that can be read twice and at any offset."""
    import stat

    fd = 0 if source == STDIN else open_file(source)
    if source != STDIN and stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    spool = os.open(work.path, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        while data := os.read(fd, CHUNK):
            write_all(spool, data)
    except OSError:
        os.close(spool)
        raise
    return spool


def apply_changes(changes: Sequence[str]) -> dict[str, Any]:
    """Dockerfile lines as the `config` part of an image's config. Raises BadInput."""
    config: dict[str, Any] = {}
    for line in changes:
        instruction, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        word = instruction.upper()
        if word not in INSTRUCTIONS.split() or not rest:
            raise BadInput(
                f"--change {line!r} is not understood",
                hint=f"one of {INSTRUCTIONS}, with what follows it in a Dockerfile",
            )
        if word in ("CMD", "ENTRYPOINT"):
            config["Cmd" if word == "CMD" else "Entrypoint"] = _command(line, rest)
        elif word == "ENV":
            new = _pairs(line, rest)
            kept = [one for one in config.get("Env", []) if one.partition("=")[0] not in new]
            config["Env"] = kept + [f"{key}={value}" for key, value in new.items()]
        elif word == "LABEL":
            config.setdefault("Labels", {}).update(_pairs(line, rest))
        elif word == "EXPOSE":
            ports: dict[str, Any] = {
                port if "/" in port else f"{port}/tcp": {} for port in rest.split()
            }
            config.setdefault("ExposedPorts", {}).update(ports)
        elif word == "VOLUME":
            paths = _command(line, rest) if rest.startswith("[") else rest.split()
            config.setdefault("Volumes", {}).update({path: {} for path in paths})
        else:
            key = {"USER": "User", "WORKDIR": "WorkingDir", "STOPSIGNAL": "StopSignal"}[word]
            config[key] = rest
    return config


def _command(line: str, rest: str) -> list[str]:
    """The exec form is a JSON list; everything else is a line for the shell."""
    if not rest.startswith("["):
        return ["/bin/sh", "-c", rest]
    try:
        value = fastjson.loads(rest)
    except ValueError:
        value = None
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise BadInput(f"--change {line!r}: the list is no JSON list of strings")
    return value


def _pairs(line: str, rest: str) -> dict[str, str]:
    """`KEY=value KEY2="two words"`, or the old form `KEY the rest of the line`."""
    if "=" not in rest.split(None, 1)[0]:
        key, _, value = rest.partition(" ")
        return {key: value.strip()}
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise BadInput(f"--change {line!r}: {error}") from None
    pairs = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise BadInput(f"--change {line!r}: {word!r} is no KEY=value")
        pairs[key] = value
    return pairs
