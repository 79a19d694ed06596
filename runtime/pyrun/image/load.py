"""Loading: what an archive holds is verified, unpacked, and then made visible in one stroke.

    read       index → manifest → config of every image in it
    unpack     the layers this store does not have, in parallel, in a work directory
    settle     each image from the bottom up: which snapshot serves each of its layers
    publish    under the store's lock: blobs, snapshots, records, names, in this order

Until `publish` nothing of the archive is outside the work directory, so a refused image leaves
nothing behind, and neither does a kill.
"""

from __future__ import annotations

import hashlib
import os

from pyrun.errors import BadInput, PyrunError
from pyrun.image import manifest, reference, settle, workers
from pyrun.image.archive import STDIN, Input, Place, open_input, read_json
from pyrun.image.blame import Blame
from pyrun.image.heal import content_size
from pyrun.image.remove import bury, remove_dead
from pyrun.image.store import EMPTY, OPAQUE, Image
from pyrun.image.work import Work
from pyrun.store import fastjson, records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyrun.image.manifest import Descriptor
    from pyrun.image.store import ImageStore, Progress

RECORD_VERSION = 1
MOST_ATTEMPTS = 5


class Layer:
    """One layer of an archive. `digest` is empty where the archive states none."""

    __slots__ = ("diff_id", "digest", "media_type", "place", "size")

    def __init__(self, place: Place, diff_id: str, digest: str = "", media_type: str = "") -> None:
        self.place = place
        self.diff_id = diff_id
        self.digest = digest
        self.size = place.size
        self.media_type = media_type


class Candidate:
    """An image of the archive before it is in the store. `manifest` is empty until it is made."""

    __slots__ = ("config", "config_bytes", "keys", "layers", "manifest", "names", "sizes")

    def __init__(
        self, config: dict[str, Any], config_bytes: bytes, layers: list[Layer], names: list[str]
    ) -> None:
        self.config = config
        self.config_bytes = config_bytes
        self.layers = layers
        self.names = names
        self.manifest = b""
        self.keys: list[str] = []
        self.sizes: list[int] = []

    @property
    def size(self) -> int:
        return sum(self.sizes)

    @property
    def id(self) -> str:
        return digest_of(self.config_bytes)

    def complete(self) -> None:
        """Called when the layers' digests are known, for images that are made from them."""


class Vanished(Exception):
    """A snapshot we meant to share was removed while we worked."""


def load(
    store: ImageStore, source: str, *, name: str = "", progress: Progress | None = None
) -> list[Image]:
    """See ImageStore.load."""
    wanted = reference.parse(name) if name else None
    if wanted and wanted.digest:
        raise BadInput(f"{name!r} has a digest: a digest names content and cannot be given")
    said = "standard input" if source == STDIN else source
    with Blame(f"cannot load {said}"), Work(store) as work:
        archive = open_input(source, work)
        try:
            candidates = read(archive, source)
            if wanted:
                if len(candidates) > 1:
                    raise BadInput(
                        f"{len(candidates)} images in {source!r} cannot share the name {name!r}",
                        hint="leave --name out: they come with names of their own",
                    )
                candidates[0].names = [wanted.key]
            return put(store, work, candidates, progress)
        finally:
            archive.close()


def put(
    store: ImageStore, work: Work, candidates: list[Candidate], progress: Progress | None
) -> list[Image]:
    """Unpack, settle and publish. Raises BadInput."""
    for _ in range(MOST_ATTEMPTS):
        stage = Stage(store, work, progress)
        stage.unpack(candidates)
        for candidate in candidates:
            candidate.complete()
            candidate.keys, candidate.sizes = [], []
            stage.settle(candidate)
        try:
            return stage.publish(candidates)
        except Vanished:
            continue
    raise PyrunError("other commands kept removing layers of this image while it was loaded")


# Reading an archive


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


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


# Into the store


class Stage:
    """What one load has unpacked so far, and how it becomes visible."""

    def __init__(self, store: ImageStore, work: Work, progress: Progress | None) -> None:
        self.store = store
        self.work = work
        self.progress = progress
        self._count = 0
        self._blobs: dict[str, str] = {}  # digest: file in the work directory
        self._fresh: dict[str, tuple[str, workers.Result]] = {}  # diff_id: snapshot not yet used
        self._new: dict[str, tuple[str, workers.Result]] = {}  # key: snapshot to publish
        self._verified = verified_pairs(store)

    def unpack(self, candidates: list[Candidate]) -> None:
        """Every layer whose content or whose blob the store does not have."""
        jobs: dict[tuple[str, str], tuple[workers.Job, list[Layer]]] = {}
        total = sum(len(candidate.layers) for candidate in candidates)
        number = 0
        for candidate in candidates:
            for layer in candidate.layers:
                number += 1
                key = (layer.digest, layer.diff_id)
                if key in jobs:
                    jobs[key][1].append(layer)
                elif not self._known(layer):
                    unpacked = any(k[1] == layer.diff_id for k in jobs) and bool(layer.diff_id)
                    needed = not unpacked and not self._has(layer.diff_id)
                    label = f"layer {number}/{total} {(layer.digest or layer.diff_id)[:19]}"
                    jobs[key] = (self._job(layer, label, unpack=needed), [layer])
        results = workers.run([job for job, _ in jobs.values()], self.progress)
        for (job, layers), result in zip(jobs.values(), results, strict=True):
            for layer in layers:
                self._note(layer, result)
            self._blobs[result.digest] = job.blob
            if job.rootfs:
                self._fresh[result.diff_id] = (job.rootfs, result)

    def _known(self, layer: Layer) -> bool:
        """Whether the store has this very blob, verified, and its content unpacked."""
        if not self._has(layer.diff_id):
            return False
        if (layer.digest, layer.diff_id) in self._verified:
            return True
        if not layer.digest and (layer.diff_id, layer.diff_id) in self._verified:
            layer.digest = layer.diff_id
            layer.media_type = manifest.LAYER
            layer.size = os.stat(self.store.blob(layer.digest)).st_size
            return True
        return False

    def _has(self, diff_id: str) -> bool:
        return bool(diff_id) and any(
            os.path.exists(self.store.layer(key_of(diff_id) + suffix)) for suffix in ("", OPAQUE)
        )

    def _job(self, layer: Layer, label: str, *, unpack: bool) -> workers.Job:
        self._count += 1
        os.mkdir(f"{self.work.path}/{self._count}", 0o700)
        base = f"{self.work.path}/{self._count}"
        return workers.Job(
            layer.place,
            digest=layer.digest,
            diff_id=layer.diff_id,
            blob=f"{self.work.path}/{self._count}.blob",
            rootfs=f"{base}/rootfs" if unpack else "",
            label=label,
            strict=not layer.diff_id,
        )

    def _note(self, layer: Layer, result: workers.Result) -> None:
        layer.digest = result.digest
        layer.diff_id = result.diff_id
        layer.size = result.size
        if not layer.media_type:
            suffix = "+gzip" if result.gzip else "+zstd" if result.zstd else ""
            layer.media_type = manifest.LAYER + suffix

    def settle(self, candidate: Candidate) -> None:
        """Decide for each layer, bottom first, which snapshot shows it above the ones below."""
        lowers: list[str] = []
        chain = ""
        for layer in candidate.layers:
            chain = layer.diff_id if not chain else digest_of(f"{chain} {layer.diff_id}".encode())
            key, facts = self._snapshot(layer, f"{key_of(chain)}-chain", lowers)
            candidate.keys.append(key)
            candidate.sizes.append(facts["size"])
            rootfs = self._new[key][0] if key in self._new else self.store.rootfs(key)
            lowers = [rootfs, *([] if facts["opaque_root"] else lowers)]

    def _snapshot(
        self, layer: Layer, chained: str, lowers: list[str]
    ) -> tuple[str, dict[str, Any]]:
        plain = key_of(layer.diff_id)
        for key in (chained, chained + OPAQUE):
            found = self._facts(key)
            if found is not None:
                return key, found
        facts = None
        for key in (plain, plain + OPAQUE):
            facts = facts or self._facts(key)
        if facts is None:
            facts = self._unpacked(layer)[1].facts
        suffix = OPAQUE if facts["opaque_root"] else ""
        if facts["opaque_root"]:
            lowers = []
        changes = settle.plan(lowers, facts)
        if not changes:
            if self._facts(plain + suffix) is None:
                self._new[plain + suffix] = self._fresh.pop(layer.diff_id)
            return plain + suffix, facts
        rootfs, result = self._unpacked(layer)
        del self._fresh[layer.diff_id]
        with Blame(f"layer {layer.digest[:19]}"):
            settle.apply(rootfs, lowers, changes)
        facts = result.facts = {**facts, "size": content_size(rootfs)}
        self._new[chained + suffix] = (rootfs, result)
        return chained + suffix, facts

    def _facts(self, key: str) -> dict[str, Any] | None:
        if key in self._new:
            return self._new[key][1].facts
        found: dict[str, Any] | None = records.read(f"{self.store.layer(key)}/layer.json")
        return found

    def _unpacked(self, layer: Layer) -> tuple[str, workers.Result]:
        """A snapshot of our own; unpacked again where the first one is in use elsewhere."""
        if layer.diff_id not in self._fresh:
            job = self._job(layer, f"layer {layer.digest[:19]}", unpack=True)
            self._fresh[layer.diff_id] = (job.rootfs, workers.run([job], self.progress)[0])
            self._blobs.setdefault(layer.digest, job.blob)
        return self._fresh[layer.diff_id]

    def publish(self, candidates: list[Candidate]) -> list[Image]:
        """Make everything visible. Raises Vanished where a shared snapshot is gone meanwhile."""
        for candidate in candidates:
            candidate.manifest = candidate.manifest or make_manifest(candidate)
            for data in (candidate.config_bytes, candidate.manifest):
                self._keep(data)
        for rootfs, result in self._new.values():
            records.write(f"{os.path.dirname(rootfs)}/layer.json", result.facts, durable=False)
        store = self.store
        for path in (f"{store.paths.images}/records", store.paths.layers):
            os.makedirs(path, 0o700, exist_ok=True)
        with store.lock():
            self._check_shared(candidates)
            for digest, blob in self._blobs.items():
                os.makedirs(os.path.dirname(store.blob(digest)), 0o700, exist_ok=True)
                os.rename(blob, store.blob(digest))
            for key, (rootfs, _) in self._new.items():
                if not os.path.exists(store.layer(key)):  # another load may have been faster
                    os.rename(os.path.dirname(rootfs), store.layer(key))
            if any(not candidate.keys for candidate in candidates):
                os.makedirs(store.rootfs(EMPTY), 0o755, exist_ok=True)
            names = store.names()
            for candidate in candidates:
                records.write(store.record_path(candidate.id), record_of(candidate))
                names.update(dict.fromkeys(candidate.names, candidate.id))
                for name in candidate.names:
                    repository = reference.split(name)[0]
                    names[f"{repository}@{digest_of(candidate.manifest)}"] = candidate.id
            records.write(store.names_path, names)
            dead = bury(store)
            # Made here and not by resolve() later: it may be removed again by then.
            images = [
                Image(record_of(one), [name for name, owner in names.items() if owner == one.id])
                for one in candidates
            ]
        remove_dead(dead)
        return images

    def _keep(self, data: bytes) -> None:
        """A small blob, written to the work directory."""
        digest = digest_of(data)
        self._count += 1
        path = f"{self.work.path}/{self._count}.blob"
        with open(path, "wb") as file:
            file.write(data)
        os.chmod(path, 0o600)
        self._blobs[digest] = path

    def _check_shared(self, candidates: list[Candidate]) -> None:
        for candidate in candidates:
            for key in candidate.keys:
                if key not in self._new and not os.path.exists(self.store.layer(key)):
                    raise Vanished
            for layer in candidate.layers:
                known = layer.digest in self._blobs or os.path.exists(self.store.blob(layer.digest))
                if not known:
                    raise Vanished


