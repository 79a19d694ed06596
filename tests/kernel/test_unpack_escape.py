"""Layers that try to write outside their directory. Nothing outside may change, ever."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagebuild import Layout, Tar, describe_tree
from pyrun.errors import BadInput, PyrunError
from pyrun.image.store import ImageStore
from pyrun.store.paths import Paths

OUTSIDE = "victim"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A directory whose every name and content is the same after the test."""
    victim = tmp_path / OUTSIDE
    (victim / "dir").mkdir(parents=True)
    (victim / "file").write_text("untouched")
    before = describe_tree(str(victim))
    yield tmp_path
    assert describe_tree(str(victim)) == before
    assert sorted(os.listdir(tmp_path)) in (["layout", "root", OUTSIDE], ["root", OUTSIDE])


def load(home: Path, *layers: bytes) -> ImageStore:
    layout = Layout()
    layout.image(*layers, name="localhost/evil:1")
    layout.write(str(home / "layout"))
    store = ImageStore(Paths(str(home / "root"), str(home / "run")))
    store.load(str(home / "layout"))
    return store


def victim(home: Path, name: str = "file") -> str:
    return f"{home}/{OUTSIDE}/{name}"


UP = "../" * 30

REFUSED = {
    "a name that climbs": lambda v: Tar().file(f"../../../../{OUTSIDE}/file", b"pwned"),
    "a name that climbs from inside": lambda v: Tar().dir("a").file(f"a/../../{OUTSIDE}", b"x"),
    "just two dots": lambda v: Tar().dir(".."),
    "a hard link that climbs": lambda v: Tar().hardlink("h", UP + v),
    "a hard link to an absolute name": lambda v: Tar().hardlink("h", v),
    "a hard link through a symlink": lambda v: (
        Tar().symlink("s", os.path.dirname(v)).hardlink("h", "s/file")
    ),
    "a hard link through the root of the host": lambda v: (
        Tar().symlink("s", "/").hardlink("h", f"s{v}")
    ),
    "a hard link to a whiteout": lambda v: Tar().file(".wh.x").hardlink("h", ".wh.x"),
    "a hard link to a directory": lambda v: Tar().dir("d").hardlink("h", "d"),
    "a hard link to itself": lambda v: Tar().hardlink("h", "./h"),
    "a file as the root": lambda v: Tar().file("./", b"x").file("", b"y"),
    "an entry below a file": lambda v: Tar().file("f", b"").file("f/x", b""),
    "an entry below a whiteout's name": lambda v: Tar().file("a/.wh.b/c", b""),
    "links in a circle": lambda v: Tar().symlink("a", "b").symlink("b", "a").file("a/x", b""),
    "a NUL in a name": lambda v: Tar().pax((b"path", b"a\0b")).file("a", b""),
    "an unknown type": lambda v: Tar().add("x", b"Q"),
    "a symlink to nothing": lambda v: Tar().symlink("s", ""),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_with_layer_entry_and_reason(home: Path, what: str) -> None:
    with pytest.raises(BadInput) as caught:
        load(home, REFUSED[what](victim(home)).end())
    assert "layer " in caught.value.message
    assert "entry '" in caught.value.message
    assert leftovers(home / "root") == []


CONTAINED = {
    "an absolute name": lambda v: Tar().file(v, b"pwned"),
    "an absolute symlink, then a file through it": lambda v: (
        Tar().symlink("s", os.path.dirname(v)).file("s/file", b"pwned").file("s/new", b"x")
    ),
    "a relative symlink, then a file through it": lambda v: (
        Tar().symlink("s", UP + os.path.dirname(v)[1:]).file("s/file", b"pwned")
    ),
    "a symlink to the file itself": lambda v: Tar().symlink("s", v).file("s", b"pwned"),
    "a chain of symlinks": lambda v: (
        Tar().symlink("a", "/").symlink("b", "a").file(f"b{v}", b"pwned")
    ),
    "a directory that becomes a symlink": lambda v: (
        Tar()
        .dir("d")
        .file("d/file", b"1")
        .symlink("d", os.path.dirname(v))
        .file("d/file", b"pwned")
        .dir("d/dir", mode=0o777)
    ),
    "whiteouts through a symlink": lambda v: (
        Tar().symlink("s", os.path.dirname(v)).file("s/.wh.file").file("s/.wh..wh..opq")
    ),
    "attributes through a symlink": lambda v: (
        Tar().symlink("s", os.path.dirname(v)).dir("s/", mode=0o777, uid=5).dir("s/dir", uid=5)
    ),
    "an xattr on a symlink": lambda v: Tar().pax((b"SCHILY.xattr.trusted.x", b"1")).symlink("s", v),
    "the magic links of proc": lambda v: (
        Tar().symlink("s", "/proc/self/root").file(f"s{v}", b"pwned")
    ),
}


@pytest.mark.parametrize("what", CONTAINED)
def test_contained_in_one_layer(home: Path, what: str) -> None:
    load(home, CONTAINED[what](victim(home)).end())


@pytest.mark.parametrize("what", CONTAINED)
def test_contained_when_the_trick_is_split_over_three_layers(home: Path, what: str) -> None:
    blocks = CONTAINED[what](victim(home)).data
    half = max(len(blocks) // 1024 * 512, 512)
    try:
        load(home, Tar().dir("s").dir("d").end(), blocks[:half] + bytes(1024), blocks[half:])
    except PyrunError:
        assert leftovers(home / "root") == []


def test_the_disk_of_the_host_as_a_device_is_only_a_node(home: Path) -> None:
    """A block device node in an image gives nothing away: the device cgroup decides."""
    store = load(home, Tar().add("disk", b"4", device=(254, 0)).file("disk/../x", b"").end())
    image = store.resolve("localhost/evil:1")
    assert sorted(os.listdir(store.lowerdirs(image)[0])) == ["disk", "x"]


def leftovers(root: Path) -> list[str]:
    """Every file of a store that is not its lock."""
    found = subprocess.run(
        ["find", root, "(", "-not", "-type", "d", "-or", "-path", "*/layers/*", ")",
         "-not", "-name", "lock"], capture_output=True, text=True, check=True,
    )  # fmt: skip
    return found.stdout.split()
