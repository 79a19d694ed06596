"""From a layer's tar to a directory that overlayfs can use as a lower layer.

A layer says what to delete below with names of its own: `.wh.X` (a whiteout) and `.wh..wh..opq`
(the directory is opaque). Overlayfs says the same with a character device 0/0 and with the xattr
trusted.overlay.opaque, so that is what is made of them here.

An archive is untrusted input, unpacked by root. Three rules keep everything inside:
- a name is resolved by openat2(2) with RESOLVE_IN_ROOT, for which the layer's directory is `/`;
- the last component is created with O_EXCL | O_NOFOLLOW or a call that never follows links;
- a descriptor kept for the next entry is forgotten as soon as any name was replaced.

Which parents were never listed, and which hard links point into lower layers, is only written
down (`Facts`): `settle.py` looks into the lower layers, this file knows one layer alone.
"""

from __future__ import annotations

import os
import stat

from pyrun.errors import BadInput, KernelError, errno_text
from pyrun.explain.steps import likely_cause
from pyrun.image import tar
from pyrun.image.attributes import (
    OPAQUE_XATTR,
    is_whiteout,
    path_at,
    remove_whiteouts,
    set_xattrs,
    write_sparse,
)
from pyrun.image.blame import prefix
from pyrun.image.heal import content_size
from pyrun.image.names import clean
from pyrun.image.stream import write_all
from pyrun.kernel import const
from pyrun.kernel.files import open_in_root, remove_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

WHITEOUT = b".wh."
OPAQUE_MARK = b".wh..wh..opq"
AUFS_MARK = b".wh..wh."

CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
DIRECTORY = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
O_PATH_DIRECTORY = const.O_PATH | os.O_DIRECTORY
MOST_OPEN = 200
"""Directory descriptors kept open; ulimit -n is 1024 on most systems."""
MOST_LINKS = 40

EEXIST, ENOENT, ENOTDIR = 17, 2, 20


class Facts:
    """What `settle.py` must know, beyond the files.

    implicit       directories that are there only because something in them is
    whiteout_dirs  directories with whiteouts in them
    links          hard links whose target this layer does not have: [name, target]
    opaque_root    the layer hides everything below
    """

    __slots__ = ("implicit", "links", "opaque_root", "size", "whiteout_dirs")

    def __init__(self) -> None:
        self.implicit: dict[bytes, None] = {b"": None}
        self.whiteout_dirs: dict[bytes, None] = {}
        self.links: list[tuple[bytes, bytes]] = []
        self.opaque_root = False
        self.size = 0

    def as_json(self) -> dict[str, Any]:
        return {
            "implicit": [os.fsdecode(path) for path in self.implicit],
            "whiteout_dirs": [os.fsdecode(path) for path in self.whiteout_dirs],
            "links": [[os.fsdecode(name), os.fsdecode(target)] for name, target in self.links],
            "opaque_root": self.opaque_root,
            "size": self.size,
        }


def unpack(reader: tar.Reader, root: int) -> Facts:
    """Make every entry of `reader` beneath the directory `root`, which is new and empty.

    Set umask 0 before: modes are given to open(2) and mkdir(2). Raises BadInput with the entry's
    name and the reason.
    """
    unpacker = Unpacker(root)
    try:
        for entry in reader:
            unpacker.add(entry, reader)
        reader.name = b""
        unpacker.finish()
    except BadInput as error:
        if reader.name:
            prefix(error, f"entry {os.fsdecode(reader.name)!r}")
        raise
    except OSError as error:
        call = f"{error.call}: " if isinstance(error, KernelError) else ""
        raise BadInput(
            f"entry {os.fsdecode(reader.name)!r}: {call}{errno_text(error.errno or 0)}",
            hint=likely_cause(error),
        ) from error
    finally:
        unpacker.forget()
    return unpacker.facts


