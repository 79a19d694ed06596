"""After a power cut: is what a record promises really on the disk?

Loading does not wait for the disk: forcing hundreds of megabytes out takes as long as unpacking
them. The kernel writes them within half a minute, and a kill loses nothing, since the page cache
does not die with the process. Only when the machine itself stops can a file that was renamed into
place be shorter than it was: names and the record (which is forced out) come back from the file
system's journal, contents may not.

So a record says during which boot it was written. The first use in a later boot compares the
size of every file with what was unpacked, which is cheap, and then forgets the boot. An image
that is not whole is taken away, with a message that says to load it again.
"""

from __future__ import annotations

import os
import stat

from pyrun.errors import NotFound
from pyrun.store import records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyrun.image.store import ImageStore


def heal(store: ImageStore, image_id: str) -> dict[str, Any]:
    """The record of an image from an earlier boot, once it is known to be whole.

    Raises NotFound where it is not; the image is removed then. Called under the store's lock.
    """
    path = store.record_path(image_id)
    record: dict[str, Any] | None = records.read(path)
    if record is None:
        raise NotFound(f"image {image_id} is gone")
    if not record.get("boot"):
        return record
    if not is_whole(store, record):
        os.unlink(path)
        raise NotFound(
            f"image {image_id[7:19]} is incomplete: the machine stopped soon after it was loaded",
            hint="it has been removed; load it again",
        )
    record["boot"] = ""
    records.write(path, record)
    return record


def heal_all(store: ImageStore) -> None:
    """Remove the images that a power cut has damaged, so that nobody shares their layers."""
    boot_id = records.boot_id()
    for image_id in store.ids():
        record = records.read(store.record_path(image_id))
        if record is not None and record.get("boot", "") not in ("", boot_id):
            try:
                heal(store, image_id)
            except NotFound:
                pass


def is_whole(store: ImageStore, record: dict[str, Any]) -> bool:
    try:
        for key, size in zip(record["layers"], record["layer_sizes"], strict=True):
            facts = records.read(f"{store.layer(key)}/layer.json")
            if facts is None or content_size(store.rootfs(key)) != size:
                return False
        for digest, size in zip(record["blobs"], record["blob_sizes"], strict=True):
            if os.stat(store.blob(digest)).st_size != size:
                return False
    except (OSError, ValueError):
        return False
    return True


def content_size(path: str) -> int:
    """The sizes of all regular files of a tree, each hard-linked one once."""
    total = 0
    linked = set()
    waiting = [path]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                    continue
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode) and status.st_ino not in linked:
                    total += status.st_size
                    if status.st_nlink > 1:
                        linked.add(status.st_ino)
    return total
