"""Broken and hostile images: one clear error, and a store in which nothing has changed."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from image_lab import contents, new_store, unmount_all
from imagebuild import OCI, Layout, Tar, archive, digest, docker_archive
from pyrun.errors import BadInput, NotFound, PyrunError, Unsupported
from pyrun.image.store import ImageStore

LAYER = Tar().dir("etc").file("etc/hosts", os.urandom(300_000)).end()
SMALL = Tar().file("f", b"x").end()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ImageStore]:
    yield new_store(tmp_path)
    assert unmount_all(tmp_path) == []


def refused(store: ImageStore, source: Path | str, kind: type[PyrunError] = BadInput) -> str:
    """Load it, see it refused, and nothing left. Returns what was said."""
    before = contents(store), store.names()
    with pytest.raises(kind) as caught:
        store.load(str(source))
    assert (contents(store), store.names()) == before
    assert os.listdir(f"{store.paths.images}/tmp") == []
    return caught.value.message


def blob_name(layout: Layout, size: int) -> str:
    """The name of the layout's blob nearest to `size` bytes."""
    blobs = [name for name in layout.files if name.startswith("blobs/")]
    return min(blobs, key=lambda name: abs(len(layout.files[name]) - size))


def layer_blob(layout: Layout) -> str:
    return max((n for n in layout.files if n.startswith("blobs/")),
               key=lambda name: len(layout.files[name]))  # fmt: skip


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def spoil(layout: Layout, change: Callable[[bytes], bytes]) -> None:
    name = layer_blob(layout)
    layout.files[name] = change(layout.files[name])