def key_of(digest: str) -> str:
    return digest.partition(":")[2]


def verified_pairs(store: ImageStore) -> set[tuple[str, str]]:
    """Blob digest and diff_id of every layer in the store: both were verified when it came in."""
    pairs: set[tuple[str, str]] = set()
    for image_id in store.ids():
        record = records.read(store.record_path(image_id))
        if record is not None:
            pairs.update(zip(record["blobs"], record["config"]["rootfs"]["diff_ids"], strict=True))
    return pairs


def record_of(candidate: Candidate) -> dict[str, Any]:
    """All a container needs of an image, in one small file."""
    config = dict(candidate.config)
    config["rootfs"] = {"type": "layers", "diff_ids": [one.diff_id for one in candidate.layers]}
    return {
        "version": RECORD_VERSION,
        "id": candidate.id,
        "manifest": digest_of(candidate.manifest),
        "config": config,
        "layers": candidate.keys,
        "blobs": [layer.digest for layer in candidate.layers],
        "size": candidate.size,
        "layer_sizes": candidate.sizes,
        "blob_sizes": [layer.size for layer in candidate.layers],
        "boot": records.boot_id(),
    }


def make_manifest(candidate: Candidate) -> bytes:
    """The OCI manifest of an image that came without one (docker-archive, import)."""
    document = {
        "schemaVersion": 2,
        "mediaType": manifest.MANIFEST,
        "config": {
            "mediaType": manifest.CONFIG,
            "digest": candidate.id,
            "size": len(candidate.config_bytes),
        },
        "layers": [
            {"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size}
            for layer in candidate.layers
        ],
    }
    return fastjson.dumps(document).encode()
