"""A layer and the layers below it: what unpacking alone cannot know.

A layer is unpacked once and shared by all images that have it, so its snapshot is named by its
diff_id. That is right as long as its directory does not depend on what lies below. It does in
three cases, and then the snapshot is changed and named by the chain of layers instead:

- It has `etc/hosts` but does not list `etc/`. Overlayfs shows a directory with the attributes of
  the topmost layer that has it, so the parent we had to make would turn a /tmp of mode 1777 into
  755. The made parent gets the attributes of the one below.
- A whiteout stands in a directory that no lower layer has. Overlayfs looks for whiteouts only where
  it merges directories; elsewhere it lists them as names without a file. They are removed.
- A hard link points to a file of a lower layer. The file is copied up.

Parents of the first kind are created where their name says, even where a lower layer has a
symbolic link of that name: the directory then hides the link, as docker and podman have it.
"""

from __future__ import annotations

import os
import stat

from pyrun.errors import BadInput, KernelError
from pyrun.image.attributes import OPAQUE_XATTR, is_whiteout, remove_whiteouts
from pyrun.kernel import const
from pyrun.kernel.files import open_in_root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Facts = dict[str, Any]
    Change = tuple[str, str, str]


def plan(lowers: list[str], facts: Facts) -> list[Change]:
    """What must change in a layer with `facts` above the snapshots `lowers` (top first).

    Reads the lower snapshots, changes nothing.
    """
    changes: list[Change] = [
        ("remove_ghosts", path, "")
        for path in facts["whiteout_dirs"]
        if _directory(lowers, path) is None
    ]
    changes += [("link", name, target) for name, target in facts["links"]]
    for path in sorted(facts["implicit"], key=lambda path: path.count("/"), reverse=True):
        found = _directory(lowers, path)
        if found is not None and (path or _attributes(found) != (0o755, 0, 0, {})):
            changes.append(("copy_attributes", path, found))
    return changes


def apply(rootfs: str, lowers: list[str], changes: list[Change]) -> None:
    """Make the changes in `rootfs`, a fresh snapshot nobody uses yet. Raises BadInput."""
    root = os.open(rootfs, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for what, path, other in changes:
            if what == "remove_ghosts":
                _remove_ghosts(root, path)
            elif what == "copy_attributes":
                with _opened(root, path) as at:
                    copy_attributes(other, at)
            else:
                _link(root, lowers, path, other)
    finally:
        os.close(root)


def lookup(lowers: list[str], path: str) -> str | None:
    """Where `path` comes from when `lowers` (top first) are merged, as overlayfs would do it.

    Links are not followed. A whiteout or a file ends the search below it, an opaque directory
    after itself.
    """
    layers = list(lowers)
    walked = ""
    parts = [part for part in path.split("/") if part]
    for depth, part in enumerate(parts):
        walked += "/" + part
        directories: list[str] = []
        for rootfs in layers:
            here = rootfs + walked
            try:
                status = os.lstat(here)
            except FileNotFoundError:
                continue
            if is_whiteout(status):
                break
            if not stat.S_ISDIR(status.st_mode):
                if not directories and depth == len(parts) - 1:
                    return here
                break
            directories.append(rootfs)
            if OPAQUE_XATTR in os.listxattr(here, follow_symlinks=False):
                break
        layers = directories
    return layers[0] + walked if layers else None


def _directory(lowers: list[str], path: str) -> str | None:
    found = lookup(lowers, path)
    return found if found is not None and stat.S_ISDIR(os.lstat(found).st_mode) else None


def _attributes(path: str) -> tuple[int, int, int, dict[str, bytes]]:
    status = os.lstat(path)
    return stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, _xattrs(path)


def _xattrs(path: str) -> dict[str, bytes]:
    return {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in os.listxattr(path, follow_symlinks=False)
        if not name.startswith("trusted.overlay.")
    }


def copy_attributes(source: str, target: str) -> None:
    """Owner, mode, xattrs and times of `source` onto `target`, following neither."""
    status = os.lstat(source)
    os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(target, stat.S_IMODE(status.st_mode))
    for name, value in _xattrs(source).items():
        os.setxattr(target, name, value, follow_symlinks=False)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)


class _opened:
    """The path `/proc/self/fd/N/.` of a directory beneath `root`, for a `with` block."""

    def __init__(self, root: int, path: str) -> None:
        self.fd = open_in_root(root, path or ".", const.O_PATH | os.O_DIRECTORY)

    def __enter__(self) -> str:
        return f"/proc/self/fd/{self.fd}/."

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def _remove_ghosts(root: int, path: str) -> None:
    fd = open_in_root(root, path or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        status = os.fstat(fd)
        remove_whiteouts(fd)
        os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
    finally:
        os.close(fd)


def _link(root: int, lowers: list[str], name: str, target: str) -> None:
    """Link `name` to `target`, which is copied up first where only a lower layer has it."""
    head, _, last = target.rpartition("/")
    if not _exists(root, target):
        below = lookup(lowers, target)
        if below is None or stat.S_ISDIR(os.lstat(below).st_mode):
            raise BadInput(
                f"entry {name!r}: a hard link to {target!r}, which is no file of this layer or of "
                "one below"
            )
        _make_parents(root, lowers, head)
        with _opened(root, head) as into:
            status = os.stat(into)
            copy_up(below, f"{into}/{last}")
            os.utime(into, ns=(status.st_atime_ns, status.st_mtime_ns))
    folder, _, first = name.rpartition("/")
    with _opened(root, head) as source, _opened(root, folder) as into:
        status = os.stat(into)
        try:
            os.link(f"{source}/{last}", f"{into}/{first}", follow_symlinks=False)
        except FileExistsError:
            pass  # a later entry of the same name took its place
        os.utime(into, ns=(status.st_atime_ns, status.st_mtime_ns))


def _exists(root: int, path: str) -> bool:
    try:
        os.close(open_in_root(root, path, const.O_PATH | os.O_NOFOLLOW))
    except KernelError as error:
        if error.errno in (2, 20, 40):  # ENOENT, ENOTDIR, ELOOP
            return False
        raise
    return True


def _make_parents(root: int, lowers: list[str], path: str) -> None:
    """Make what is missing of directory `path`, like the directories below."""
    walked = ""
    for part in filter(None, path.split("/")):
        parent, walked = walked, f"{walked}/{part}".lstrip("/")
        try:
            os.close(open_in_root(root, walked, const.O_PATH | os.O_DIRECTORY))
        except KernelError as error:
            if error.errno != 2:
                raise
            with _opened(root, parent) as at:
                status = os.stat(at)
                os.mkdir(f"{at}/{part}", 0o755)
                below = _directory(lowers, walked)
                if below is not None:
                    copy_attributes(below, f"{at}/{part}")
                os.utime(at, ns=(status.st_atime_ns, status.st_mtime_ns))


def copy_up(source: str, target: str) -> None:
    """Copy anything but a directory, with all its attributes, as overlayfs does before a write."""
    status = os.lstat(source)
    if stat.S_ISREG(status.st_mode):
        from shutil import copyfile

        copyfile(source, target, follow_symlinks=False)
    elif stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(source), target)
    else:
        os.mknod(target, status.st_mode, status.st_rdev)
    copy_attributes(source, target)
