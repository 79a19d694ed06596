"""Looking into an image: a read-only overlay of all its layers, mounted below the run root.

    image-mounts/HEX/rootfs       the mount
    image-mounts/HEX/record.json  whose it is, since which boot

HEX is the image's id, so mounting twice gives the same path.
"""

from __future__ import annotations

import os

from pyrun.errors import NotFound
from pyrun.kernel import mounts
from pyrun.store import records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyrun.image.store import Image, ImageStore
    from pyrun.store.paths import Paths


def mount(store: ImageStore, ref: str) -> str:
    """Mount the image `ref` and return the path of its tree. Raises NotFound, KernelError."""
    with store.lock():  # so that it cannot be removed in between
        image = store.resolve(ref)
        base = _base(store.paths, image.id)
        rootfs = f"{base}/rootfs"
        if is_mounted(store.paths, image.id):
            return rootfs
        os.makedirs(rootfs, 0o755, exist_ok=True)
        record = {"id": image.id, "boot_id": records.boot_id()}
        records.write(f"{base}/record.json", record, durable=False)
        try:
            mounts.mount_overlay(rootfs, store.lowerdirs(image), None, None, readonly=True)
        except OSError:
            _forget(base)
            raise
    return rootfs


def unmount(store: ImageStore, ref: str) -> Image:
    """Take the mount of image `ref` away. Raises NotFound where it is not mounted."""
    with store.lock():
        image = store.resolve(ref)
        base = _base(store.paths, image.id)
        if not os.path.isdir(base):
            raise NotFound(f"image {ref!r} is not mounted")
        mounts.umount(f"{base}/rootfs")
        _forget(base)
    return image


def is_mounted(paths: Paths, image_id: str) -> bool:
    """After a reboot the record may be left (the run root need not be a tmpfs), not the mount."""
    return mounts.is_mount_point(os.path.realpath(f"{_base(paths, image_id)}/rootfs"))


def _base(paths: Paths, image_id: str) -> str:
    return f"{paths.run_root}/image-mounts/{image_id.partition(':')[2]}"


def _forget(base: str) -> None:
    for remove, path in (
        (os.rmdir, f"{base}/rootfs"),
        (os.unlink, f"{base}/record.json"),
        (os.rmdir, base),
    ):
        try:
            remove(path)
        except FileNotFoundError:
            pass