class Unpacker:
    """The state of unpacking one layer below the directory descriptor `root`."""

    def __init__(self, root: int) -> None:
        self.root = root
        self._root_path = os.readlink(b"/proc/self/fd/%d" % root)
        self.facts = Facts()
        self._parents: dict[bytes, int] = {}
        # Creating a name changes its directory's mtime, so directories get theirs last of all.
        self._times: dict[bytes, tuple[int, int]] = {b"": (0, 0)}
        self._opaque: set[bytes] = set()
        self._make = {
            tar.REGULAR: self._regular,
            tar.HARD_LINK: self._hard_link,
            tar.SYMLINK: self._symlink,
            tar.CHARACTER: self._device,
            tar.BLOCK_DEVICE: self._device,
            tar.DIRECTORY: self._directory,
            tar.FIFO: self._fifo,
        }

    def add(self, entry: tar.Entry, reader: tar.Reader) -> None:
        path = clean(entry.name)
        head, _, name = path.rpartition(b"/")
        if name.startswith(WHITEOUT):
            self._whiteout(head, name)
            return
        make = self._make.get(entry.kind)
        if make is None:
            if entry.kind == tar.GNU_VOLUME:
                return
            raise BadInput(f"an entry of type {chr(entry.kind)!r}, which layers cannot have")
        if not name:
            if entry.kind != tar.DIRECTORY:
                raise BadInput("the root of the layer is no directory")
            self._root(entry)
            return
        parent = self._parents.get(head)
        if parent is None:
            parent = self._open_parent(head)
        try:
            make(entry, parent, name, path, reader)
        except OSError as error:
            if error.errno != EEXIST:
                raise
            self._replace(parent, name, path, entry)
            # The descriptors are gone with it: one of them may have been below the old name.
            make(entry, self._open_parent(head), name, path, reader)

    def finish(self) -> None:
        """What can be done only when all names are there: times of directories, ghosts."""
        for path in self._opaque:
            self._remove_whiteouts(path)
        for path, times in self._times.items():
            try:
                fd = open_in_root(self.root, path or b".", const.O_PATH | DIRECTORY)
            except KernelError as error:
                if error.errno in (ENOENT, ENOTDIR):
                    continue  # replaced by something else under another of its names
                raise
            os.utime(f"/proc/self/fd/{fd}", ns=times)
            os.close(fd)

    def forget(self) -> None:
        for fd in self._parents.values():
            os.close(fd)
        self._parents.clear()

    # Kinds of entries. Owner before mode (chown takes setuid away), mode before xattrs (and file
    # capabilities with it), times last.

    def _regular(
        self, entry: tar.Entry, parent: int, name: bytes, path: bytes, reader: tar.Reader
    ) -> None:
        fd = os.open(name, CREATE, entry.mode, dir_fd=parent)
        try:
            if entry.segments is None:
                for piece in reader.content():
                    write_all(fd, piece)
            else:
                write_sparse(fd, entry, reader)
            self.facts.size += entry.size
            if entry.uid or entry.gid:
                os.fchown(fd, entry.uid, entry.gid)
            if entry.mode & 0o7000:
                os.fchmod(fd, entry.mode)
            if entry.xattrs:
                set_xattrs(fd, entry.xattrs, follow=True)
            atime = entry.mtime if entry.atime is None else entry.atime
            os.utime(fd, ns=(atime, entry.mtime))
        finally:
            os.close(fd)

    def _directory(
        self, entry: tar.Entry, parent: int, name: bytes, path: bytes, reader: tar.Reader
    ) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(path_at(parent, name)).st_mode):
                raise
        self.facts.implicit.pop(path, None)
        self._directory_attributes(entry, path_at(parent, name), path)

    def _root(self, entry: tar.Entry) -> None:
        self.facts.implicit.pop(b"", None)
        self._directory_attributes(entry, b"/proc/self/fd/%d/." % self.root, b"")

    def _directory_attributes(self, entry: tar.Entry, at: bytes, path: bytes) -> None:
        os.chown(at, entry.uid, entry.gid, follow_symlinks=False)
        os.chmod(at, entry.mode)
        if entry.xattrs:
            set_xattrs(at, entry.xattrs, follow=False)
        self._times[path] = (entry.mtime if entry.atime is None else entry.atime, entry.mtime)

    def _hard_link(
        self, entry: tar.Entry, parent: int, name: bytes, path: bytes, reader: tar.Reader
    ) -> None:
        target = clean(entry.target)
        if target == path:
            raise BadInput("a hard link to itself")
        head, _, last = target.rpartition(b"/")
        if not last or last.startswith(WHITEOUT):
            raise BadInput(f"a hard link to {os.fsdecode(entry.target)!r}")
        try:
            source = self._parents.get(head)
            if source is None:
                source = self._open(head)
            found = os.lstat(path_at(source, last))
            if stat.S_ISDIR(found.st_mode) or is_whiteout(found):
                raise BadInput(f"a hard link to {os.fsdecode(target)!r}, which is no file")
            os.link(last, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (ENOENT, ENOTDIR):
                raise
            if os.path.lexists(path_at(parent, name)):
                raise FileExistsError(EEXIST, "") from None
            self.facts.links.append((self._real(parent, name), target))

    def _symlink(
        self, entry: tar.Entry, parent: int, name: bytes, path: bytes, reader: tar.Reader
    ) -> None:
        if not entry.target or b"\0" in entry.target:
            raise BadInput("a symbolic link without a target")
        os.symlink(entry.target, name, dir_fd=parent)
        self._attributes(entry, parent, name)

    def _device(
        self, entry: tar.Entry, parent: int, name: bytes, path: bytes, reader: tar.Reader
    ) -> None:
        kind = stat.S_IFCHR if entry.kind == tar.CHARACTER else stat.S_IFBLK
        os.mknod(name, kind | entry.mode, os.makedev(*entry.device), dir_fd=parent)
        self._attributes(entry, parent, name)

    def _fifo(
        self, entry: tar.Entry, parent: int, name: bytes, path: bytes, reader: tar.Reader
    ) -> None:
        os.mkfifo(name, entry.mode, dir_fd=parent)
        self._attributes(entry, parent, name)

    def _attributes(self, entry: tar.Entry, parent: int, name: bytes) -> None:
        if entry.uid or entry.gid:
            os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        if entry.mode & 0o7000 and entry.kind != tar.SYMLINK:
            os.chmod(name, entry.mode, dir_fd=parent)
        if entry.xattrs:
            set_xattrs(path_at(parent, name), entry.xattrs, follow=False)
        atime = entry.mtime if entry.atime is None else entry.atime
        os.utime(name, ns=(atime, entry.mtime), dir_fd=parent, follow_symlinks=False)

    # Whiteouts

    def _whiteout(self, head: bytes, name: bytes) -> None:
        if name == OPAQUE_MARK:
            self._make_opaque(head)
            return
        if name.startswith(AUFS_MARK):
            return  # bookkeeping of aufs, which docker once used
        hidden = name[len(WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise BadInput("a whiteout that names nothing")
        parent = self._open_parent(head)
        path = self._real(parent, hidden)
        try:
            os.mknod(hidden, stat.S_IFCHR, os.makedev(0, 0), dir_fd=parent)
            self.facts.whiteout_dirs[path.rpartition(b"/")[0]] = None
        except FileExistsError:
            # A whiteout speaks of the layers below only. What this layer itself has under the
            # name stays: a file hides the lower one anyway, a directory must not be merged.
            if stat.S_ISDIR(os.lstat(path_at(parent, hidden)).st_mode):
                self._make_opaque(path)

    def _make_opaque(self, path: bytes) -> None:
        if not path:
            # Overlayfs ignores the mark on the root: the list of lower directories ends here.
            self.facts.opaque_root = True
        else:
            directory = self._open_parent(path)
            os.setxattr(f"/proc/self/fd/{directory}", OPAQUE_XATTR, b"y")
            path = self._real(directory, b"")
        self._opaque.add(path)

    def _remove_whiteouts(self, path: bytes) -> None:
        """Nothing shows through an opaque directory, so whiteouts in it hide nothing.

        Overlayfs would even show them: it looks for whiteouts only where it merges directories,
        and lists such a one as a name without a file.
        """
        try:
            fd = open_in_root(self.root, path or b".", os.O_RDONLY | DIRECTORY)
        except KernelError as error:
            if error.errno in (ENOENT, ENOTDIR):
                return
            raise
        remove_whiteouts(fd)
        os.close(fd)
        self.facts.whiteout_dirs.pop(path, None)

    # Names

    def _replace(self, parent: int, name: bytes, path: bytes, entry: tar.Entry) -> None:
        """Make room for an entry whose name is taken. The later entry of a name counts."""
        old = os.lstat(path_at(parent, name))
        if stat.S_ISDIR(old.st_mode):
            self.facts.size -= content_size(os.fsdecode(path_at(parent, name)))
            remove_tree(os.fsdecode(path_at(parent, name)))
            for known in (self._times, self.facts.implicit, self.facts.whiteout_dirs):
                for below in [p for p in known if p == path or p.startswith(path + b"/")]:
                    del known[below]
        else:
            if stat.S_ISREG(old.st_mode) and old.st_nlink == 1:
                self.facts.size -= old.st_size
            os.unlink(name, dir_fd=parent)
            if is_whiteout(old) and entry.kind == tar.DIRECTORY:
                os.mkdir(name, 0o700, dir_fd=parent)
                os.setxattr(path_at(parent, name), OPAQUE_XATTR, b"y")
                self._opaque.add(path)
        self.forget()

    def _open(self, path: bytes) -> int:
        """The directory `path`, links followed inside the root, kept open for the next entries."""
        fd = self._parents.get(path)
        if fd is None:
            fd = open_in_root(self.root, path or b".", O_PATH_DIRECTORY)
            if len(self._parents) >= MOST_OPEN:
                os.close(self._parents.pop(next(iter(self._parents))))
            self._parents[path] = fd
        return fd

    def _open_parent(self, path: bytes) -> int:
        """Like _open, but what is missing of `path` is made first."""
        try:
            return self._open(path)
        except KernelError as error:
            if error.errno not in (ENOENT, ENOTDIR):
                raise
        self._make_parents(path)
        return self._open(path)

    def _make_parents(self, path: bytes) -> None:
        """Walk to `path` by hand, following links inside the root, and make what is missing."""
        todo = path.split(b"/")[::-1]
        here: list[bytes] = []  # where we are, without links
        links = 0
        while todo:
            part = todo.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                here = here[:-1]
                continue
            if part.startswith(WHITEOUT):
                raise BadInput("a name below a whiteout")
            real = b"/".join([*here, part])
            at = path_at(self._open(b"/".join(here)), part)
            try:
                found = os.lstat(at)
            except FileNotFoundError:
                self._make_implicit(at, real)
                here.append(part)
                continue
            if stat.S_ISDIR(found.st_mode):
                here.append(part)
            elif stat.S_ISLNK(found.st_mode):
                links += 1
                target = os.readlink(at)
                if links > MOST_LINKS:
                    raise BadInput("its parent directory is a link that leads in circles")
                if target.startswith(b"/"):
                    here = []
                todo.extend(target.split(b"/")[::-1])
            elif is_whiteout(found):
                os.unlink(at)
                self._make_implicit(at, real)
                self._make_opaque(real)
                here.append(part)
            else:
                raise BadInput(f"its parent {os.fsdecode(real)!r} is no directory")

    def _real(self, directory: int, name: bytes) -> bytes:
        """The path of `name` in an open directory as it is without links, from the root."""
        path = os.readlink(b"/proc/self/fd/%d" % directory)[len(self._root_path) :]
        return (path + b"/" + name).strip(b"/")

    def _make_implicit(self, at: bytes, real: bytes) -> None:
        os.mkdir(at, 0o755)
        self.facts.implicit[real] = None
        self._times[real] = (0, 0)
