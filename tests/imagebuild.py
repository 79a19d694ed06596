"""Images for tests, made byte by byte: tar entries no tool would write, layouts that lie.

Independent of pyrun's own writer on purpose: a misunderstanding of the format cannot hide in both.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from typing import Any

Json = dict[str, Any]
OCI = "application/vnd.oci.image"


def number(value: int, width: int) -> bytes:
    """Octal, or GNU's base-256 where octal cannot say it."""
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    if value >= 0:
        return b"\x80" + value.to_bytes(width - 1, "big")
    return value.to_bytes(width, "big", signed=True)


def header(
    name: bytes,
    kind: bytes,
    *,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    size: int = 0,
    mtime: int = 0,
    target: bytes = b"",
    device: tuple[int, int] = (0, 0),
    magic: bytes = b"ustar\00000",
    prefix: bytes = b"",
    tail: bytes = b"",
) -> bytes:
    block = bytearray(512)
    block[0:100] = name[:100].ljust(100, b"\0")
    block[100:108] = number(mode, 8)
    block[108:116] = number(uid, 8)
    block[116:124] = number(gid, 8)
    block[124:136] = number(size, 12)
    block[136:148] = number(mtime, 12)
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[157:257] = target[:100].ljust(100, b"\0")
    block[257:265] = magic
    block[329:337] = number(device[0], 8)
    block[337:345] = number(device[1], 8)
    block[345:500] = prefix.ljust(155, b"\0")
    if tail:
        block[345 : 345 + len(tail)] = tail
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def pax_records(records: list[tuple[bytes, bytes]]) -> bytes:
    body = b""
    for key, value in records:
        rest = b" " + key + b"=" + value + b"\n"
        length = len(rest) + 1
        while len(b"%d" % length) + len(rest) != length:
            length += 1
        body += b"%d" % length + rest
    return body


class Tar:
    """A tar that grows entry by entry; every method returns it."""

    def __init__(self) -> None:
        self.data = b""

    def raw(self, data: bytes) -> Tar:
        self.data += data
        return self

    def pax(self, *records: tuple[bytes, bytes], kind: bytes = b"x") -> Tar:
        body = pax_records(list(records))
        return self.raw(header(b"PaxHeader", kind, size=len(body)) + padded(body))

    def gnu_long(self, kind: bytes, text: bytes) -> Tar:
        body = text + b"\0"
        return self.raw(header(b"././@LongLink", kind, size=len(body)) + padded(body))

    def add(self, name: str | bytes, kind: bytes, content: bytes = b"", **fields: Any) -> Tar:
        raw = os.fsencode(name)
        fields.setdefault("size", len(content))
        return self.raw(header(raw, kind, **fields) + padded(content))

    def file(self, name: str | bytes, content: bytes = b"", **fields: Any) -> Tar:
        return self.add(name, b"0", content, **fields)

    def dir(self, name: str | bytes, **fields: Any) -> Tar:
        return self.add(name, b"5", **{"mode": 0o755, **fields})

    def symlink(self, name: str | bytes, target: str, **fields: Any) -> Tar:
        return self.add(name, b"2", target=os.fsencode(target), **{"mode": 0o777, **fields})

    def hardlink(self, name: str | bytes, target: str, **fields: Any) -> Tar:
        return self.add(name, b"1", target=os.fsencode(target), **fields)

    def end(self) -> bytes:
        return self.data + bytes(1024)


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Layout:
    """An OCI image layout in memory: name → bytes. Tests spoil it before they write it."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}
        self.index: list[Json] = []

    def blob(self, data: bytes, media_type: str) -> Json:
        self.files["blobs/" + digest(data).replace(":", "/")] = data
        return {"mediaType": media_type, "digest": digest(data), "size": len(data)}

    def json_blob(self, value: Json, media_type: str) -> Json:
        return self.blob(json.dumps(value).encode(), media_type)

    def image(
        self,
        *tars: bytes,
        name: str = "",
        compress: Any = gzip.compress,
        config: Json | None = None,
        diff_ids: list[str] | None = None,
        listed: bool = True,
    ) -> Json:
        """Add an image of these layers; returns the descriptor of its manifest."""
        suffix = "" if compress is bytes else "+gzip"
        layers = [self.blob(compress(tar), f"{OCI}.layer.v1.tar{suffix}") for tar in tars]
        value = {
            "architecture": "amd64" if os.uname().machine == "x86_64" else "arm64",
            "os": "linux",
            "created": "2024-01-02T03:04:05.123456789Z",
            "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]},
            "history": [{"created_by": f"layer {n}"} for n in range(len(tars))],
            **(config or {}),
            "rootfs": {
                "type": "layers",
                "diff_ids": [digest(t) for t in tars] if diff_ids is None else diff_ids,
            },
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.manifest.v1+json",
            "config": self.json_blob(value, f"{OCI}.config.v1+json"),
            "layers": layers,
        }
        descriptor = self.json_blob(manifest, f"{OCI}.manifest.v1+json")
        if name:
            descriptor["annotations"] = {"io.containerd.image.name": name}
        if listed:
            self.index.append(descriptor)
        return descriptor

    def all_files(self) -> dict[str, bytes]:
        index = {"schemaVersion": 2, "manifests": self.index}
        return {"index.json": json.dumps(index).encode(), **self.files}

    def write(self, path: str) -> str:
        for name, data in self.all_files().items():
            os.makedirs(os.path.dirname(f"{path}/{name}"), exist_ok=True)
            with open(f"{path}/{name}", "wb") as file:
                file.write(data)
        return path

    def archive(self) -> bytes:
        return archive(self.all_files())


def archive(files: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    """A tar of these files, by the standard library."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type = tarfile.SYMTYPE
            info.linkname = target
            tar.addfile(info)
    return stream.getvalue()


