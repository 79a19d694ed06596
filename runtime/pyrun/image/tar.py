"""Reading a tar stream: ustar, PAX and GNU headers become entries, in one pass, forward only.

A tar is a row of 512-byte headers, each followed by its file's content. What does not fit a header
comes in an entry before it: PAX records (`x`, and `g` for all that follow) or GNU's long names
(`L`, `K`). The standard library's tarfile decodes PAX values to text, which destroys file
capabilities and other binary attributes; here names and values stay bytes, as the kernel has them.

Format: POSIX pax(1), GNU tar manual "Tar Internals". Nothing is written here: see `unpack.py`.
"""

from __future__ import annotations

import struct
from functools import lru_cache

from pyrun.errors import BadInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BLOCK = 512
LONGEST_HEADER = 1 << 20
"""A PAX header or long name of more bytes is an attack on memory: Linux names have 4096."""
MOST_SEGMENTS = 1 << 20

REGULAR, HARD_LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = b"0123456"
CONTIGUOUS = ord("7")
PAX, PAX_GLOBAL, GNU_NAME, GNU_LINK, GNU_SPARSE, GNU_VOLUME = b"xgLKSV"

_HEADER = struct.Struct("100s8s8s8s12s12s8sB100s8s32s32s8s8s155s12s")
_SPARSE_IN_HEADER, _SPARSE_IN_EXTENSION = 4, 21


class Entry:
    """One thing of the archive. `kind` is a type flag; `name` and `target` are raw.

    size      length of the file as a reader of it sees it, holes included
    mtime     nanoseconds since 1970, may be negative; `atime` is None where none was given
    segments  of a sparse file: (offset, length) of what is stored; None for ordinary files
    """

    __slots__ = (
        "atime", "device", "gid", "kind", "mode", "mtime", "name",
        "segments", "size", "target", "uid", "xattrs",
    )  # fmt: skip

    name: bytes
    kind: int
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    atime: int | None
    target: bytes
    device: tuple[int, int]
    xattrs: dict[bytes, bytes]
    segments: list[tuple[int, int]] | None


