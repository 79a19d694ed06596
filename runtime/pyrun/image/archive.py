"""Where an image to load comes from: a directory, or a tar with the same files inside.

Both answer one question: where are the bytes of this name? A layout directory has files; a tar
that can be seeked in has offsets, found in one pass over its headers without reading contents.
What comes compressed or from a pipe is first written out as a plain tar in the work directory.
"""

from __future__ import annotations

import os
import stat

from pyrun.errors import BadInput, KernelError, NotFound
from pyrun.image import tar
from pyrun.image.blame import prefix
from pyrun.image.manifest import LARGEST
from pyrun.image.names import clean
from pyrun.image.stream import CHUNK, Source, decompress, write_all
from pyrun.kernel.files import open_in_root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyrun.image.work import Work

STDIN = "-"
MOST_HOPS = 8


class Place:
    """`size` bytes at `offset` of the open file `fd`."""

    __slots__ = ("fd", "offset", "size")

    def __init__(self, fd: int, offset: int, size: int) -> None:
        self.fd = fd
        self.offset = offset
        self.size = size


class Directory:
    """An OCI image layout, or an unpacked docker-archive."""

    def __init__(self, path: str) -> None:
        self.root = os.open(path, os.O_DIRECTORY | os.O_RDONLY | os.O_CLOEXEC)
        self._open: dict[str, Place] = {}

    def find(self, name: str) -> Place | None:
        if name not in self._open:
            try:
                # O_NONBLOCK: a FIFO with the name of a blob must not stop us here.
                fd = open_in_root(self.root, name, os.O_RDONLY | os.O_NONBLOCK)
            except KernelError as error:
                if error.errno in (2, 20):
                    return None
                raise
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                os.close(fd)
                return None
            self._open[name] = Place(fd, 0, status.st_size)
        return self._open[name]

    def close(self) -> None:
        os.close(self.root)
        for place in self._open.values():
            os.close(place.fd)


class Archive:
    """The same inside a plain tar file that can be seeked in."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._files: dict[bytes, Place] = {}
        self._links: dict[bytes, bytes] = {}
        length = os.fstat(fd).st_size
        reader = _Index(fd, length)
        try:
            for entry in reader:
                name = clean(entry.name)
                self._files.pop(name, None)
                self._links.pop(name, None)
                if entry.kind == tar.REGULAR:
                    self._files[name] = Place(fd, reader.position, entry.size)
                elif entry.kind == tar.HARD_LINK:
                    self._links[name] = clean(entry.target)
                elif entry.kind == tar.SYMLINK:
                    self._links[name] = clean(name.rpartition(b"/")[0] + b"/" + entry.target)
        except BadInput as error:
            if reader.name:
                prefix(error, f"entry {os.fsdecode(reader.name)!r} of the archive")
            raise

    def find(self, name: str) -> Place | None:
        key = clean(os.fsencode(name))
        for _ in range(MOST_HOPS):
            if key not in self._links:
                break
            key = self._links[key]
        return self._files.get(key)

    def close(self) -> None:
        os.close(self.fd)


class _Index(tar.Reader):
    """Reads headers, and seeks over the contents."""

    def __init__(self, fd: int, length: int) -> None:
        super().__init__(self._read)
        self._fd = fd
        self._length = length
        self._next = 0

    @property
    def position(self) -> int:
        return self._next - (len(self._chunk) - self._at)

    def _read(self) -> bytes:
        data = os.pread(self._fd, 8192, self._next)
        self._next += len(data)
        return data

    def _skip(self, count: int) -> None:
        have = len(self._chunk) - self._at
        if count <= have:
            self._at += count
            return
        self._next += count - have
        self._chunk = b""
        self._at = 0
        if self._next > self._length:
            raise BadInput("the archive ends in the middle of it: truncated")


Input = Directory | Archive


def open_input(source: str, work: Work) -> Input:
    """Open a layout directory, a tar file, or stdin. Raises NotFound, BadInput."""
    if source == STDIN:
        return Archive(_spool(0, work))
    if os.path.isdir(source):
        return Directory(source)
    fd = open_file(source)
    head = os.pread(fd, tar.BLOCK, 0)
    if stat.S_ISREG(os.fstat(fd).st_mode) and head[257:262] == b"ustar":
        return Archive(fd)
    try:
        return Archive(_spool(fd, work))
    finally:
        os.close(fd)


def open_file(source: str) -> int:
    try:
        return os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NotFound(
            f"cannot open {source!r}: {error.strerror}",
            hint="give a layout directory, an archive, or - for standard input",
        ) from error


def _spool(fd: int, work: Work) -> int:
    """Write what `fd` gives, decompressed, into a nameless file of the work directory."""
    spool = os.open(work.path, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    guard = SpaceGuard(work.path)
    for chunk in decompress(Source(fd)):
        guard.spend(len(chunk))
        write_all(spool, chunk)
    if not os.fstat(spool).st_size:
        raise BadInput("the archive is empty")
    return spool


class SpaceGuard:
    """Stops a writer before it fills the disk: a kilobyte of gzip can mean a megabyte, or more.

    What must stay free is an eighth of what there is, at most 256 MiB: rm and prune need a little
    themselves.
    """

    STEP = 32 << 20

    def __init__(self, path: str) -> None:
        self.path = path
        self.written = 0
        self._until_check = 0
        self._reserve: int | None = None

    def spend(self, count: int) -> bool:
        """Called before `count` bytes are written. True when it has just looked at the disk."""
        self.written += count
        self._until_check -= count
        if self._until_check > 0:
            return False
        self._until_check = self.STEP
        status = os.statvfs(self.path)
        free = status.f_bavail * status.f_frsize
        if self._reserve is None:
            self._reserve = min(free // 8, 256 << 20)
        if free < self._reserve + CHUNK or (status.f_files and status.f_favail < 64):
            raise BadInput(
                f"no room: {self.written >> 20} MiB were unpacked and the disk is nearly full",
                hint="`pyrun image rm` frees space; `df -h` and `df -i` show how much there is",
            )
        return True


def read_json(place: Place, what: str) -> bytes:
    """All bytes of a small blob. Raises BadInput where it is not small, or truncated."""
    if place.size > LARGEST:
        raise BadInput(f"{what} has {place.size} bytes; at most {LARGEST} are taken")
    data = os.pread(place.fd, place.size, place.offset)
    if len(data) != place.size:
        raise BadInput(f"{what} is {len(data)} bytes long, not {place.size}: truncated")
    return data
