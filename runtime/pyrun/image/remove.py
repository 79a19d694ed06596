"""Removing images, and sweeping away what no image needs any more.

The record goes first: from then on the image is gone, and everything that was only its own is
rubbish. A kill in between leaves rubbish that the next removal or load sweeps.
"""

from __future__ import annotations

import os

from pyrun.errors import Conflict
from pyrun.image import reference
from pyrun.image.mount import is_mounted
from pyrun.image.store import EMPTY
from pyrun.kernel.files import remove_tree
from pyrun.store import records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyrun.image.store import Image, ImageStore, Users

DEAD = ".dead"


def remove(store: ImageStore, ref: str, *, force: bool, users: Users) -> list[str]:
    """See ImageStore.remove."""
    with store.lock():
        image = store.resolve(ref)
        doomed = _names_meant(image, ref, force=force)
        done = [f"untagged: {name}" for name in doomed]
        names = store.names()
        last = set(doomed) >= set(image.names)
        if last:
            mounted = ["`image mount`"] if is_mounted(store.paths, image.id) else []
            _refuse_in_use(image, [*users(image.id), *mounted])
            # The record before the names: unlink needs no room on a full disk, and frees some.
            os.unlink(store.record_path(image.id))
            done.append(f"deleted: {image.id}")
            doomed = [name for name, owner in names.items() if owner == image.id]
            dead = bury(store)
        for name in doomed:
            names.pop(name, None)
        if doomed:
            records.write(store.names_path, names)
        if not last:
            return done
    remove_dead(dead)
    return done


def remove_dead(paths: list[str]) -> None:
    for path in paths:
        try:
            remove_tree(path)
        except FileNotFoundError:
            pass  # another command is removing it too


def _names_meant(image: Image, ref: str, *, force: bool) -> list[str]:
    """The names that `ref` takes away: one, or all of them where it is an id. Raises Conflict."""
    hexadecimal = ref.removeprefix("sha256:")
    if not image.id[7:].startswith(hexadecimal):
        key = reference.parse(ref).key
        if key in image.names:
            return list(image.names) if force and len(image.names) == 1 else [key]
        if key in image.digests and len(image.names) <= 1:
            return list(image.names)
    repositories = {reference.split(name)[0] for name in image.names}
    if len(image.names) > 1 and not force:
        raise Conflict(
            f"image {image.id[7:19]} has {len(image.names)} names in {len(repositories)} "
            f"{'repositories' if len(repositories) > 1 else 'repository'}: "
            + ", ".join(map(reference.familiar, image.names)),
            hint="remove one name, or all of them with -f",
        )
    return list(image.names)


def _refuse_in_use(image: Image, users: Sequence[str]) -> None:
    if users:
        raise Conflict(
            f"image {image.names[0] if image.names else image.id[7:19]} is in use by "
            + ", ".join(users),
            hint="`pyrun rm` its containers, `pyrun image unmount` its mounts: they use its layers",
        )


def bury(store: ImageStore) -> list[str]:
    """Take every blob and snapshot that no record mentions out of sight, under the store's lock.

    Blobs are unlinked. Snapshots are renamed, and returned for removal after the lock is given
    back: that can take long.
    """
    layers, blobs = {EMPTY}, set()
    for image_id in store.ids():
        record = records.read(store.record_path(image_id))
        layers.update(record["layers"])
        blobs.update([record["id"], record["manifest"], *record["blobs"]])
    for algorithm in _list(f"{store.paths.images}/blobs"):
        for name in _list(f"{store.paths.images}/blobs/{algorithm}"):
            if f"{algorithm}:{name}" not in blobs:
                os.unlink(f"{store.paths.images}/blobs/{algorithm}/{name}")
    for folder in (store.paths.images, f"{store.paths.images}/records"):
        for name in _list(folder):
            if name.endswith(".tmp"):  # a record whose writer was killed: they hold this lock
                os.unlink(f"{folder}/{name}")
    dead = []
    for key in _list(store.paths.layers):
        if key in layers:
            continue
        path = store.layer(key)
        if not key.endswith(DEAD):
            # A name of its own: the same layer may come back and go again before this one is gone.
            buried = f"{path}.{os.urandom(4).hex()}{DEAD}"
            os.rename(path, buried)
            path = buried
        dead.append(path)
    return dead


def _list(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []
