"""The JSON of an image: index, manifest and config, read with distrust.

An **index** lists manifests, one for each platform; a **manifest** names a config and the layers;
the **config** says how to run it and repeats the layers by the digest of their content. Docker's
schema 2 has the same fields under other media types. What follows is checked here: that every
field has the type the specification gives it. Whether a blob's bytes match its digest is checked
where they are read.
"""

from __future__ import annotations

import os

from pyrun.errors import BadInput, Unsupported
from pyrun.image import reference
from pyrun.store import fastjson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"

LARGEST = 8 << 20
"""Registries take manifests up to 4 MiB; more is an attack on memory."""
DEEPEST = 4
"""Indexes within indexes; in the wild there are two at most."""
MOST_LAYERS = 500
"""OVL_MAX_STACK of the kernel: an overlay has at most 500 lower directories."""


class Descriptor:
    """Points at a blob: what it is, its digest and its exact size."""

    __slots__ = ("annotations", "digest", "media_type", "platform", "size")

    def __init__(self, value: Any, where: str) -> None:
        fields = expect(value, dict, where)
        self.media_type: str = expect(fields.get("mediaType", ""), str, f"{where}.mediaType")
        self.digest: str = expect(fields.get("digest"), str, f"{where}.digest")
        self.size: int = expect(fields.get("size"), int, f"{where}.size")
        self.annotations: dict[str, Any] = expect(
            fields.get("annotations") or {}, dict, f"{where}.annotations"
        )
        self.platform: dict[str, Any] = expect(
            fields.get("platform") or {}, dict, f"{where}.platform"
        )
        if not reference.is_digest(self.digest):
            raise BadInput(f"{where}.digest {self.digest!r} is no sha256 or sha512 digest")
        if self.size < 0:
            raise BadInput(f"{where}.size is negative")


def parse(data: bytes, what: str) -> dict[str, Any]:
    """JSON text as an object. Raises BadInput."""
    try:
        value = fastjson.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{what} is no valid JSON: {error}") from None
    found: dict[str, Any] = expect(value, dict, what)
    return found


def expect(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        names = {dict: "an object", list: "a list", str: "a string", int: "a number"}
        raise BadInput(f"{where} is not {names[kind]}")
    return value


def descriptors(document: dict[str, Any], field: str, what: str) -> list[Descriptor]:
    values = expect(document.get(field), list, f"{what}.{field}")
    return [Descriptor(value, f"{what}.{field}[{n}]") for n, value in enumerate(values)]


def is_index(document: dict[str, Any]) -> bool:
    return "manifests" in document and "layers" not in document


def manifests(
    entries: list[Descriptor],
    fetch: Callable[[Descriptor], bytes],
    *,
    depth: int = 0,
) -> Iterator[tuple[Descriptor, bytes]]:
    """For every name among `entries` the manifest for this machine, out of nested indexes too.

    Entries of one name (or of none) are one image for several platforms. `fetch` returns a blob
    that has been verified. Raises Unsupported where a name has nothing for this platform.
    """
    if depth > DEEPEST:
        raise BadInput(f"an index inside an index, more than {DEEPEST} levels deep")
    groups: dict[str, list[Descriptor]] = {}
    for entry in entries:
        groups.setdefault(annotated_name(entry), []).append(entry)
    for group in groups.values():
        chosen = choose(group)
        data = fetch(chosen)
        document = parse(data, "the manifest")
        if not is_index(document):
            yield chosen, data
            continue
        nested = descriptors(document, "manifests", "the index")
        for entry in nested:  # inside, names are not looked at: they belong to the outer index
            entry.annotations = {
                key: value for key, value in entry.annotations.items() if key not in NAME_KEYS
            }
        for inner, inner_data in manifests(nested, fetch, depth=depth + 1):
            inner.annotations = {**inner.annotations, **chosen.annotations}
            yield inner, inner_data


NAME_KEYS = ("io.containerd.image.name", "org.opencontainers.image.ref.name")


def annotated_name(entry: Descriptor) -> str:
    for key in NAME_KEYS:
        if entry.annotations.get(key):
            return f"{entry.annotations[key]}"
    return ""


def choose(entries: list[Descriptor]) -> Descriptor:
    """The entry that suits this machine best. Raises Unsupported where none does."""
    ranked = [(rank(entry), -n) for n, entry in enumerate(entries)]
    best, negative = max(ranked, default=(-1, 0))
    if best < 0:
        have = ", ".join(sorted({platform_text(entry.platform) for entry in entries})) or "nothing"
        raise Unsupported(
            f"the image has nothing for linux/{architecture()[0]}; it has {have}",
            hint="get the image for this machine's platform",
        )
    return entries[-negative]


def rank(entry: Descriptor) -> int:
    """-1: cannot run here. Otherwise the higher the better."""
    if "vnd.docker.reference.type" in entry.annotations:
        return -1  # an attestation, made to look like a manifest
    platform = entry.platform
    if not platform:
        return 0
    name, variants = architecture()
    if platform.get("os") != "linux" or platform.get("architecture") != name:
        return -1
    variant = platform.get("variant") or ""
    if not variant:
        return 1
    # Older variants run on newer machines; the newest one that runs is the best.
    return 1 + len(variants) - variants.index(variant) if variant in variants else -1


def platform_text(platform: dict[str, Any]) -> str:
    parts = [platform.get("os"), platform.get("architecture"), platform.get("variant")]
    return "/".join(str(part) for part in parts if part) or "an unnamed platform"


def architecture() -> tuple[str, list[str]]:
    """This machine as Go and therefore images spell it, and its variants, best first."""
    machine = os.uname().machine
    if machine == "x86_64":
        return "amd64", x86_variants()
    return {
        "aarch64": ("arm64", ["v8"]),
        "armv8l": ("arm", ["v8", "v7", "v6", "v5"]),
        "armv7l": ("arm", ["v7", "v6", "v5"]),
        "armv6l": ("arm", ["v6", "v5"]),
        "i686": ("386", []),
        "ppc64le": ("ppc64le", []),
    }.get(machine, (machine, []))


def x86_variants() -> list[str]:
    """The x86-64 levels of this processor, from the flags that tell them apart."""
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        flags = next((set(line.split()) for line in file if line.startswith("flags")), set())
    levels = ["v1"]
    for level, needed in (
        ("v2", {"sse4_2", "popcnt", "ssse3", "cx16"}),
        ("v3", {"avx2", "bmi1", "bmi2", "fma", "movbe"}),
        ("v4", {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
    ):
        if not needed <= flags:
            break
        levels.insert(0, level)
    return levels


def check_layers(layers: list[Descriptor]) -> None:
    if len(layers) > MOST_LAYERS:
        raise Unsupported(f"{len(layers)} layers; overlayfs takes at most {MOST_LAYERS}")
    for layer in layers:
        if layer.media_type.endswith("+encrypted"):
            raise Unsupported(f"layer {layer.digest} is encrypted")
        if layer.media_type and "tar" not in layer.media_type:
            raise BadInput(
                f"layer {layer.digest} is {layer.media_type!r}, no tar",
                hint="this is an OCI artifact, but not the image of a container",
            )


def check_config(config: dict[str, Any], layers: int) -> list[str]:
    """The diff_ids of a config whose fields have the types they must have. Raises BadInput."""
    rootfs = expect(config.get("rootfs"), dict, "config.rootfs")
    diff_ids: list[str] = expect(rootfs.get("diff_ids") or [], list, "config.rootfs.diff_ids")
    for diff_id in diff_ids:
        if not isinstance(diff_id, str) or not reference.is_digest(diff_id):
            raise BadInput(f"config.rootfs.diff_ids: {diff_id!r} is no digest")
    if len(diff_ids) != layers:
        raise BadInput(f"the manifest has {layers} layers, the config {len(diff_ids)} diff_ids")
    system = config.get("os") or "linux"
    if system != "linux":
        raise Unsupported(f"the image is for {system!r}, and this is Linux")
    run = config.get("config") or {}
    expect(run, dict, "config.config")
    for key in ("Env", "Cmd", "Entrypoint"):
        for text in expect(run.get(key) or [], list, f"config.config.{key}"):
            expect(text, str, f"config.config.{key}[…]")
    for key in ("User", "WorkingDir", "StopSignal"):
        expect(run.get(key) or "", str, f"config.config.{key}")
    for key in ("Labels", "Volumes", "ExposedPorts"):
        expect(run.get(key) or {}, dict, f"config.config.{key}")
    history = expect(config.get("history") or [], list, "config.history")
    for step in history:
        expect(step, dict, "config.history[…]")
    return diff_ids