class Reader:
    """Entries of the tar whose bytes `next_chunk` returns, empty bytes meaning the end.

    Iterate over it; between two entries `content()` gives the bytes of the last one. Raises
    BadInput with the reason alone: the caller knows the layer, `name` says the entry.
    """

    def __init__(self, next_chunk: Callable[[], bytes]) -> None:
        self._next_chunk = next_chunk
        self._chunk = b""
        self._at = 0
        self._left = 0  # bytes of the current entry's content not read yet
        self._padding = 0
        self._global: dict[bytes, bytes] = {}
        self.name = b""
        self.ended = False  # whether the archive's end mark was seen

    def __iter__(self) -> Iterator[Entry]:
        while True:
            self._skip(self._left + self._padding)
            self._left = self._padding = 0
            self.name = b""
            entry = self._entry()
            if entry is None:
                return
            yield entry

    def content(self) -> Iterator[memoryview]:
        """What is stored of the current entry's content and has not been read yet."""
        while self._left:
            if self._at == len(self._chunk):
                self._refill()
            piece = memoryview(self._chunk)[self._at : self._at + self._left]
            self._at += len(piece)
            self._left -= len(piece)
            yield piece

    # The stream

    def _refill(self) -> None:
        self._chunk = self._next_chunk()
        self._at = 0
        if not self._chunk:
            raise BadInput("the archive ends in the middle of it: truncated")

    def _take(self, count: int) -> bytes:
        end = self._at + count
        if end <= len(self._chunk):
            taken = self._chunk[self._at : end]
            self._at = end
            return taken
        parts = []
        while count:
            if self._at == len(self._chunk):
                self._refill()
            part = self._chunk[self._at : self._at + count]
            self._at += len(part)
            count -= len(part)
            parts.append(part)
        return b"".join(parts)

    def _skip(self, count: int) -> None:
        while count:
            if self._at == len(self._chunk):
                self._refill()
            step = min(count, len(self._chunk) - self._at)
            self._at += step
            count -= step

    def _header(self) -> bytes | None:
        """The next header block; None at the end of the archive, marked by a block of zeros.

        Archives that just stop after an entry are read as well: some tools write no end mark.
        """
        if self._at == len(self._chunk):
            self._chunk = self._next_chunk()
            self._at = 0
            if not self._chunk:
                return None
        block = self._take(BLOCK)
        if block == bytes(BLOCK):
            self.ended = True
            return None
        return block

    # Headers

    def _entry(self) -> Entry | None:
        pax: dict[bytes, bytes] = {}
        sparse_map: list[bytes] = []
        long_name = long_target = None
        while True:
            block = self._header()
            if block is None:
                if pax or long_name is not None or long_target is not None:
                    raise BadInput("the archive ends after an extended header: truncated")
                return None
            fields = _HEADER.unpack(block)
            _check_sum(block, fields[6])
            kind: int = fields[7]
            if kind not in b"xgLKV":
                break
            size = _number(fields[4])
            if size > LONGEST_HEADER:
                raise BadInput(f"an extended header of {size} bytes; at most 1 MiB is taken")
            data = self._take(size)
            self._skip(-size % BLOCK)
            if kind == PAX:
                pax.update(_records(data, sparse_map))
            elif kind == PAX_GLOBAL:
                self._global.update(_records(data, []))
            elif kind == GNU_NAME:
                long_name = data.partition(b"\0")[0]
            elif kind == GNU_LINK:
                long_target = data.partition(b"\0")[0]
        pax = {**self._global, **pax}
        return self._finish(block, fields, pax, sparse_map, long_name, long_target)

    def _finish(
        self,
        block: bytes,
        fields: tuple[bytes, ...],
        pax: dict[bytes, bytes],
        sparse_map: list[bytes],
        long_name: bytes | None,
        long_target: bytes | None,
    ) -> Entry:
        (name, mode, uid, gid, size, mtime, _, _, target, magic, _, _, major, minor, prefix,
         rest) = fields  # fmt: skip
        entry = Entry()
        entry.name = name.partition(b"\0")[0]
        # Only POSIX ustar has a prefix; GNU (magic "ustar  ") keeps other things at its place.
        if magic[:6] == b"ustar\0" and prefix[0]:
            if rest[8:] == b"tar\0":  # star shortens it for two more times
                prefix = prefix[:131]
            entry.name = prefix.partition(b"\0")[0] + b"/" + entry.name
        if long_name is not None:
            entry.name = long_name
        self.name = entry.name
        entry.kind = kind = block[156]
        entry.mode = _number(mode) & 0o7777
        entry.uid = _number(uid)
        entry.gid = _number(gid)
        entry.mtime = _number(mtime) * 1_000_000_000
        entry.atime = None
        entry.size = stored = _number(size)
        entry.target = target.partition(b"\0")[0] if long_target is None else long_target
        entry.xattrs = {}
        entry.segments = None
        if pax:
            stored = self._apply(entry, pax, stored)
        if kind == 0 or kind == CONTIGUOUS:
            # Before POSIX a directory was a file whose name ends in a slash.
            entry.kind = kind = DIRECTORY if entry.name.endswith(b"/") else REGULAR
        if kind in (CHARACTER, BLOCK_DEVICE):
            entry.device = (_number(major), _number(minor))
        if kind not in (REGULAR, GNU_SPARSE):
            # The size field of the others means nothing: tars of hard links fill it in.
            stored = entry.size = 0
        if stored < 0 or entry.uid < 0 or entry.gid < 0:
            raise BadInput("a negative size, uid or gid")
        self._left = stored
        self._padding = -stored % BLOCK
        if kind == GNU_SPARSE:
            entry.kind = REGULAR
            entry.size, entry.segments = self._old_gnu_sparse(block)
            _check_segments(entry, self._left)
        elif kind == REGULAR and (sparse_map or b"GNU.sparse.major" in pax
                                  or b"GNU.sparse.map" in pax):  # fmt: skip
            self._pax_sparse(entry, pax, sparse_map)
            _check_segments(entry, self._left)
        return entry

    def _apply(self, entry: Entry, pax: dict[bytes, bytes], stored: int) -> int:
        """What PAX records say instead of the header. Returns the stored size."""
        for key, value in pax.items():
            if key.startswith(b"SCHILY.xattr."):
                entry.xattrs[key[13:]] = value
            elif key.startswith(b"LIBARCHIVE.xattr."):
                from base64 import b64decode
                from urllib.parse import unquote_to_bytes

                # star's record, where both are present, has the value as it is.
                name = unquote_to_bytes(key[17:])
                padded = value + b"=" * (-len(value) % 4)
                try:
                    entry.xattrs.setdefault(name, b64decode(padded, validate=True))
                except ValueError:
                    raise BadInput(f"PAX record {key!r} is no base64") from None
            elif not value:
                continue  # an empty value takes a global record back
            elif key == b"path":
                entry.name = self.name = value
            elif key == b"linkpath":
                entry.target = value
            elif key == b"size":
                entry.size = stored = _decimal(key, value)
            elif key == b"uid":
                entry.uid = _decimal(key, value)
            elif key == b"gid":
                entry.gid = _decimal(key, value)
            elif key == b"mtime":
                entry.mtime = _nanoseconds(key, value)
            elif key == b"atime":
                entry.atime = _nanoseconds(key, value)
        if b"GNU.sparse.name" in pax:
            entry.name = self.name = pax[b"GNU.sparse.name"]
        return stored

    # Sparse files: which parts of a file are stored, in GNU tar's four ways to say so

    def _old_gnu_sparse(self, block: bytes) -> tuple[int, list[tuple[int, int]]]:
        """Four segments in the header itself, 21 more in each extension block after it."""
        segments: list[tuple[int, int]] = []
        size = _number(block[483:495])
        _old_segments(block[386:482], _SPARSE_IN_HEADER, segments)
        more = block[482]
        while more:
            block = self._take(BLOCK)
            _old_segments(block, _SPARSE_IN_EXTENSION, segments)
            more = block[504]
            if len(segments) > MOST_SEGMENTS:
                raise BadInput("a sparse file of more than a million pieces")
        return size, segments

    def _pax_sparse(self, entry: Entry, pax: dict[bytes, bytes], repeated: list[bytes]) -> None:
        """PAX 0.0 repeats records, 0.1 has one list, 1.0 puts the list before the content."""
        key = b"GNU.sparse.realsize" if b"GNU.sparse.realsize" in pax else b"GNU.sparse.size"
        entry.size = _decimal(key, pax.get(key, b""))
        if pax.get(b"GNU.sparse.major") == b"1":
            numbers = self._numbers_before_content()
        else:
            texts = pax[b"GNU.sparse.map"].split(b",") if b"GNU.sparse.map" in pax else repeated
            numbers = [_decimal(b"GNU.sparse.map", text) for text in texts if text]
        if len(numbers) % 2:
            raise BadInput("a sparse map with an offset and no length")
        entry.segments = list(zip(numbers[::2], numbers[1::2], strict=True))

    def _numbers_before_content(self) -> list[int]:
        blocks: list[bytes] = []
        lines = 0
        wanted = None
        while wanted is None or lines < wanted:
            if self._left < BLOCK:
                raise BadInput("a sparse map that does not end")
            blocks.append(self._take(BLOCK))
            lines += blocks[-1].count(b"\n")
            self._left -= BLOCK
            if wanted is None and lines:
                count = _decimal(b"sparse map", b"".join(blocks).partition(b"\n")[0])
                if count > MOST_SEGMENTS:
                    raise BadInput("a sparse file of more than a million pieces")
                wanted = 1 + 2 * count
        numbers = b"".join(blocks).split(b"\n")[1:wanted]
        return [_decimal(b"sparse map", number) for number in numbers]


