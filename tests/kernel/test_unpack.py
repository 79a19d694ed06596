"""Layers on a real file system: what the tar says is what lstat, getxattr and lseek see."""

from __future__ import annotations

import os
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import imagebuild
from imagebuild import Tar
from pyrun.errors import BadInput
from pyrun.image import tar, unpack


@pytest.fixture(autouse=True)
def no_umask() -> Iterator[None]:
    old = os.umask(0)
    yield
    os.umask(old)


def unpacked(data: bytes, into: Path, chunk: int = 1000) -> unpack.Facts:
    """Unpack with chunks that never match the blocks of the tar."""
    into.mkdir(exist_ok=True)
    pieces = (data[at : at + chunk] for at in range(0, len(data), chunk))
    root = os.open(into, os.O_DIRECTORY)
    try:
        return unpack.unpack(tar.Reader(lambda: next(pieces, b"")), root)
    finally:
        os.close(root)


def test_modes_owners_and_times_are_exact(tmp_path: Path) -> None:
    unpacked(
        Tar()
        .dir("d/", mode=0o1777, uid=5, gid=6, mtime=1000)
        .file("d/f", b"hello", mode=0o4755, uid=70000, gid=3_000_000_000, mtime=2000)
        .file("d/g", b"", mode=0o2711, uid=1)
        .file("d/plain", b"x", mode=0o6777)
        .symlink("d/s", "nowhere", uid=7, mtime=3000)
        .end(),
        tmp_path / "r",
    )
    d = os.lstat(tmp_path / "r/d")
    assert (stat.S_IMODE(d.st_mode), d.st_uid, d.st_gid, d.st_mtime) == (0o1777, 5, 6, 1000)
    f = os.lstat(tmp_path / "r/d/f")
    assert (f.st_mode, f.st_uid, f.st_gid, f.st_mtime) == (0o104755, 70000, 3_000_000_000, 2000)
    assert os.lstat(tmp_path / "r/d/g").st_mode == 0o102711
    assert os.lstat(tmp_path / "r/d/plain").st_mode == 0o106777
    s = os.lstat(tmp_path / "r/d/s")
    assert (os.readlink(tmp_path / "r/d/s"), s.st_uid, s.st_mtime) == ("nowhere", 7, 3000)


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        (b"1.5", 1_500_000_000),
        (b"-1.5", -1_500_000_000),
        (b"-0.25", -250_000_000),
        (b"1700000000.123456789", 1_700_000_000_123_456_789),
        (b"4294967296.000000001", 4_294_967_296_000_000_001),
    ],
)
def test_times_below_the_second_and_before_1970(
    tmp_path: Path, text: bytes, nanoseconds: int
) -> None:
    unpacked(Tar().pax((b"mtime", text)).file("f").pax((b"mtime", text)).dir("d").end(), tmp_path)
    assert os.lstat(tmp_path / "f").st_mtime_ns == nanoseconds
    assert os.lstat(tmp_path / "d").st_mtime_ns == nanoseconds


def test_negative_time_in_base_256(tmp_path: Path) -> None:
    unpacked(Tar().file("f", mtime=-100).end(), tmp_path)
    assert os.lstat(tmp_path / "f").st_mtime == -100


def test_directory_times_survive_what_is_put_into_them(tmp_path: Path) -> None:
    unpacked(Tar().dir("a", mtime=5).dir("a/b", mtime=6).file("a/b/c").file("a/x").end(), tmp_path)
    assert os.lstat(tmp_path / "a").st_mtime == 5
    assert os.lstat(tmp_path / "a/b").st_mtime == 6


