"""Writing an image: file system entries → layer tar → OCI image layout, the same bytes every time.

An image layout (OCI image specification, `image-layout.md`) is a directory of blobs named by
their sha256, a small `index.json` that names a manifest, which names a config and its layers. A
layer is a tar. Tar leaves much to chance: order, times, owners, the compressor's header. Here all
of it is fixed, so that equal content has an equal digest on every machine.

`tar_blocks` shows the format itself: 512-byte headers, and a PAX record before an entry only where
a value does not fit (long names, large ids, sub-second or negative times, extended attributes).
Loading and unpacking are elsewhere in this package: this file only writes.
"""

from __future__ import annotations

import hashlib
import os
import stat

from pyrun.errors import BadInput
from pyrun.store.fastjson import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any, BinaryIO

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"

BLOCK = 512
CHUNK = 1 << 20

# ustar's type flags, tar(5).
REGULAR, HARD_LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = "0123456"
_KINDS = {
    stat.S_IFREG: REGULAR,
    stat.S_IFLNK: SYMLINK,
    stat.S_IFCHR: CHARACTER,
    stat.S_IFBLK: BLOCK_DEVICE,
    stat.S_IFDIR: DIRECTORY,
    stat.S_IFIFO: FIFO,
}


class Entry:
    """One name in a layer. `path` has no leading slash; `content` is bytes or a host path.

    `mtime` is in nanoseconds since 1970 and may be negative. `xattrs` are raw bytes: a file
    capability (`security.capability`) contains NULs.
    """

    __slots__ = (
        "content",
        "device",
        "gid",
        "kind",
        "mode",
        "mtime",
        "path",
        "size",
        "target",
        "uid",
        "xattrs",
    )

    def __init__(
        self,
        path: str,
        kind: str,
        mode: int,
        *,
        content: bytes | str = b"",
        size: int | None = None,
        target: str = "",
        uid: int = 0,
        gid: int = 0,
        mtime: int | None = None,
        xattrs: dict[str, bytes] | None = None,
        device: tuple[int, int] = (0, 0),
    ) -> None:
        self.path = path.strip("/")
        self.kind = kind
        self.mode = mode
        self.content = content
        if size is None:
            size = len(content) if isinstance(content, bytes) else os.stat(content).st_size
        self.size = size
        self.target = target
        self.uid = uid
        self.gid = gid
        self.mtime = source_date_epoch() * 10**9 if mtime is None else mtime
        self.xattrs = xattrs or {}
        self.device = device


class Layer:
    """The entries of one layer, and the sentence its history shows.

    `gzip` compresses (with isal, so fast rather than small); without it the bytes depend on
    nothing but the entries.
    """

    __slots__ = ("created_by", "entries", "gzip")

    def __init__(self, entries: list[Entry], created_by: str = "", *, gzip: bool = True) -> None:
        self.entries = entries
        self.created_by = created_by
        self.gzip = gzip


def source_date_epoch() -> int:
    """The time given to everything made: SOURCE_DATE_EPOCH (reproducible-builds.org), or 0."""
    return int(os.environ.get("SOURCE_DATE_EPOCH") or 0)


# Short ways to say an entry


def directory(path: str, mode: int = 0o755, **more: Any) -> Entry:
    return Entry(path, DIRECTORY, mode, **more)


def regular(path: str, content: bytes | str, mode: int = 0o644, **more: Any) -> Entry:
    """A file; `content` is its bytes, or (a str) the host file that holds them."""
    return Entry(path, REGULAR, mode, content=content, **more)


def symlink(path: str, target: str, **more: Any) -> Entry:
    return Entry(path, SYMLINK, 0o777, target=target, **more)


def hard_link(path: str, target: str, **more: Any) -> Entry:
    """Another name for `target`, a path of this layer."""
    return Entry(path, HARD_LINK, 0o644, target=target.strip("/"), **more)


def tree(root: str, *, exact: bool = False) -> list[Entry]:
    """Everything below `root` as it is there: modes, xattrs, hard links, devices, FIFOs.

    Owners and times are 0 and SOURCE_DATE_EPOCH unless `exact`; sockets are left out, as tar does.
    """
    entries: list[Entry] = []
    first_names: dict[tuple[int, int], str] = {}
    pending = [""]
    while pending:
        base = pending.pop()
        for name in sorted(os.listdir(f"{root}/{base}")):
            path = f"{base}{name}"
            entry = _entry_of(root, path, exact, first_names)
            if entry is None:
                continue
            entries.append(entry)
            if entry.kind == DIRECTORY:
                pending.append(f"{path}/")
    return entries


