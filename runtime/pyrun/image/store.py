"""The image store: which names there are, which image each means, which directories it is made of.

    images/names.json            {"docker.io/library/nginx:latest": "sha256:…"}
    images/records/HEX.json      one image: its config, its layers, everything a container needs
    images/blobs/sha256/HEX      manifests, configs and compressed layers, as they came
    images/tmp/                  work in progress; `work.py` clears what a killed command left
    layers/KEY/rootfs            one layer, unpacked, ready to be an overlay's lower directory
    layers/KEY/layer.json        what is known about it

An image becomes visible when its record is renamed into place, last of all. Whatever no record
mentions is rubbish, and the next change of the store sweeps it away: a kill at any moment leaves
nothing else behind. `resolve` is on the way of every `pyrun run`, so it reads two small files and
this module imports nothing heavy; loading is in `load.py`.
"""

from __future__ import annotations

import os

from pyrun.errors import Conflict, NotFound
from pyrun.image import reference
from pyrun.store import records
from pyrun.store.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    Progress = Callable[[str, int, int], None]
    """Is told what is being worked on, and how many bytes of how many are done."""

    Users = Callable[[str], Sequence[str]]

SHORTEST_ID = 4
"""Shorter prefixes of an id are taken for names only."""


class Image:
    """One image of the store. Never changed once made.

    id         digest of its config
    names      full references with a tag
    digests    full references with the digest of the manifest it was loaded by
    config     the whole OCI image config
    diff_ids   digests of its uncompressed layers, bottom first
    layers     keys of its snapshots, bottom first
    manifest   digest of its manifest
    size       bytes of file content in all its layers
    """

    __slots__ = ("config", "diff_ids", "digests", "id", "layers", "manifest", "names", "size")

    def __init__(self, record: dict[str, Any], names: Iterable[str]) -> None:
        self.id: str = record["id"]
        self.names = tuple(name for name in names if "@" not in name)
        self.digests = tuple(name for name in names if "@" in name)
        self.config: dict[str, Any] = record["config"]
        self.diff_ids: tuple[str, ...] = tuple(record["config"]["rootfs"]["diff_ids"])
        self.layers: tuple[str, ...] = tuple(record["layers"])
        self.manifest: str = record["manifest"]
        self.size: int = record["size"]

    def __repr__(self) -> str:
        return f"Image({self.id}, {self.names})"