def test_hard_links_devices_and_fifos(tmp_path: Path) -> None:
    unpacked(
        Tar()
        .file("f", b"one")
        .hardlink("h", "./f", size=3)  # tar -l fills in a size that means nothing
        .symlink("s", "x")
        .hardlink("s2", "s")
        .add("null", b"3", mode=0o666, device=(1, 3))
        .add("disk", b"4", mode=0o660, device=(259, 1000), gid=6)
        .add("pipe", b"6", mode=0o622, uid=9)
        .end(),
        tmp_path,
    )
    assert os.path.samefile(tmp_path / "f", tmp_path / "h")
    assert os.lstat(tmp_path / "s").st_nlink == 2
    null = os.lstat(tmp_path / "null")
    assert (null.st_mode, null.st_rdev) == (stat.S_IFCHR | 0o666, os.makedev(1, 3))
    disk = os.lstat(tmp_path / "disk")
    assert (disk.st_mode, disk.st_rdev) == (stat.S_IFBLK | 0o660, os.makedev(259, 1000))
    pipe = os.lstat(tmp_path / "pipe")
    assert (pipe.st_mode, pipe.st_uid) == (stat.S_IFIFO | 0o622, 9)


CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)  # cap_net_bind_service=ep


def test_file_capabilities_and_binary_xattrs(tmp_path: Path) -> None:
    value = b"\0new\nline=\xff\0"
    unpacked(
        Tar()
        .pax((b"SCHILY.xattr.security.capability", CAPABILITY), (b"SCHILY.xattr.user.x", value))
        .file("prog", b"#!", mode=0o755, uid=33)
        .pax((b"LIBARCHIVE.xattr.user.with%3dsign", b"AGI"), (b"SCHILY.xattr.trusted.t", b"1"))
        .dir("d")
        .pax((b"SCHILY.xattr.trusted.link", value))
        .symlink("s", "prog")
        .pax((b"SCHILY.xattr.security.fifo", b"f"))
        .add("pipe", b"6")
        .end(),
        tmp_path,
    )
    assert os.getxattr(tmp_path / "prog", "security.capability") == CAPABILITY
    assert os.getxattr(tmp_path / "prog", "user.x") == value
    got = subprocess.run(["getcap", tmp_path / "prog"], capture_output=True, text=True, check=True)
    assert "cap_net_bind_service=ep" in got.stdout
    assert os.getxattr(tmp_path / "d", "user.with=sign") == b"\0b"
    assert os.getxattr(tmp_path / "d", "trusted.t") == b"1"
    assert os.getxattr(tmp_path / "s", "trusted.link", follow_symlinks=False) == value
    assert os.getxattr(tmp_path / "pipe", "security.fifo") == b"f"


def test_orders_to_overlayfs_in_an_image_are_not_obeyed(tmp_path: Path) -> None:
    unpacked(
        Tar()
        .pax((b"SCHILY.xattr.trusted.overlay.redirect", b"/etc"), (b"SCHILY.xattr.com.x", b"1"))
        .dir("d")
        .end(),
        tmp_path,
    )
    assert os.listxattr(tmp_path / "d") == []


def holes(path: Path) -> list[tuple[int, int]]:
    """The stored pieces of a file, as lseek(2) SEEK_DATA tells them."""
    found, at = [], 0
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        while at < size:
            try:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            found.append((start, at - start))
    return found


SPARSE_SIZE = 3 << 20
PIECE = b"A" * 4096 + b"B" * 4096


