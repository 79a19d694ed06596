"""Opening names safely: whatever an image or a container says, stay beneath its root.

Paths that come from an image, an archive or a container are never joined to a host path as
strings. They are opened relative to a directory descriptor with openat2(2), whose
RESOLVE_IN_ROOT makes the kernel treat that directory as `/` for every symlink and `..`, and whose
answer is a descriptor that nobody can swap afterwards.
"""

from __future__ import annotations

import os

from pyrun.errors import KernelError
from pyrun.kernel import const
from pyrun.kernel.libc import c_ulong, ctypes, syscall


class open_how(ctypes.Structure):
    """struct open_how of openat2(2): three 64-bit words."""

    _fields_ = [
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    ]


def openat2(dirfd: int, path: str | bytes, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """openat2(2): a new descriptor (O_CLOEXEC always set). Raises KernelError.

    EXDEV means the path left the root under RESOLVE_BENEATH; EAGAIN, which the kernel gives when
    something was renamed during the walk, is tried again.
    """
    name = os.fsencode(path)
    how = open_how(flags | os.O_CLOEXEC, mode, resolve)
    for attempt in range(64):
        try:
            return syscall(
                const.SYS_openat2,
                f"openat2({path!r})",
                dirfd,
                name,
                ctypes.byref(how),
                c_ulong(ctypes.sizeof(how)),
            )
        except KernelError as error:
            if error.errno != 11 or attempt == 63:
                raise
    raise AssertionError("unreachable")


def open_in_root(root: int, path: str | bytes, flags: int = const.O_PATH, mode: int = 0) -> int:
    """Open `path` with directory descriptor `root` as its `/`. Raises KernelError."""
    return openat2(root, path, flags, mode, const.RESOLVE_IN_ROOT | const.RESOLVE_NO_MAGICLINKS)


def make_in_root(root: int, path: str, *, directory: bool, mode: int = 0o755) -> int:
    """Open `path` beneath `root` with O_PATH, creating what is missing of it.

    Existing components may be symlinks: they are followed inside the root. Missing parents become
    directories of `mode`; the last component becomes a directory or an empty regular file.
    A dangling symlink on the way is followed to its target inside the root, which is created.
    Raises KernelError (ENOTDIR where a parent is a file, ELOOP where links go in circles).
    """
    parts = [part for part in path.split("/") if part and part != "."]
    here = os.dup(root)
    walked = ""
    links = 0
    while parts:
        part = parts.pop(0)
        last = not parts
        if part == "..":
            walked = walked.rpartition("/")[0]
        else:
            walked = f"{walked}/{part}"
        try:
            following = open_in_root(root, walked or "/")
        except KernelError as error:
            if error.errno != 2:
                os.close(here)
                raise
            try:
                target = os.readlink(part, dir_fd=here)
            except OSError:
                target = None
            if target is not None:
                links += 1
                if links > 40:
                    os.close(here)
                    raise KernelError(40, f"openat2({path!r})") from None
                if target.startswith("/"):
                    walked = ""
                    os.close(here)
                    here = os.dup(root)
                else:
                    walked = walked.rpartition("/")[0]
                parts = [p for p in target.split("/") if p and p != "."] + parts
                continue
            try:
                if last and not directory:
                    os.close(
                        os.open(part, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=here)
                    )
                else:
                    os.mkdir(part, mode, dir_fd=here)
            except FileExistsError:
                pass
            except OSError:
                os.close(here)
                raise
            following = open_in_root(here, part)
        os.close(here)
        here = following
    return here


def mkdir(path: str, mode: int = 0o755) -> None:
    """mkdir -p, for host paths that pyrun itself names."""
    os.makedirs(path, mode, exist_ok=True)


def rmdir(path: str) -> None:
    """rmdir(2); a directory that is not there is fine."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        pass


def unlink(path: str) -> None:
    """unlink(2); a file that is not there is fine."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def write(path: str, text: str) -> None:
    """Write a small file in one write(2), as /proc/sys and cgroup files want it."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        error.filename = f"write {text!r} to {path}"
        raise
    finally:
        os.close(fd)


def remove_tree(path: str) -> None:
    """rm -rf without leaving the file system or following links; nothing there is fine.

    Holds directory descriptors instead of names, so a link that is swapped in cannot lead out.
    """
    parent, _, name = path.rstrip("/").rpartition("/")
    try:
        parent_fd = os.open(parent or "/", os.O_DIRECTORY | os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        _remove_at(parent_fd, name)
    finally:
        os.close(parent_fd)


def _remove_at(parent: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=parent)
        return
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (21, 1):  # EISDIR, or EPERM as POSIX has it
            raise
    try:
        # A mount point is EXDEV: what is mounted there is not ours to remove.
        fd = openat2(parent, name, os.O_DIRECTORY | os.O_NOFOLLOW, resolve=const.RESOLVE_NO_XDEV)
    except KernelError as error:
        if error.errno == 2:
            return  # another process is removing the same tree
        raise
    try:
        with os.scandir(fd) as entries:
            names = [entry.name for entry in entries]
        for child in names:
            _remove_at(fd, child)
    finally:
        os.close(fd)
    try:
        os.rmdir(name, dir_fd=parent)
    except FileNotFoundError:
        pass