def _entry_of(
    root: str, path: str, exact: bool, first_names: dict[tuple[int, int], str]
) -> Entry | None:
    host = f"{root}/{path}"
    status = os.lstat(host)
    kind = _KINDS.get(stat.S_IFMT(status.st_mode))
    if kind is None:
        return None
    more: dict[str, Any] = {}
    if exact:
        more = {"uid": status.st_uid, "gid": status.st_gid, "mtime": status.st_mtime_ns}
    if kind != DIRECTORY and status.st_nlink > 1:
        first = first_names.setdefault((status.st_dev, status.st_ino), path)
        if first != path:
            return hard_link(path, first, **more)
    more["xattrs"] = {
        name: os.getxattr(host, name, follow_symlinks=False)
        for name in os.listxattr(host, follow_symlinks=False)
    }
    mode = stat.S_IMODE(status.st_mode)
    if kind == REGULAR:
        return Entry(path, kind, mode, content=host, size=status.st_size, **more)
    if kind == SYMLINK:
        return Entry(path, kind, mode, target=os.readlink(host), **more)
    device = (os.major(status.st_rdev), os.minor(status.st_rdev))
    return Entry(path, kind, mode, device=device, **more)


# The tar format


def ordered(entries: Iterable[Entry]) -> list[Entry]:
    """By name, parents before children; hard links last, since their target must come first."""
    return sorted(entries, key=lambda e: (e.kind == HARD_LINK, e.path.split("/")))


def tar_blocks(entries: Iterable[Entry]) -> Iterator[bytes]:
    """The layer's tar, piece by piece. Raises BadInput where a file changed its size meanwhile."""
    for entry in ordered(entries):
        yield header(entry)
        if entry.kind == REGULAR:
            yield from _content(entry)
            yield bytes(-entry.size % BLOCK)
    yield bytes(2 * BLOCK)


def _content(entry: Entry) -> Iterator[bytes]:
    if isinstance(entry.content, bytes):
        yield entry.content
        return
    left = entry.size
    with open(entry.content, "rb") as file:
        while left and (piece := file.read(min(left, CHUNK))):
            left -= len(piece)
            yield piece
    if left:
        raise BadInput(f"{entry.content} became {left} bytes shorter while it was read")


def header(entry: Entry) -> bytes:
    """The entry's header block, with a PAX header before it where a value does not fit."""
    name = os.fsencode(entry.path) + (b"/" if entry.kind == DIRECTORY else b"")
    target = os.fsencode(entry.target)
    seconds, fraction = divmod(entry.mtime, 10**9)
    size = entry.size if entry.kind == REGULAR else 0

    # An octal number in n bytes holds 8^(n-1) - 1: twelve bytes 8 GiB, eight bytes 2 Mi ids.
    pax: dict[bytes, bytes] = {}
    if len(name) > 100:
        pax[b"path"] = name
    if len(target) > 100:
        pax[b"linkpath"] = target
    for key, value, limit in (
        (b"uid", entry.uid, 8**7),
        (b"gid", entry.gid, 8**7),
        (b"size", size, 8**11),
    ):
        if value >= limit:
            pax[key] = b"%d" % value
    if fraction or not 0 <= seconds < 8**11:
        pax[b"mtime"] = _decimal(entry.mtime)
    for key_text, content in entry.xattrs.items():
        pax[b"SCHILY.xattr." + os.fsencode(key_text)] = content

    block = _ustar(
        name[:100],
        entry.kind,
        entry.mode,
        (
            entry.uid if entry.uid < 8**7 else 0,
            entry.gid if entry.gid < 8**7 else 0,
            size if size < 8**11 else 0,
            seconds if 0 <= seconds < 8**11 else 0,
        ),
        target[:100],
        entry.device,
    )
    return _pax(name, pax) + block if pax else block


def _decimal(nanoseconds: int) -> bytes:
    """`-1500000000` → `-1.5`, as PAX writes times."""
    whole, fraction = divmod(abs(nanoseconds), 10**9)
    sign = "-" if nanoseconds < 0 else ""
    return f"{sign}{whole}.{fraction:09}".rstrip("0").rstrip(".").encode()


def _pax(name: bytes, records: dict[bytes, bytes]) -> bytes:
    """A PAX extended header: records `LENGTH key=value\\n` whose length counts itself."""
    body = b""
    for key, value in sorted(records.items()):
        rest = b" " + key + b"=" + value + b"\n"
        length = len(rest)
        while length != len(rest) + len(b"%d" % length):
            length = len(rest) + len(b"%d" % length)
        body += b"%d" % length + rest
    head = _ustar((b"PaxHeaders/" + name)[:100], "x", 0o644, (0, 0, len(body), 0), b"", (0, 0))
    return head + body + bytes(-len(body) % BLOCK)


