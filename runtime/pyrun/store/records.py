"""State is plain files, readable with ls and cat: one directory an object, JSON inside.

A record is written beside its place, made durable, and renamed over it, so that a reader sees the
old or the new text and never half of one. The kernel is the truth, the files are memory:
whatever says "running" here is checked against a live process and the boot id.
"""

from __future__ import annotations

import fcntl
import os

from pyrun.errors import Conflict
from pyrun.store.fastjson import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def read(path: str) -> Any:
    """The record at `path`, or None where there is none that can be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    with open(fd, encoding="utf-8", errors="replace") as file:
        try:
            return loads(file.read())
        except ValueError:
            return None  # empty or torn by a power cut: as good as not there


def write(path: str, value: Any, *, durable: bool = True) -> None:
    """Write `value` as JSON: temporary file, fsync, rename, fsync of the directory.

    `durable=False` leaves both fsyncs out: for files below the run root, which is a tmpfs and
    gone after a reboot anyway. Raises OSError; the temporary file is removed then.
    """
    write_text(path, dumps(value) + "\n", durable=durable)


def write_text(path: str, text: str, *, durable: bool = True, mode: int = 0o600) -> None:
    temporary = f"{path}.{os.getpid()}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(temporary, flags, mode)
    except FileExistsError:  # left by a process of the same pid that was killed
        os.unlink(temporary)
        fd = os.open(temporary, flags, mode)
    try:
        try:
            data = text.encode()
            while data:
                data = data[os.write(fd, data) :]
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    if durable:
        sync_directory(os.path.dirname(path))


def sync_directory(path: str) -> None:
    """fsync a directory, so that a rename in it survives a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def take_name(directory: str, name: str, what: str) -> str:
    """Make `directory/name` and with it take the name; mkdir(2) is atomic. Returns the path.

    Raises Conflict where the name is taken.
    """
    path = f"{directory}/{name}"
    os.makedirs(directory, 0o711, exist_ok=True)
    try:
        os.mkdir(path, 0o711)
    except FileExistsError:
        raise Conflict(
            f"the {what} name {name!r} is taken",
            hint=f"choose another name, or remove that {what} first",
        ) from None
    return path


class Lock:
    """flock(2) on a file, for a `with` block. Dies with its process, so nothing is ever stale.

    owner  a directory that the lock belongs to: when it is gone at the end, the file goes as well
    """

    __slots__ = ("fd", "owner", "path", "shared")

    def __init__(self, path: str, *, shared: bool = False, owner: str = "") -> None:
        self.path = path
        self.shared = shared
        self.owner = owner
        self.fd = -1

    def __enter__(self) -> Lock:
        os.makedirs(os.path.dirname(self.path), 0o711, exist_ok=True)
        while True:
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self.fd, fcntl.LOCK_SH if self.shared else fcntl.LOCK_EX)
            # The file may have been removed together with its object while we waited for it.
            try:
                if os.path.samestat(os.fstat(self.fd), os.stat(self.path)):
                    return self
            except FileNotFoundError:
                os.makedirs(os.path.dirname(self.path), 0o711, exist_ok=True)
            os.close(self.fd)

    def __exit__(self, *_: object) -> None:
        if self.owner and not os.path.isdir(self.owner):
            os.unlink(self.path)  # while we hold it; who waits for it looks again
        os.close(self.fd)


def forget_other_boots(run_root: str) -> None:
    """Empty the run root where it speaks of an earlier boot: it is not on a tmpfs everywhere.

    Called first of all by every command, so that nobody acts on stale pids, leases or mounts.
    """
    now = boot_id()
    if _read_line(f"{run_root}/boot_id") == now:
        return
    with Lock(f"{run_root}/boot.lock"):
        before = _read_line(f"{run_root}/boot_id")
        if before == now:
            return  # another command was faster
        if before:
            from pyrun.kernel.files import remove_tree

            for name in os.listdir(run_root):
                if name != "boot.lock":
                    remove_tree(f"{run_root}/{name}")
        write_text(f"{run_root}/boot_id", now + "\n", durable=False)


def _read_line(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.readline().strip()
    except FileNotFoundError:
        return ""


def boot_id() -> str:
    """The kernel's random name for this boot: proc_sys_kernel(5), random/boot_id."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
