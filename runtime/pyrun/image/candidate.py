"""An image on its way into the store: what was read of it, and what it becomes."""

from __future__ import annotations

import hashlib

from pyrun.image import manifest
from pyrun.image.archive import Place
from pyrun.store import fastjson, records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

RECORD_VERSION = 1


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


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


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
