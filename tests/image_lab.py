"""A store of its own for each test, and a check that nothing stays mounted."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyrun.image import mount
from pyrun.image.store import ImageStore
from pyrun.store.paths import Paths


def new_store(base: Path) -> ImageStore:
    return ImageStore(Paths(str(base / "root"), str(base / "run")))


@contextmanager
def mounted(store: ImageStore, ref: str) -> Iterator[str]:
    path = mount.mount(store, ref)
    try:
        yield path
    finally:
        mount.unmount(store, ref)


def unmount_all(base: Path) -> list[str]:
    """What was still mounted below `base`; it is unmounted now."""
    with open("/proc/self/mountinfo", encoding="utf-8") as table:
        points = [line.split()[4] for line in table]
    left = [point for point in points if point.startswith(f"{base}/")]
    for point in reversed(left):
        subprocess.run(["umount", "-l", point], check=True)
    return left


def contents(store: ImageStore) -> list[str]:
    """Every file below the store's root that is neither a lock nor a directory on the way."""
    root = store.paths.root
    found = []
    for base, folders, files in os.walk(root):
        inside = base.startswith((f"{root}/layers/", f"{root}/images/tmp/"))
        names = [name for name in files if name not in ("lock", "names.json")]
        found += [f"{base}/{name}"[len(root) :] for name in names + folders * inside]
    return sorted(found)