def sparse_tar(form: str) -> bytes:
    """A file of 3 MiB with 4096 bytes at 1 MiB and 4096 at 2 MiB; a hole ends it."""
    first, second = 1 << 20, 2 << 20
    if form == "old":
        tail = bytes(41) + b"".join(imagebuild.number(n, 12) for n in (first, 4096, second, 4096))
        tail = tail.ljust(41 + 96 + 1, b"\0") + imagebuild.number(SPARSE_SIZE, 12)
        return Tar().add("f", b"S", PIECE, magic=b"ustar  \0", tail=tail).file("after", b"!").end()
    if form == "old extended":
        tail = bytes(41) + b"".join(
            imagebuild.number(n, 12) for n in (first, 1024, first + 1024, 1024,
                                              first + 2048, 1024, first + 3072, 1024)
        )  # fmt: skip
        tail += b"\1" + imagebuild.number(SPARSE_SIZE, 12)
        more = imagebuild.number(second, 12) + imagebuild.number(4096, 12)
        head = imagebuild.header(b"f", b"S", size=8192, magic=b"ustar  \0", tail=tail)
        return Tar().raw(head + more.ljust(512, b"\0") + PIECE).file("after", b"!").end()
    size = (b"GNU.sparse.size", b"%d" % SPARSE_SIZE)
    if form == "0.0":
        records = [size, (b"GNU.sparse.numblocks", b"2")]
        for offset in (first, second):
            records += [(b"GNU.sparse.offset", b"%d" % offset), (b"GNU.sparse.numbytes", b"4096")]
        return Tar().pax(*records).file("f", PIECE).file("after", b"!").end()
    if form == "0.1":
        listed = b"%d,4096,%d,4096" % (first, second)
        return (
            Tar()
            .pax(size, (b"GNU.sparse.map", listed), (b"GNU.sparse.name", b"f"))
            .file("GNUSparseFile.1/f", PIECE)
            .file("after", b"!")
            .end()
        )
    listed = imagebuild.padded(b"2\n%d\n4096\n%d\n4096\n" % (first, second))
    return (
        Tar()
        .pax(
            (b"GNU.sparse.major", b"1"),
            (b"GNU.sparse.minor", b"0"),
            (b"GNU.sparse.name", b"f"),
            (b"GNU.sparse.realsize", b"%d" % SPARSE_SIZE),
        )
        .file("GNUSparseFile.1/f", listed + PIECE)
        .file("after", b"!")
        .end()
    )


@pytest.mark.parametrize("form", ["old", "old extended", "0.0", "0.1", "1.0"])
def test_sparse_files_keep_their_holes(tmp_path: Path, form: str) -> None:
    unpacked(sparse_tar(form), tmp_path)
    assert holes(tmp_path / "f") == [(1 << 20, 4096), (2 << 20, 4096)]
    assert os.lstat(tmp_path / "f").st_size == SPARSE_SIZE
    content = (tmp_path / "f").read_bytes()
    assert content[1 << 20 :][:4096] == b"A" * 4096
    assert content[2 << 20 :][:4096] == b"B" * 4096
    assert (tmp_path / "after").read_bytes() == b"!"


@pytest.mark.parametrize("form", ["gnu", "posix --sparse-version=0.0", "posix --sparse-version=0.1",
                                  "posix --sparse-version=1.0"])  # fmt: skip
def test_sparse_files_as_gnu_tar_writes_them(tmp_path: Path, form: str) -> None:
    source = tmp_path / "in"
    source.mkdir()
    with open(source / "f", "wb") as file:
        for n in range(30):
            file.seek(n << 16)
            file.write(b"%04d" % n * 1024)
        file.truncate(40 << 16)
    command = ["tar", "-C", source, "-cSf", tmp_path / "t", *f"--format={form}".split(), "."]
    subprocess.run(command, check=True)
    unpacked((tmp_path / "t").read_bytes(), tmp_path / "out")
    assert (tmp_path / "out/f").read_bytes() == (source / "f").read_bytes()
    assert holes(tmp_path / "out/f") == holes(source / "f")


@pytest.mark.parametrize("how", ["pax", "gnu", "prefix"])
def test_long_names(tmp_path: Path, how: str) -> None:
    folder = "/".join(["d" * 60] * (2 if how == "prefix" else 20))
    name = f"{folder}/{'n' * 90}"
    target = "t" * 200
    made = Tar()
    if how == "pax":
        made.pax((b"path", name.encode())).file("short", b"x")
        made.pax((b"path", b"link"), (b"linkpath", target.encode())).symlink("l", "short")
    elif how == "gnu":
        made.gnu_long(b"L", name.encode()).file("short", b"x", magic=b"ustar  \0")
        made.gnu_long(b"K", target.encode()).symlink("link", "short", magic=b"ustar  \0")
    else:
        made.file(b"n" * 90, b"x", prefix=folder.encode())
        made.symlink("link", "t" * 100)
    unpacked(made.end(), tmp_path)
    assert (tmp_path / name).read_bytes() == b"x"
    assert os.readlink(tmp_path / "link") == (target if how != "prefix" else "t" * 100)