class ImageStore:
    """Everything about images below one root. Creating the object touches nothing."""

    __slots__ = ("paths",)

    def __init__(self, paths: Paths) -> None:
        self.paths = paths

    # Reading

    def resolve(self, ref: str) -> Image:
        """The image a user means by `ref`: a name, name@digest, an id or the beginning of one.

        Raises NotFound, or BadInput where `ref` can be no name at all.
        """
        names = self.names()
        image_id = self._find(ref, names)
        record = records.read(self.record_path(image_id)) if image_id else None
        if record is None:
            raise NotFound(
                f"no image {ref!r} here",
                hint="`pyrun image ls` lists what is here; `pyrun image load` brings more",
            )
        if record.get("boot") and record["boot"] != records.boot_id():
            from pyrun.image.heal import heal

            with self.lock():
                record = heal(self, image_id)
        return Image(record, [name for name, owner in names.items() if owner == image_id])

    def _find(self, ref: str, names: dict[str, str]) -> str:
        bare = ref.removeprefix("sha256:")
        is_hex = bool(bare) and not bare.strip(reference.HEX)
        if is_hex and (len(bare) == 64 or ref.startswith("sha256:")):
            return self._by_prefix(bare)
        if is_hex and len(bare) >= SHORTEST_ID:
            named = names.get(reference.parse(ref).key, "")
            return named or self._by_prefix(bare)
        return names.get(reference.parse(ref).key, "")

    def _by_prefix(self, prefix: str) -> str:
        if len(prefix) == 64:
            return f"sha256:{prefix}"
        found = [one for one in self.ids() if one.startswith(f"sha256:{prefix}")]
        if len(found) > 1:
            raise Conflict(
                f"{prefix!r} begins the ids of {len(found)} images",
                hint="give more digits: " + ", ".join(one[7:23] for one in found[:5]),
            )
        return found[0] if found else ""

    def names(self) -> dict[str, str]:
        """Every name and the image id it means."""
        found: dict[str, str] = records.read(self.names_path) or {}
        return found

    def ids(self) -> list[str]:
        try:
            files = sorted(os.listdir(f"{self.paths.images}/records"))
        except FileNotFoundError:
            return []
        return [f"sha256:{name[:-5]}" for name in files if name.endswith(".json")]

    def images(self) -> list[Image]:
        """All images, the ones without a name too."""
        names = self.names()
        found = []
        for image_id in self.ids():
            record = records.read(self.record_path(image_id))
            if record is not None:  # removed since the directory was listed
                found.append(Image(record, [n for n, owner in names.items() if owner == image_id]))
        return found

    def lowerdirs(self, image: Image) -> list[str]:
        """The snapshots of `image`, top layer first, as overlay wants its lower directories.

        Overlay refuses the same directory twice (ELOOP). Only the topmost use is kept: the tree is
        the same, since a lower one can show nothing that the upper one does not show already.
        It also takes no notice of an opaque root directory, so the list ends there.
        """
        keys: list[str] = []
        for key in reversed(image.layers):
            if key not in keys:
                keys.append(key)
            if key.endswith(OPAQUE):
                break
        return [self.rootfs(key) for key in keys or [EMPTY]]

    # Changing

    def load(self, source: str, *, name: str = "", progress: Progress | None = None) -> list[Image]:
        """Load an OCI layout directory, an oci-archive or a docker-archive (`-` is stdin).

        `name` overrides what the archive says. Nothing becomes visible before everything has been
        verified. Raises BadInput.
        """
        from pyrun.image.load import load

        return load(self, source, name=name, progress=progress)

    def import_(
        self,
        source: str,
        *,
        name: str = "",
        changes: Sequence[str] = (),
        message: str = "",
        progress: Progress | None = None,
    ) -> Image:
        """Make an image of one layer from a plain tar of a root file system (`-` is stdin).

        `changes` are Dockerfile lines such as `CMD ["sh"]`. Raises BadInput.
        """
        from pyrun.image.rootfs import import_rootfs

        return import_rootfs(
            self, source, name=name, changes=changes, message=message, progress=progress
        )

    def tag(self, ref: str, new: str) -> Image:
        """Give the image `ref` one more name; another image that had it loses it."""
        wanted = reference.parse(new)
        if wanted.digest:
            from pyrun.errors import BadInput

            raise BadInput(f"{new!r} has a digest: a digest names content and cannot be given")
        with self.lock():
            image = self.resolve(ref)
            names = self.names()
            names[wanted.key] = image.id
            records.write(self.names_path, names)
        return self.resolve(image.id)

    def remove(
        self, ref: str, *, force: bool = False, users: Users = lambda image_id: []
    ) -> list[str]:
        """Take the name `ref` away, and with the last name the image. Returns what was done.

        An id, or `force`, means all its names. `users(id)` tells which containers need the image:
        while there are any it stays. It is asked under the store's lock, and a new container looks
        for its image once more after its record is written (`require`): one of the two sees the
        other. Raises NotFound, Conflict.
        """
        from pyrun.image.remove import remove

        return remove(self, ref, force=force, users=users)

    # Where things are

    @property
    def names_path(self) -> str:
        return f"{self.paths.images}/names.json"

    def record_path(self, image_id: str) -> str:
        return f"{self.paths.images}/records/{image_id.partition(':')[2]}.json"

    def blob(self, digest: str) -> str:
        return f"{self.paths.images}/blobs/{digest.replace(':', '/')}"

    def layer(self, key: str) -> str:
        return f"{self.paths.layers}/{key}"

    def rootfs(self, key: str) -> str:
        return f"{self.paths.layers}/{key}/rootfs"

    def lock(self) -> records.Lock:
        """Held while names, records, blobs or layers come or go. Short: unpacking is outside."""
        return records.Lock(f"{self.paths.images}/lock")


EMPTY = "empty"
"""Key of a snapshot without content, for images without layers."""

OPAQUE = "-opaque"
"""Ends the key of a snapshot whose root directory hides everything below."""


def require(root: str, run_root: str, image_id: str) -> None:
    """Raises NotFound where the image has been removed since it was resolved."""
    store = ImageStore(Paths(root, run_root))
    with store.lock():
        store.resolve(image_id)
