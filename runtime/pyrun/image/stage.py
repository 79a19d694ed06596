"""Between an archive and the store: layers are unpacked in a work directory, then published.

    unpack     the layers this store does not have, in parallel
    settle     each image from the bottom up: which snapshot serves each of its layers
    publish    under the store's lock: blobs, snapshots, records, names, in this order

Until `publish` nothing is outside the work directory, so a refused image leaves nothing behind,
and neither does a kill. In the middle of `publish` a kill leaves what no record mentions yet.
"""

from __future__ import annotations

import os

from pyrun.errors import PyrunError
from pyrun.image import manifest, reference, settle, workers
from pyrun.image.blame import Blame
from pyrun.image.candidate import digest_of, make_manifest, record_of
from pyrun.image.heal import content_size
from pyrun.image.remove import bury, remove_dead
from pyrun.image.store import EMPTY, OPAQUE, Image
from pyrun.store import records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyrun.image.candidate import Candidate, Layer
    from pyrun.image.store import ImageStore, Progress
    from pyrun.image.work import Work

MOST_ATTEMPTS = 5


class Vanished(Exception):
    """A snapshot we meant to share was removed while we worked."""


def put(
    store: ImageStore, work: Work, candidates: list[Candidate], progress: Progress | None
) -> list[Image]:
    """Unpack, settle and publish. Raises BadInput."""
    for attempt in range(MOST_ATTEMPTS):
        stage = Stage(store, progress, f"{work.path}/{attempt}")
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


class Stage:
    """What one load has unpacked so far, and how it becomes visible."""

    def __init__(self, store: ImageStore, progress: Progress | None, place: str) -> None:
        """`place` is the beginning of the paths this attempt may use in the work directory."""
        self.place = place
        self.store = store
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
        base = f"{self.place}-{self._count}"
        os.mkdir(base, 0o700)
        return workers.Job(
            layer.place,
            digest=layer.digest,
            diff_id=layer.diff_id,
            blob=f"{base}.blob",
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
        path = f"{self.place}-{self._count}.blob"
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