def respell(layout: Layout, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest, with its digest kept right."""
    descriptor = layout.index.pop()
    value = json.loads(layout.files["blobs/" + descriptor["digest"].replace(":", "/")])
    change(value)
    layout.index.append(layout.json_blob(value, descriptor["mediaType"]))


def reconfig(layout: Layout, change: Callable[[dict[str, Any]], None]) -> None:
    def in_manifest(value: dict[str, Any]) -> None:
        name = "blobs/" + value["config"]["digest"].replace(":", "/")
        config = json.loads(layout.files[name])
        change(config)
        value["config"] = layout.json_blob(config, value["config"]["mediaType"])

    respell(layout, in_manifest)


def set_(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.__setitem__(key, value)


SPOILED: dict[str, tuple[Callable[[Layout], Any], str]] = {
    "a flipped bit in a layer": (lambda o: spoil(o, lambda d: flip(d, 5000)), "digest"),
    "a flipped bit in a layer's first block": (lambda o: spoil(o, lambda d: flip(d, 12)), "digest"),
    "a truncated layer": (lambda o: spoil(o, lambda d: d[:-100]), "bytes"),
    "a layer that is longer": (lambda o: spoil(o, lambda d: d + b"more"), "bytes"),
    "an empty layer": (lambda o: spoil(o, lambda d: b""), "bytes"),
    "a missing layer": (lambda o: o.files.pop(layer_blob(o)), "missing"),
    "a missing manifest": (
        lambda o: o.files.pop("blobs/" + o.index[0]["digest"].replace(":", "/")),
        "missing",
    ),
    "a manifest with another digest": (
        lambda o: o.files.update(
            {"blobs/" + o.index[0]["digest"].replace(":", "/"): b" " * o.index[0]["size"]}
        ),
        "digest",
    ),
    "a manifest that is no JSON": (
        lambda o: o.index.__setitem__(0, o.blob(b"{", f"{OCI}.manifest.v1+json")), "no valid JSON",
    ),
    "JSON nested too deep": (
        lambda o: o.index.__setitem__(0, o.blob(b"[" * 200_000, f"{OCI}.manifest.v1+json")),
        "no valid JSON",
    ),
    "a manifest that is a list": (
        lambda o: o.index.__setitem__(0, o.blob(b"[]", f"{OCI}.manifest.v1+json")), "an object",
    ),
    "a manifest without layers": (lambda o: respell(o, lambda m: m.pop("layers")), "a list"),
    "a digest that is a path": (
        lambda o: respell(o, lambda m: m["layers"][0].__setitem__("digest", "../../../etc/passwd")),
        "no sha256",
    ),
    "a negative size": (
        lambda o: respell(o, lambda m: m["layers"][0].__setitem__("size", -1)), "negative",
    ),
    "more layers than diff_ids": (
        lambda o: respell(o, lambda m: m["layers"].append(m["layers"][0])), "2 layers",
    ),
    "fewer layers than diff_ids": (lambda o: respell(o, lambda m: m["layers"].pop()), "0 layers"),
    "a wrong diff_id": (
        lambda o: reconfig(o, lambda c: c["rootfs"].__setitem__("diff_ids", [digest(b"x")])),
        "the config says",
    ),
    "a diff_id that is a number": (
        lambda o: reconfig(o, lambda c: c["rootfs"].__setitem__("diff_ids", [7])), "no digest",
    ),
    "a config without rootfs": (lambda o: reconfig(o, lambda c: c.pop("rootfs")), "an object"),
    "an environment of numbers": (
        lambda o: reconfig(o, set_("config", {"Env": [1]})), "a string",
    ),
    "a command that is a string": (
        lambda o: reconfig(o, set_("config", {"Cmd": "sh"})), "a list",
    ),
    "an index without images": (lambda o: o.index.clear(), "no image"),
    "an index inside itself, often": (lambda o: nest(o, 9), "levels deep"),
    "something that is no tar": (
        lambda o: replace_layer(o, gzip.compress(b"no tar" * 1000)), "checksum",
    ),
    "a gzip stream that ends early": (
        lambda o: replace_layer(o, gzip.compress(LAYER)[:-20]), "truncated|damaged",
    ),
    "a tar that ends early": (
        lambda o: replace_layer(o, gzip.compress(LAYER[:2000])), "truncated",
    ),
    "rubbish after the gzip stream": (
        lambda o: replace_layer(o, gzip.compress(SMALL) + b"rubbish"), "no gzip",
    ),
    "a gzip checksum that is wrong": (
        lambda o: replace_layer(o, flip(gzip.compress(SMALL), -6)), "damaged",
    ),
    "a zstd stream that is cut": (
        lambda o: replace_layer(o, zstandard.compress(LAYER)[:-5000]), "truncated|the config says",
    ),
    "a zstd stream that is damaged": (
        lambda o: replace_layer(o, flip(zstandard.compress(LAYER), 1000)), "damaged|config says",
    ),
    "a directory as a blob": (lambda o: o.files.update({"index.json/x": b""}), ""),
}  # fmt: skip


def nest(layout: Layout, depth: int) -> None:
    for _ in range(depth):
        index = {"schemaVersion": 2, "manifests": [layout.index.pop()]}
        layout.index.append(layout.json_blob(index, f"{OCI}.index.v1+json"))


def replace_layer(layout: Layout, data: bytes) -> None:
    """Another blob as the layer, its digest and size stated rightly."""
    respell(
        layout,
        lambda m: m["layers"].__setitem__(0, layout.blob(data, f"{OCI}.layer.v1.tar+gzip")),
    )


@pytest.mark.parametrize("what", SPOILED)
def test_refused_and_nothing_left(tmp_path: Path, store: ImageStore, what: str) -> None:
    change, said = SPOILED[what]
    layout = Layout()
    layout.image(LAYER, name="localhost/bad:1")
    change(layout)
    if what == "a directory as a blob":
        files = layout.all_files()
        del files["index.json"]
        layout.all_files = lambda: files  # type: ignore[method-assign]
    message = refused(store, layout.write(str(tmp_path / "in")))
    import re

    assert re.search(said, message), message
    assert str(tmp_path / "in") in message


def test_one_bad_layer_of_two_images_refuses_both(tmp_path: Path, store: ImageStore) -> None:
    layout = Layout()
    layout.image(SMALL, name="localhost/good:1")
    layout.image(LAYER, name="localhost/bad:1")
    spoil(layout, lambda data: flip(data, 5000))
    refused(store, layout.write(str(tmp_path / "in")))


def test_what_was_there_stays(tmp_path: Path, store: ImageStore) -> None:
    good = Layout()
    good.image(SMALL, name="localhost/x:1")
    (image,) = store.load(good.write(str(tmp_path / "good")))
    bad = Layout()
    bad.image(SMALL, LAYER, name="localhost/x:1")
    spoil(bad, lambda data: flip(data, 5000))
    refused(store, bad.write(str(tmp_path / "in")))
    assert store.resolve("localhost/x:1").id == image.id


FILES: dict[str, tuple[Callable[[Path], Any], type[PyrunError], str]] = {
    "an empty file": (lambda p: p.write_bytes(b""), BadInput, "empty"),
    "a text": (lambda p: p.write_bytes(b"hello " * 1000), BadInput, "checksum|truncated"),
    "an empty directory": (lambda p: p.mkdir(), BadInput, "index.json"),
    "a plain root file system": (lambda p: p.write_bytes(LAYER), BadInput, "index.json"),
    "nothing": (lambda p: None, NotFound, "cannot open"),
    "an xz file": (lambda p: p.write_bytes(b"\xfd7zXZ\0" + bytes(100)), Unsupported, "xz"),
    "an archive cut in the middle": (
        lambda p: p.write_bytes(good_archive()[: len(good_archive()) // 2]), BadInput, "truncated",
    ),
    "a compressed archive cut in the middle": (
        lambda p: p.write_bytes(gzip.compress(good_archive())[:-5000]), BadInput, "truncated",
    ),
    "an archive whose headers are damaged": (
        lambda p: p.write_bytes(flip(good_archive(), 100)), BadInput, "octal|checksum",
    ),
    "a docker-archive that names a missing layer": (
        lambda p: p.write_bytes(docker_archive(SMALL, tags=[], links={f"{0:064x}/layer.tar": "x"})),
        BadInput, "not there",
    ),
    "a docker-archive whose manifest lists numbers": (
        lambda p: p.write_bytes(archive({"manifest.json": b"[1]"})), BadInput, "an object",
    ),
    "a docker-archive with a bad tag": (
        lambda p: p.write_bytes(docker_archive(SMALL, tags=["Bad Name"])), BadInput, "image name",
    ),
    "links in a circle": (
        lambda p: p.write_bytes(archive({}, {"manifest.json": "a", "a": "manifest.json"})),
        BadInput, "index.json",
    ),
    "a link out of the archive": (
        lambda p: p.write_bytes(archive({}, {"manifest.json": "../../etc/passwd"})),
        BadInput, "leaves",
    ),
}  # fmt: skip


def good_archive() -> bytes:
    layout = Layout()
    layout.image(LAYER, name="localhost/a:1")
    return layout.archive()


@pytest.mark.parametrize("what", FILES)
def test_files_that_are_no_image(tmp_path: Path, store: ImageStore, what: str) -> None:
    make, kind, said = FILES[what]
    path = tmp_path / "in"
    make(path)
    import re

    message = refused(store, path, kind)
    assert re.search(said, message), message


def test_an_image_for_another_machine(tmp_path: Path, store: ImageStore) -> None:
    layout = Layout()
    layout.image(SMALL)["platform"] = {"os": "linux", "architecture": "s390x"}
    assert "it has linux/s390x" in refused(store, layout.write(str(tmp_path / "in")), Unsupported)


def test_an_artifact_that_is_no_container(tmp_path: Path, store: ImageStore) -> None:
    layout = Layout()
    layout.image(SMALL)
    respell(layout, lambda m: m["layers"][0].__setitem__("mediaType", "application/vnd.cncf.helm"))
    assert "no tar" in refused(store, layout.write(str(tmp_path / "in")))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB, the store on it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_gzip_bomb_is_stopped_by_the_disk_not_by_memory(tmp_path: Path, small_disk: Path) -> None:
    """Two gigabytes of zeros are two megabytes of gzip."""
    packer = zlib.compressobj(9, wbits=31)
    head = Tar().add("zeros", b"0", size=2 << 30).data
    blob = packer.compress(head)
    for _ in range(2 << 10):
        blob += packer.compress(bytes(1 << 20))
    blob += packer.flush()
    layout = Layout()
    layout.image(SMALL, name="localhost/bomb:1")
    replace_layer(layout, blob)
    store = new_store(small_disk)
    message = refused(store, layout.write(str(tmp_path / "in")))
    assert "ENOSPC" in message or "no room" in message
    assert "zeros" in message
    status = os.statvfs(small_disk)
    assert status.f_bavail * status.f_frsize > 20 << 20


def test_a_full_disk_can_be_freed_by_removing_an_image(tmp_path: Path, small_disk: Path) -> None:
    store = new_store(small_disk)
    layout = Layout()
    layout.image(LAYER, name="localhost/a:1")
    store.load(layout.write(str(tmp_path / "in")))
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"), open(filler, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    big = Layout()
    big.image(Tar().file("f", os.urandom(100_000)).end(), name="localhost/b:1")
    with pytest.raises((PyrunError, OSError)):
        store.load(big.write(str(tmp_path / "in2")))
    assert store.remove("localhost/a:1")[-1].startswith("deleted")
    assert contents(store) == []
    os.unlink(filler)
