"""Reading archives: an OCI image layout or a docker-archive becomes candidates.

The layout's `index.json` names manifests by digest; docker's `manifest.json` names a config and
layers by path. Every small blob is verified here, where it is read; layers are only found.
"""

from __future__ import annotations

import os

from pyrun.errors import BadInput
from pyrun.image import manifest, reference
from pyrun.image.archive import STDIN, Input, Place, read_json
from pyrun.image.candidate import Candidate, Layer, digest_of
from pyrun.store import fastjson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyrun.image.manifest import Descriptor


def read(archive: Input, source: str) -> list[Candidate]:
    """The images of an OCI layout or a docker-archive. Raises BadInput, Unsupported."""
    index = archive.find("index.json")
    listing = archive.find("manifest.json")
    docker = _docker_list(listing) if listing else []
    # An archive of docker 25 and newer is both; the layout has the digests registries know.
    if index:
        found = _read_layout(archive, index, docker, source)
    elif listing:
        found = [_read_docker(archive, entry) for entry in docker]
    else:
        raise BadInput(
            "it has neither an index.json (OCI layout) nor a manifest.json (docker-archive)",
            hint="`pyrun image import` takes the plain tar of a root file system",
        )
    if not found:
        raise BadInput("it holds no image")
    return found


def _read_layout(
    archive: Input, index: Place, docker: list[dict[str, Any]], source: str
) -> list[Candidate]:
    document = manifest.parse(read_json(index, "index.json"), "index.json")
    entries = manifest.descriptors(document, "manifests", "index.json")
    found: dict[str, Candidate] = {}
    tags = {_config_digest(archive, entry): entry.get("RepoTags") or [] for entry in docker}
    for entry, data in manifest.manifests(entries, lambda d: fetch(archive, d, "the manifest")):
        candidate = _read_manifest(archive, data)
        known = found.setdefault(digest_of(data), candidate)
        names = _names(entry, source) or _docker_names(tags.get(candidate.id, []))
        known.names += [one for one in names if one not in known.names]
    return list(found.values())


def _read_manifest(archive: Input, data: bytes) -> Candidate:
    document = manifest.parse(data, "the manifest")
    config_descriptor = manifest.Descriptor(document.get("config"), "manifest.config")
    descriptors = manifest.descriptors(document, "layers", "manifest")
    manifest.check_layers(descriptors)
    config_bytes = fetch(archive, config_descriptor, "the config")
    config = manifest.parse(config_bytes, "the config")
    diff_ids = manifest.check_config(config, len(descriptors))
    layers = []
    for descriptor, diff_id in zip(descriptors, diff_ids, strict=True):
        place = find_blob(archive, descriptor, "layer")
        layers.append(Layer(place, diff_id, descriptor.digest, descriptor.media_type))
    candidate = Candidate(config, config_bytes, layers, [])
    candidate.manifest = data
    return candidate


def _names(entry: Descriptor, source: str) -> list[str]:
    """The name an index entry carries.

    containerd's annotation is a full reference. `org.opencontainers.image.ref.name` is that or,
    as the specification means it, a bare tag: then the layout's own name is the repository, the
    way skopeo and umoci address it (`oci:busybox:latest`).
    """
    text = manifest.annotated_name(entry)
    if not text:
        return []
    if entry.annotations.get(manifest.NAME_KEYS[0]) or "/" in text or ":" in text:
        return [reference.parse(text).key]
    base = os.path.basename(os.path.abspath(source)).partition(".")[0].lower()
    if source == STDIN or not reference.is_component(base) or not reference.is_tag(text):
        return []
    return [reference.parse(f"{base}:{text}").key]


def _docker_list(place: Place) -> list[dict[str, Any]]:
    data = read_json(place, "manifest.json")
    try:
        value = fastjson.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise BadInput(f"manifest.json is no valid JSON: {error}") from None
    entries: list[dict[str, Any]] = manifest.expect(value, list, "manifest.json")
    for entry in entries:
        manifest.expect(entry, dict, "manifest.json[…]")
        manifest.expect(entry.get("Config"), str, "manifest.json[…].Config")
        for field in ("Layers", "RepoTags"):
            for text in manifest.expect(entry.get(field) or [], list, f"manifest.json[…].{field}"):
                manifest.expect(text, str, f"manifest.json[…].{field}[…]")
    return entries


def _read_docker(archive: Input, entry: dict[str, Any]) -> Candidate:
    config_bytes = _required(archive, entry["Config"])
    stated = entry["Config"].rpartition("/")[2].removesuffix(".json")
    if reference.is_digest(f"sha256:{stated}") and digest_of(config_bytes) != f"sha256:{stated}":
        raise BadInput(f"the digest of {entry['Config']} is {digest_of(config_bytes)}")
    config = manifest.parse(config_bytes, "the config")
    paths = entry.get("Layers") or []
    diff_ids = manifest.check_config(config, len(paths))
    layers = []
    for path, diff_id in zip(paths, diff_ids, strict=True):
        place = archive.find(path)
        if place is None:
            raise BadInput(f"manifest.json names the layer {path!r}, which is not there")
        layers.append(Layer(place, diff_id))
    return Candidate(config, config_bytes, layers, _docker_names(entry.get("RepoTags") or []))


def _config_digest(archive: Input, entry: dict[str, Any]) -> str:
    place = archive.find(entry["Config"])
    return digest_of(read_json(place, entry["Config"])) if place else ""


def _docker_names(tags: list[str]) -> list[str]:
    return [reference.parse(tag).key for tag in tags]


def _required(archive: Input, name: str) -> bytes:
    place = archive.find(name)
    if place is None:
        raise BadInput(f"{name!r} is named in it and not there")
    return read_json(place, name)


def find_blob(archive: Input, descriptor: Descriptor, what: str) -> Place:
    place = archive.find(f"blobs/{descriptor.digest.replace(':', '/')}")
    if place is None:
        raise BadInput(f"{what} {descriptor.digest} is missing")
    if place.size != descriptor.size:
        raise BadInput(
            f"{what} {descriptor.digest} has {place.size} bytes; {descriptor.size} are stated"
        )
    return place


def fetch(archive: Input, descriptor: Descriptor, what: str) -> bytes:
    """A small blob, verified."""
    data = read_json(find_blob(archive, descriptor, what), f"{what} {descriptor.digest}")
    found = digest_of(data, descriptor.digest.partition(":")[0])
    if found != descriptor.digest:
        raise BadInput(f"{what} {descriptor.digest} has the digest {found}")
    return data