def _ustar(
    name: bytes,
    kind: str,
    mode: int,
    numbers: tuple[int, int, int, int],
    target: bytes,
    device: tuple[int, int],
) -> bytes:
    uid, gid, size, seconds = numbers
    before = b"%-100s%07o\0%07o\0%07o\0%011o\0%011o\0" % (name, mode, uid, gid, size, seconds)
    after = kind.encode() + target.ljust(100, b"\0") + b"ustar\000" + bytes(64)
    after += b"%07o\0%07o\0" % device
    before = name.ljust(100, b"\0") + before[100:]
    block = bytearray((before + b" " * 8 + after).ljust(BLOCK, b"\0"))
    # The checksum is the sum of all bytes with its own field taken as blanks.
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


# The image layout


def write_layout(out_dir: str, layers: list[Layer], config: dict[str, Any], name: str) -> str:
    """Write an image layout into `out_dir`, which is made. Returns the manifest's digest.

    `config` is the image configuration without `rootfs`; architecture, os, times and history are
    filled in where they are missing. `name` is the full reference, kept in index.json.
    """
    blobs = f"{out_dir}/blobs/sha256"
    os.makedirs(blobs, exist_ok=True)
    descriptors = []
    diff_ids = []
    for layer in layers:
        descriptor, diff_id = write_layer(blobs, layer)
        descriptors.append(descriptor)
        diff_ids.append(diff_id)

    created = config.get("created") or _timestamp()
    history = [{"created": created, "created_by": layer.created_by} for layer in layers]
    defaults = {
        "created": created,
        "architecture": architecture(),
        "os": "linux",
        "history": history,
    }
    full = defaults | config | {"rootfs": {"type": "layers", "diff_ids": diff_ids}}
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": _write_json(blobs, full, CONFIG),
        "layers": descriptors,
    }
    descriptor = _write_json(blobs, manifest, MANIFEST)
    digest: str = descriptor["digest"]
    descriptor["annotations"] = {
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": name.rpartition(":")[2],
    }
    descriptor["platform"] = {"architecture": full["architecture"], "os": full["os"]}
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor]}
    # index.json last: a reader that finds it finds everything.
    for file_name, value in (
        ("oci-layout", {"imageLayoutVersion": "1.0.0"}),
        ("index.json", index),
    ):
        with open(f"{out_dir}/{file_name}", "w", encoding="ascii") as file:
            file.write(dumps(value))
    return digest


def write_layer(blobs: str, layer: Layer) -> tuple[dict[str, Any], str]:
    """Write a layer's blob into directory `blobs`. Returns its descriptor and its diff_id."""
    temporary = f"{blobs}/layer.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            diff_id, digest, size = _write_tar(file, layer)
        os.rename(temporary, f"{blobs}/{digest}")
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
    media_type = f"{LAYER}+gzip" if layer.gzip else LAYER
    descriptor = {"mediaType": media_type, "digest": f"sha256:{digest}", "size": size}
    return descriptor, f"sha256:{diff_id}"


def _write_tar(file: BinaryIO, layer: Layer) -> tuple[str, str, int]:
    """Write the layer's tar into `file`: sha256 of the tar, sha256 of what was written, size."""
    plain = hashlib.sha256()
    if not layer.gzip:
        for piece in tar_blocks(layer.entries):
            plain.update(piece)
            file.write(piece)
        return plain.hexdigest(), plain.hexdigest(), file.tell()

    from isal import isal_zlib

    packed = hashlib.sha256()
    compressor = isal_zlib.compressobj(level=2, wbits=31)  # 31: a gzip header, its time 0
    for piece in tar_blocks(layer.entries):
        plain.update(piece)
        out = compressor.compress(piece)
        packed.update(out)
        file.write(out)
    out = compressor.flush()
    packed.update(out)
    file.write(out)
    return plain.hexdigest(), packed.hexdigest(), file.tell()


def _write_json(blobs: str, value: Any, media_type: str) -> dict[str, Any]:
    data = dumps(value).encode()
    digest = hashlib.sha256(data).hexdigest()
    with open(f"{blobs}/{digest}", "wb") as file:
        file.write(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def architecture() -> str:
    """This machine's name as images spell it (Go's GOARCH)."""
    machine = os.uname().machine
    return {"x86_64": "amd64", "aarch64": "arm64", "i686": "386", "armv7l": "arm"}.get(
        machine, machine
    )


def _timestamp() -> str:
    import time

    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(source_date_epoch()))