def test_names_are_bytes(tmp_path: Path) -> None:
    unpacked(Tar().file(b"latin-\xe9", b"1").pax((b"path", b"\xff\xfe")).file("x", b"2").end(),
             tmp_path)  # fmt: skip
    assert sorted(os.listdir(os.fsencode(tmp_path))) == [b"latin-\xe9", b"\xff\xfe"]


def test_the_later_of_two_entries_counts(tmp_path: Path) -> None:
    unpacked(
        Tar()
        .file("f", b"old content", mode=0o600)
        .file("f", b"new", mode=0o644)
        .dir("d", mode=0o700)
        .file("d/keep", b"")
        .dir("d", mode=0o711, mtime=9)
        .dir("was-dir")
        .file("was-dir/x", b"")
        .file("was-dir", b"file")
        .file("was-file", b"")
        .dir("was-file")
        .file("was-file/y", b"y")
        .symlink("was-link", "was-file")
        .dir("was-link")
        .file("was-link/z", b"z")
        .file("a", b"a")
        .file("b", b"b")
        .hardlink("b", "a")
        .end(),
        tmp_path,
    )
    assert (tmp_path / "f").read_bytes() == b"new"
    assert stat.S_IMODE(os.lstat(tmp_path / "d").st_mode) == 0o711
    assert os.lstat(tmp_path / "d").st_mtime == 9
    assert (tmp_path / "d/keep").exists()
    assert (tmp_path / "was-dir").read_bytes() == b"file"
    assert os.listdir(tmp_path / "was-file") == ["y"]
    assert os.listdir(tmp_path / "was-link") == ["z"]
    assert not (tmp_path / "was-link").is_symlink()
    assert os.path.samefile(tmp_path / "a", tmp_path / "b")


def test_a_directory_replaced_while_its_descriptor_is_kept(tmp_path: Path) -> None:
    """The next file must go into the new directory, not into the one that was removed."""
    unpacked(
        Tar()
        .dir("d")
        .file("d/one", b"")
        .symlink("d", "other")
        .dir("other")
        .file("d/two", b"2")
        .end(),
        tmp_path,
    )
    assert (tmp_path / "other/two").read_bytes() == b"2"
    assert os.listdir(tmp_path / "other") == ["two"]


def test_links_are_followed_inside_the_root(tmp_path: Path) -> None:
    facts = unpacked(
        Tar()
        .symlink("lib", "usr/lib")
        .symlink("abs", "/usr/lib")
        .symlink("up", "../../../usr/lib")
        .file("lib/a", b"a")
        .file("abs/b", b"b")
        .file("up/c", b"c")
        .file("lib/deep/er/d", b"d")
        .end(),
        tmp_path,
    )
    assert sorted(os.listdir(tmp_path / "usr/lib")) == ["a", "b", "c", "deep"]
    assert b"usr/lib" in facts.implicit
    assert b"usr/lib/deep/er" in facts.implicit


def test_parents_nobody_listed_are_plain_and_noted(tmp_path: Path) -> None:
    facts = unpacked(Tar().file("a/b/f", b"").dir("a", mode=0o700).end(), tmp_path)
    assert list(facts.implicit) == [b"", b"a/b"]
    status = os.lstat(tmp_path / "a/b")
    assert (stat.S_IMODE(status.st_mode), status.st_mtime) == (0o755, 0)


def is_whiteout(path: Path) -> bool:
    status = os.lstat(path)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def test_whiteouts_become_character_devices(tmp_path: Path) -> None:
    facts = unpacked(
        Tar()
        .dir("d")
        .file("d/.wh.gone", b"ignored content")
        .add("d/.wh.linked", b"1", target=b"d/anything")
        .add("d/.wh.dir/", b"5")
        .end(),
        tmp_path,
    )
    assert sorted(os.listdir(tmp_path / "d")) == ["dir", "gone", "linked"]
    assert all(is_whiteout(tmp_path / "d" / name) for name in ("dir", "gone", "linked"))
    assert list(facts.whiteout_dirs) == [b"d"]