def _old_segments(data: bytes, count: int, into: list[tuple[int, int]]) -> None:
    for at in range(0, count * 24, 24):
        if data[at] == 0:
            return
        into.append((_number(data[at : at + 12]), _number(data[at + 12 : at + 24])))


def _check_segments(entry: Entry, stored: int) -> None:
    end = total = 0
    for offset, length in entry.segments or ():
        if offset < end or length < 0:
            raise BadInput("a sparse map whose pieces overlap")
        end = offset + length
        total += length
    if end > entry.size or total != stored:
        raise BadInput("a sparse map that does not fit the file's size")


def _check_sum(block: bytes, field: bytes) -> None:
    """The sum of all bytes of a header, its own field taken as blanks."""
    try:
        stated = _number(field)
    except BadInput:
        raise BadInput("a header without a checksum: not a tar, or damaged") from None
    if sum(block) - sum(field) + 256 == stated:
        return
    # Some old tars summed signed bytes.
    signed = sum(b - 256 if b > 127 else b for b in block)
    if signed - sum(b - 256 if b > 127 else b for b in field) + 256 != stated:
        raise BadInput("a header whose checksum is wrong: not a tar, or damaged")


@lru_cache(4096)  # the same modes, owners and times come again and again
def _number(field: bytes) -> int:
    """Octal text, or GNU's base-256: the first bit set, then a big-endian two's complement."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big", signed=True)
        # A positive number has only the marker bit set, which is taken away here.
        return value if field[0] == 0xFF else value + (1 << (8 * len(field) - 1))
    text = field.partition(b"\0")[0].strip()
    if text.strip(b"01234567"):
        raise BadInput(f"{text!r} where a header has an octal number")
    return int(text, 8) if text else 0


def _decimal(key: bytes, value: bytes) -> int:
    if not value.isdigit() or len(value) > 20:
        raise BadInput(f"PAX record {key.decode('latin-1')}={value[:40]!r} is no number")
    return int(value)


def _nanoseconds(key: bytes, value: bytes) -> int:
    """`-1.5` → -1500000000. Digits beyond nanoseconds are cut, towards the past as tar does."""
    sign = -1 if value[:1] == b"-" else 1
    whole, _, fraction = value.lstrip(b"+-").partition(b".")
    nanoseconds = _decimal(key, whole or b"0") * 1_000_000_000
    if fraction:
        if not fraction.isdigit():
            raise BadInput(f"PAX record {key.decode()}={value[:40]!r} is no time")
        nanoseconds += int(fraction[:9].ljust(9, b"0"))
        if sign < 0 and fraction[9:].strip(b"0"):
            nanoseconds += 1
    return sign * nanoseconds


def _records(data: bytes, sparse_map: list[bytes]) -> dict[bytes, bytes]:
    """PAX records: `LENGTH key=value\\n`, where LENGTH counts the whole record.

    Values may contain anything, newlines and NULs too. Sparse format 0.0 repeats two keys, whose
    values go to `sparse_map`.
    """
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        blank = data.find(b" ", at, at + 20)
        length = data[at:blank]
        if blank < 0 or not length.isdigit():
            raise BadInput("a PAX record without its length")
        end = at + int(length)
        key, equals, value = data[blank + 1 : end - 1].partition(b"=")
        if end > len(data) or end <= blank or not equals or data[end - 1 : end] != b"\n":
            raise BadInput("a PAX record that does not end where it says")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            sparse_map.append(value)
        else:
            found[key] = value
        at = end
    return found
