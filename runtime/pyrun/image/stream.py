"""From a compressed layer to its bytes: read, hash, decompress, hash again, each in its thread.

An image names a layer twice: the manifest by the digest of the blob as it travels, the config by
the digest of the tar inside (the diff_id). Both are computed while the bytes pass once. hashlib,
isal and zstandard give the GIL away while they work, so threads of one process use all cores.

Which compression it is the first bytes say; media types are known to lie.
"""

from __future__ import annotations

import os

from pyrun.errors import BadInput, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

CHUNK = 1 << 18
"""Measured: below, handing chunks from thread to thread is felt; above, the caches miss."""
QUEUE = 16

GZIP = b"\x1f\x8b"
ZSTD = b"\x28\xb5\x2f\xfd"
FOREIGN = {b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x04\x22\x4d\x18": "lz4"}


class Source:
    """`size` bytes of a file from `offset` on, or all there is where `size` is None.

    Everything read goes through a hash, and into the file `copy` where there is one.
    """

    def __init__(
        self,
        fd: int,
        offset: int = 0,
        size: int | None = None,
        *,
        copy: int = -1,
        hash_: Any = None,
    ) -> None:
        self.fd = fd
        self.offset = offset
        self.size = size
        self.done = 0
        self.copy = copy
        self.hash = hash_
        self._ahead = b""

    def read(self, count: int = CHUNK) -> bytes:
        """At most `count` bytes; none at the end. Raises BadInput where the file is shorter."""
        if self._ahead:
            data, self._ahead = self._ahead[:count], self._ahead[count:]
            return data
        if self.size is None:
            data = os.read(self.fd, count)
        else:
            count = min(count, self.size - self.done)
            data = os.pread(self.fd, count, self.offset + self.done) if count else b""
            if count and not data:
                raise BadInput(f"it is {self.done} bytes long, not {self.size}: truncated")
        self.done += len(data)
        if self.hash is not None:
            self.hash.update(data)
        if self.copy >= 0:
            write_all(self.copy, data)
        return data

    def unread(self, data: bytes) -> None:
        self._ahead = data + self._ahead

    def peek(self) -> bytes:
        """The first bytes, which the next read() returns again."""
        while len(self._ahead) < 512:
            ahead = self._ahead
            self._ahead = b""
            data = self.read(CHUNK)
            self._ahead = ahead + data
            if not data:
                break
        return self._ahead


def decompress(source: Source) -> Iterator[bytes]:
    """The content of `source` in chunks of bounded size, whatever it is compressed with.

    Raises BadInput for damaged or truncated data, Unsupported for formats images do not use.
    """
    head = source.peek()
    if head.startswith(GZIP):
        return _gunzip(source)
    # Skippable frames, 0x184D2A50 to 0x184D2A5F, may come before the first real one.
    if head.startswith(ZSTD) or (head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5):
        return _unzstd(source)
    for magic, name in FOREIGN.items():
        if head.startswith(magic):
            raise Unsupported(
                f"it is compressed with {name}",
                hint=f"decompress it first: image layers are plain, gzip or zstd, not {name}",
            )
    return _plain(source)


def _plain(source: Source) -> Iterator[bytes]:
    while data := source.read():
        yield data


def _gunzip(source: Source) -> Iterator[bytes]:
    """gzip, of any number of members; zeros after the last one are padding (tapes had it)."""
    from isal import igzip_lib

    damage: type[Exception] = igzip_lib.IsalError  # type: ignore[assignment]  # isal's stub errs
    while True:
        member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        data = b""
        while not member.eof:
            if member.needs_input:
                data = source.read()
                if not data:
                    raise BadInput("the gzip stream ends too early: truncated")
            try:
                out = member.decompress(data, CHUNK)
            except damage as error:
                raise BadInput(f"the gzip stream is damaged: {error}") from None
            data = b""
            if out:
                yield out
        rest = member.unused_data.lstrip(b"\0")
        while not rest:
            data = source.read()
            if not data:
                return
            rest = data.lstrip(b"\0")
        while len(rest) < 2 and (data := source.read()):
            rest += data
        if not rest.startswith(GZIP):
            raise BadInput("there is something after the gzip stream that is no gzip")
        source.unread(rest)


def _unzstd(source: Source) -> Iterator[bytes]:
    import zstandard

    # 128 MiB of window is what `zstd --long` makes. The reader, unlike zstandard's decompressobj,
    # bounds its output: a kilobyte of zstd can mean 32 MB. It ends silently where the last frame
    # is cut, which the digests show, and the missing end mark of the tar.
    limited = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    reader = limited.stream_reader(source, read_size=CHUNK, read_across_frames=True)  # type: ignore[arg-type]
    try:
        while data := reader.read(CHUNK):
            yield data
    except zstandard.ZstdError as error:
        raise BadInput(f"the zstd stream is damaged: {error}") from None


class Flow:
    """Decompresses `source` in one thread and hashes the result in another; the caller parses.

    The threads are daemons: a worker process that gives up just exits.
    """

    def __init__(self, source: Source, algorithm: str = "sha256") -> None:
        import hashlib
        from queue import Queue
        from threading import Thread

        self.hash = hashlib.new(algorithm)
        self.size = 0
        self._to_parser: Queue[bytes | BaseException] = Queue(QUEUE)
        self._to_hash: Queue[bytes] = Queue(QUEUE)
        self._source = source
        self._ended = False
        Thread(target=self._decompress, daemon=True).start()
        self._hasher = Thread(target=self._digest, daemon=True)
        self._hasher.start()

    def next_chunk(self) -> bytes:
        """The next bytes of the tar, none at the end. Raises what the decompression raised."""
        if self._ended:
            return b""
        chunk = self._to_parser.get()
        if isinstance(chunk, BaseException):
            raise chunk
        self.size += len(chunk)
        self._ended = not chunk
        return chunk

    def finish(self) -> str:
        """Read to the end, past the tar's own end mark, and return the digest of everything."""
        while self.next_chunk():
            pass
        self._hasher.join()
        return f"{self.hash.name}:{self.hash.hexdigest()}"

    def _decompress(self) -> None:
        try:
            for chunk in decompress(self._source):
                self._to_hash.put(chunk)
                self._to_parser.put(chunk)
            # What the decompressor did not need still counts for the digest of the blob.
            while self._source.read():
                pass
            self._to_parser.put(b"")
        except BaseException as error:
            self._to_parser.put(error)
        self._to_hash.put(b"")

    def _digest(self) -> None:
        while chunk := self._to_hash.get():
            self.hash.update(chunk)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """write(2) until all of `data` is written: the kernel may take less at once."""
    written = os.write(fd, data)
    while written < len(data):
        data = data[written:]
        written = os.write(fd, data)