def docker_archive(*tars: bytes, tags: list[str], links: dict[str, str] | None = None) -> bytes:
    """As `docker save` wrote it before version 25. `links` replaces layers by symlinks."""
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": [digest(tar) for tar in tars]},
        }
    ).encode()
    files = {f"{digest(config)[7:]}.json": config}
    paths = [f"{n:064x}/layer.tar" for n in range(len(tars))]
    files.update(
        (path, tar) for path, tar in zip(paths, tars, strict=True) if path not in (links or {})
    )
    listing = [{"Config": f"{digest(config)[7:]}.json", "RepoTags": tags, "Layers": paths}]
    files["manifest.json"] = json.dumps(listing).encode()
    return archive(files, links)


def describe_tree(root: str, *, times: bool = True) -> dict[str, Any]:
    """Everything the kernel can tell about a tree, entry by entry, to compare two of them."""
    found: dict[str, Any] = {}
    inodes: dict[int, str] = {}
    paths = [root]
    for base, folders, files in os.walk(root):
        paths += [f"{base}/{name}" for name in folders + files]
    for path in sorted(paths):
        status = os.lstat(path)
        name = path[len(root) :] or "/"
        entry: Json = {
            "mode": oct(status.st_mode),
            "owner": (status.st_uid, status.st_gid),
            "device": status.st_rdev,
            "links": 0 if os.path.isdir(path) else status.st_nlink,
            "same": inodes.setdefault(status.st_ino, name) if not os.path.isdir(path) else "",
            "xattrs": {
                key: os.getxattr(path, key, follow_symlinks=False)
                for key in os.listxattr(path, follow_symlinks=False)
            },
        }
        if times:
            entry["mtime"] = status.st_mtime_ns
        if os.path.islink(path):
            entry["target"] = os.readlink(path)
        elif os.path.isfile(path):
            with open(path, "rb") as file:
                entry["content"] = hashlib.file_digest(file, "sha256").hexdigest()
        found[name] = entry
    return found
