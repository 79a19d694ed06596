"""The small acts on a container's own files that its plans name."""

from __future__ import annotations

import os

from pyrun.kernel import files
from pyrun.store import records
from pyrun.store.fastjson import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


EXIT_SPACE = 256
"""More bytes than an exit record has."""


def make_upper(directory: str, mode: int, uid: int, gid: int) -> None:
    """upper/ and work/. The upper directory's own mode and owner are what `/` shows."""
    os.mkdir(f"{directory}/work", 0o711)
    os.mkdir(f"{directory}/upper", 0o755)
    os.chmod(f"{directory}/upper", mode)
    os.chown(f"{directory}/upper", uid, gid)


def unmake(path: str, above: str) -> None:
    """Undo a mkdir -p: remove `path` and its parents up to `above`, which stays. What holds
    something by now stays as well."""
    while path != above:
        try:
            os.rmdir(path)
        except FileNotFoundError:
            pass
        except OSError:
            return
        path = path.rpartition("/")[0]


def write_config(directory: str, config: dict[str, Any]) -> None:
    records.write(f"{directory}/config.json", config, durable=False)


def write_order(run: str, order: dict[str, Any]) -> None:
    os.makedirs(run, 0o711, exist_ok=True)
    records.write(f"{run}/init.json", order, durable=False)


def mark_started(directory: str) -> None:
    """A file of blanks; together with no exit.json and no process it means: cut off by a reboot.

    The blanks are space for the exit record, should the disk be full when the container ends.

    What overlayfs keeps in its work directory goes as well: after a reboot it would refuse a
    volatile mount (`--rm`) for what it finds there.
    """
    files.unlink(f"{directory}/exit.before")
    try:
        os.rename(f"{directory}/exit.json", f"{directory}/exit.before")
    except FileNotFoundError:
        pass  # it has never ended
    files.remove_tree(os.path.join(directory, "work", "work"))
    files.write(f"{directory}/started", " " * EXIT_SPACE)


def write_exit(directory: str, run: str, facts: dict[str, Any]) -> None:
    """Write exit.json; on a full disk into the space kept for it, or at worst into memory."""
    try:
        records.write(f"{directory}/exit.json", facts)
        return
    except OSError:
        pass
    try:
        fd = os.open(f"{directory}/started", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, dumps(facts).ljust(EXIT_SPACE).encode())
        finally:
            os.close(fd)
    except OSError:
        records.write(f"{run}/exit.json", facts, durable=False)


def unmark_started(directory: str) -> None:
    """The start has failed: the container is as it was before, new or ended as it had ended."""
    try:
        os.rename(f"{directory}/exit.before", f"{directory}/exit.json")
    except FileNotFoundError:
        files.unlink(f"{directory}/started")


def keep_exit(run: str, directory: str) -> None:
    """Move an exit record from memory to disk; a disk that is still full leaves it lost."""
    facts = records.read(f"{run}/exit.json")
    if facts is not None and os.path.isdir(directory):
        try:
            records.write(f"{directory}/exit.json", facts)
        except OSError:
            pass