def opaque(path: Path) -> bool:
    return "trusted.overlay.opaque" in os.listxattr(path)


def test_an_opaque_mark_keeps_what_the_layer_itself_has(tmp_path: Path) -> None:
    unpacked(
        Tar()
        .dir("d")
        .file("d/before", b"1")
        .file("d/.wh.useless")
        .file("d/.wh..wh..opq")
        .file("d/after", b"2")
        .end(),
        tmp_path,
    )
    assert os.getxattr(tmp_path / "d", "trusted.overlay.opaque") == b"y"
    # Overlayfs would list a whiteout in an opaque directory as a name without a file.
    assert sorted(os.listdir(tmp_path / "d")) == ["after", "before"]


def test_an_opaque_root_is_noted(tmp_path: Path) -> None:
    facts = unpacked(Tar().file(".wh..wh..opq").file("f").end(), tmp_path)
    assert facts.opaque_root
    assert not opaque(tmp_path)


@pytest.mark.parametrize("first", ["whiteout", "entry"])
def test_a_whiteout_and_an_entry_of_the_same_name(tmp_path: Path, first: str) -> None:
    """A whiteout speaks of lower layers only; a directory beside it must not be merged."""
    entries = Tar().file("f", b"f").dir("d").file("d/x", b"x").file("i/y", b"y").data
    whiteouts = Tar().file(".wh.f").file(".wh.d").file(".wh.i").data
    unpacked((whiteouts + entries if first == "whiteout" else entries + whiteouts) + bytes(1024),
             tmp_path)  # fmt: skip
    assert (tmp_path / "f").read_bytes() == b"f"
    assert (tmp_path / "d/x").exists() and opaque(tmp_path / "d")
    assert (tmp_path / "i/y").exists() and opaque(tmp_path / "i")


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "d/.wh..."])
def test_whiteouts_that_name_nothing_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match=r"a whiteout that names nothing|names nothing"):
        unpacked(Tar().dir("d").file(name).end(), tmp_path)


def test_a_real_tree_is_as_gnu_tar_unpacks_it(tmp_path: Path) -> None:
    """Entry by entry: type, mode, owner, links, xattrs, times, content."""
    archive = tmp_path / "t"
    trees = [p for p in ("usr/share/perl5", "usr/share/zoneinfo", "usr/lib/python3", "etc")
             if os.path.isdir(f"/{p}")]  # fmt: skip
    subprocess.run(
        ["tar", "-C", "/", "--format=posix", "--xattrs", "--xattrs-include=*", "--numeric-owner",
         "--exclude=*.sock", "-cf", archive, *trees],
        check=True, capture_output=True,
    )  # fmt: skip
    (tmp_path / "theirs").mkdir()
    subprocess.run(
        ["tar", "-C", tmp_path / "theirs", "--xattrs", "--xattrs-include=*", "--numeric-owner",
         "-xpf", archive], check=True, capture_output=True,
    )  # fmt: skip
    unpacked(archive.read_bytes(), tmp_path / "ours", 1 << 17)
    ours = imagebuild.describe_tree(str(tmp_path / "ours"))
    theirs = imagebuild.describe_tree(str(tmp_path / "theirs"))
    for tree in (ours, theirs):  # directories that no entry lists: tar makes them as of now
        for name in ("/", "/usr", "/usr/share", "/usr/lib"):
            tree.pop(name, None)
    assert len(ours) > 500
    assert differences(ours, theirs) == {}


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {
        name: (one.get(name), other.get(name))
        for name in {*one, *other}
        if one.get(name) != other.get(name)
    }


def test_the_end_of_the_disk_is_named(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=True)
    try:
        with pytest.raises(BadInput, match=r"'big'.*ENOSPC") as caught:
            unpacked(Tar().file("big", bytes(3 << 20)).end(), disk)
        assert "full" in caught.value.hint
    finally:
        subprocess.run(["umount", disk], check=True)
