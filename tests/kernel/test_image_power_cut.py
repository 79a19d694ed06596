"""After a power cut names are there and contents may not be: what is not whole is not used.

A cut is played by giving the record another boot and by shortening files, which is what ext4 and
XFS show of data that was not written in time.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from image_lab import contents, new_store
from imagebuild import Layout, Tar
from pyrun.errors import NotFound
from pyrun.image.heal import content_size
from pyrun.image.store import ImageStore
from pyrun.store import records

LAYERS = (
    Tar().dir("d").file("d/f", b"12345").hardlink("d/h", "d/f").file("d/f2", b"1").end(),
    Tar()
    .file("x", b"first").file("x", b"second")
    .dir("t").file("t/1", b"1" * 50).file("t", b"now a file")
    .hardlink("copied", "d/f2").file("new", b"abc").hardlink("new2", "new").file("new", b"z")
    .end(),
)  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    layout = Layout()
    layout.image(*LAYERS, name="localhost/a:1")
    layout.write(str(tmp_path / "in"))
    store = new_store(tmp_path)
    store.load(str(tmp_path / "in"))
    return store


def record(store: ImageStore) -> dict[str, Any]:
    found: dict[str, Any] = records.read(store.record_path(store.ids()[0]))
    return found


def reboot(store: ImageStore) -> None:
    records.write(store.record_path(store.ids()[0]), record(store) | {"boot": "an earlier one"})


def test_the_sizes_of_a_record_are_those_on_the_disk(store: ImageStore) -> None:
    """Duplicate entries, replaced directories and hard links are counted as they end."""
    known = record(store)
    assert known["layer_sizes"] == [content_size(store.rootfs(key)) for key in known["layers"]]
    assert known["layer_sizes"] == [6, 6 + 10 + 1 + 3 + 1]


def test_a_whole_image_is_used_and_its_boot_forgotten(store: ImageStore) -> None:
    reboot(store)
    assert store.resolve("localhost/a:1").names == ("localhost/a:1",)
    assert record(store)["boot"] == ""


@pytest.mark.parametrize("what", ["a file of a layer", "a blob", "a layer's facts", "a layer"])
def test_a_damaged_image_is_removed_with_a_word_and_can_be_loaded_again(
    store: ImageStore, tmp_path: Path, what: str
) -> None:
    known = record(store)
    layer = store.layer(known["layers"][0])
    if what == "a layer":
        os.rename(layer, tmp_path / "gone")
    else:
        os.truncate(
            {
                "a file of a layer": f"{layer}/rootfs/d/f",
                "a blob": store.blob(known["blobs"][0]),
                "a layer's facts": f"{layer}/layer.json",
            }[what],
            0,
        )
    reboot(store)
    with pytest.raises(NotFound, match="incomplete") as caught:
        store.resolve("localhost/a:1")
    assert "load it again" in caught.value.hint
    (image,) = store.load(str(tmp_path / "in"))
    assert Path(store.lowerdirs(image)[1], "d/f").read_bytes() == b"12345"
    assert os.path.getsize(store.blob(known["blobs"][0])) == known["blob_sizes"][0]
    store.remove("localhost/a:1")
    assert contents(store) == []


def test_loading_does_not_share_what_is_damaged(store: ImageStore, tmp_path: Path) -> None:
    os.truncate(f"{store.rootfs(record(store)['layers'][0])}/d/f", 0)
    reboot(store)
    (image,) = store.load(str(tmp_path / "in"))
    assert Path(store.lowerdirs(image)[1], "d/f").read_bytes() == b"12345"


def test_a_snapshot_no_image_mentions_is_not_trusted(store: ImageStore, tmp_path: Path) -> None:
    os.truncate(f"{store.rootfs(record(store)['layers'][0])}/d/f", 0)
    os.unlink(store.record_path(store.ids()[0]))
    (image,) = store.load(str(tmp_path / "in"))
    assert Path(store.lowerdirs(image)[1], "d/f").read_bytes() == b"12345"
