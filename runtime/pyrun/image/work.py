"""Work in progress: a directory nobody looks at until its content is renamed into place.

Each has a file that its maker holds locked with flock(2). The kernel drops the lock when the last
process that has it dies, however it dies; so a directory whose lock is free is rubbish, and the
next one who works here removes it. It lies on the store's own file system, since rename(2) cannot
cross to another.

Whoever begins work also tidies up: what killed commands left here, images that a power cut damaged,
blobs and snapshots that no image mentions.
"""

from __future__ import annotations

import fcntl
import os

from pyrun.image.heal import heal_all
from pyrun.image.remove import bury, remove_dead
from pyrun.kernel.files import remove_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyrun.image.store import ImageStore


class Work:
    """A temporary directory of the store, for a `with` block."""

    def __init__(self, store: ImageStore) -> None:
        self.store = store
        self.path = ""
        self._lock = -1

    def __enter__(self) -> Work:
        base = f"{self.store.paths.images}/tmp"
        os.makedirs(base, 0o700, exist_ok=True)
        with self.store.lock():  # nobody may clear a directory that is not locked yet
            clear(base)
            heal_all(self.store)
            dead = bury(self.store)
            self.path = f"{base}/{os.getpid()}-{os.urandom(4).hex()}"
            os.mkdir(self.path, 0o700)
            self._lock = os.open(f"{self.path}/lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        remove_dead(dead)
        return self

    def __exit__(self, *_: object) -> None:
        remove_tree(self.path)
        os.close(self._lock)


def clear(base: str) -> None:
    """Remove the directories in `base` whose makers are gone. Called under the store's lock."""
    for name in os.listdir(base):
        path = f"{base}/{name}"
        try:
            fd = os.open(f"{path}/lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:  # killed between mkdir and open
            remove_tree(path)
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_tree(path)
        except BlockingIOError:
            pass
        finally:
            os.close(fd)
