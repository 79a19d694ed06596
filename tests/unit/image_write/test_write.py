"""The layer writer, judged by Python's own tarfile and by hashlib."""

import hashlib
import io
import json
import os
import tarfile

import pytest

from pyrun.errors import BadInput
from pyrun.image import write


def tar_of(entries):
    return b"".join(write.tar_blocks(entries))


def read_back(entries):
    return tarfile.open(fileobj=io.BytesIO(tar_of(entries))).getmembers()


def blob(layout, digest):
    return (layout / "blobs/sha256" / digest.removeprefix("sha256:")).read_bytes()


def test_parents_come_before_children_and_hard_links_last():
    entries = [
        write.hard_link("a/link", "z"),
        write.regular("a/b/c", b"x"),
        write.directory("a/b"),
        write.regular("z", b"y"),
        write.directory("a"),
        write.regular("a.b", b""),
    ]
    names = [member.name for member in read_back(entries)]
    assert names == ["a", "a/b", "a/b/c", "a.b", "z", "a/link"]


def test_every_kind_of_file_is_read_back_as_it_was_said():
    members = {
        m.name: m
        for m in read_back(
            [
                write.directory("dir", 0o1777, uid=5, gid=7),
                write.regular("file", b"content", 0o4755),
                write.symlink("soft", "/dir"),
                write.hard_link("hard", "/file"),
                write.Entry("null", write.CHARACTER, 0o666, device=(1, 3)),
                write.Entry("disk", write.BLOCK_DEVICE, 0o660, device=(8, 255)),
                write.Entry("pipe", write.FIFO, 0o600),
            ]
        )
    }
    assert members["dir"].isdir() and members["dir"].mode == 0o1777
    assert (members["dir"].uid, members["dir"].gid) == (5, 7)
    assert members["file"].isreg() and members["file"].mode == 0o4755
    assert members["file"].size == 7
    assert members["soft"].issym() and members["soft"].linkname == "/dir"
    assert members["hard"].islnk() and members["hard"].linkname == "file"
    assert members["null"].ischr() and members["null"].devminor == 3
    assert members["disk"].isblk() and members["disk"].devminor == 255
    assert members["pipe"].isfifo()


@pytest.mark.parametrize("length", [99, 100, 101, 255, 3000])
def test_long_names_and_targets_survive(length):
    name = ("d" * 49 + "/") * 60
    name = name[: length - 1] + "f"
    members = read_back([write.symlink(name, "t" * length)])
    assert members[0].name == name
    assert members[0].linkname == "t" * length


@pytest.mark.parametrize("uid", [0, 8**7 - 1, 8**7, 2**32 - 2])
def test_large_ids_survive(uid):
    assert read_back([write.regular("f", b"", uid=uid, gid=uid)])[0].uid == uid


@pytest.mark.parametrize(
    ("nanoseconds", "said"),
    [(0, 0.0), (1_500_000_000, 1.5), (-1, -1e-9), (-1_500_000_000, -1.5), (8**11 * 10**9, 8**11)],
)
def test_times_before_1970_and_between_seconds_survive(nanoseconds, said):
    assert read_back([write.regular("f", b"", mtime=nanoseconds)])[0].mtime == said


def test_pax_headers_appear_only_where_they_are_needed():
    assert len(tar_of([write.regular("f", b"")])) == 512 + 1024
    assert len(tar_of([write.regular("f", b"", mtime=1)])) == 3 * 512 + 1024


def test_xattr_bytes_with_nuls_are_written_raw():
    value = b"\x01\x00\x00\x02\xff\xfe\x00=\n"
    data = tar_of([write.regular("f", b"", xattrs={"security.capability": value})])
    assert b"SCHILY.xattr.security.capability=" + value + b"\n" in data


@pytest.mark.parametrize("size", [1, 70, 80, 85, 90, 970, 980, 990])
def test_pax_record_length_counts_itself(size):
    """The length field grows a digit just where the record crosses a power of ten."""
    data = tar_of([write.regular("f", b"", xattrs={"user.x": b"v" * size})])
    body = data[512:]
    length = int(body.split(b" ", 1)[0])
    assert body[length - 1 : length] == b"\n"
    assert body[:length].endswith(b"=" + b"v" * size + b"\n")


def test_names_that_are_not_utf8_keep_their_bytes():
    name = os.fsdecode(b"caf\xe9")
    assert b"caf\xe9\0" in tar_of([write.regular(name, b"")])


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"12345678")
    entry = write.regular("f", str(path))
    path.write_bytes(b"123")
    with pytest.raises(BadInput, match="5 bytes shorter"):
        tar_of([entry])


def test_source_date_epoch_is_every_entrys_time(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1234")
    assert read_back([write.directory("d")])[0].mtime == 1234


def test_tree_keeps_hard_links_modes_and_times(tmp_path):
    (tmp_path / "d").mkdir(mode=0o750)
    (tmp_path / "d/one").write_text("same")
    os.link(tmp_path / "d/one", tmp_path / "two")
    os.symlink("nowhere", tmp_path / "d/dangling")
    os.mkfifo(tmp_path / "pipe", 0o600)
    os.utime(tmp_path / "d/one", ns=(0, -1_250_000_000))
    members = {m.name: m for m in read_back(write.tree(str(tmp_path), exact=True))}
    assert sorted(members) == ["d", "d/dangling", "d/one", "pipe", "two"]
    links = [m for m in members.values() if m.islnk()]
    assert len(links) == 1 and {links[0].name, links[0].linkname} == {"two", "d/one"}
    assert members["d"].mode == 0o750
    assert members["d/dangling"].linkname == "nowhere"
    assert members["pipe"].isfifo()
    assert {m.mtime for m in members.values() if m.isreg() or m.islnk()} == {-1.25}


def test_tree_forgets_owners_and_times_unless_exact(tmp_path):
    (tmp_path / "f").write_text("")
    member = read_back(write.tree(str(tmp_path)))[0]
    assert (member.uid, member.gid, member.mtime) == (0, 0, 0)


@pytest.mark.parametrize("gzip", [True, False])
def test_layout_digests_and_sizes_are_true(tmp_path, gzip):
    layer = write.Layer([write.regular("f", b"x" * 3_000_000)], "made", gzip=gzip)
    digest = write.write_layout(str(tmp_path), [layer], {"config": {"Cmd": ["x"]}}, "example/a:1")

    index = json.loads((tmp_path / "index.json").read_text())
    assert index["manifests"][0]["digest"] == digest
    annotations = index["manifests"][0]["annotations"]
    assert annotations["org.opencontainers.image.ref.name"] == "1"
    assert annotations["io.containerd.image.name"] == "example/a:1"
    manifest = json.loads(blob(tmp_path, digest))
    for descriptor in [index["manifests"][0], manifest["config"], *manifest["layers"]]:
        data = blob(tmp_path, descriptor["digest"])
        assert "sha256:" + hashlib.sha256(data).hexdigest() == descriptor["digest"]
        assert len(data) == descriptor["size"]

    config = json.loads(blob(tmp_path, manifest["config"]["digest"]))
    with tarfile.open(
        fileobj=io.BytesIO(blob(tmp_path, manifest["layers"][0]["digest"]))
    ) as packed:
        plain = packed.fileobj
        plain.seek(0)
        diff_id = "sha256:" + hashlib.sha256(plain.read()).hexdigest()
    assert config["rootfs"]["diff_ids"] == [diff_id]
    assert config["config"] == {"Cmd": ["x"]}
    assert [entry["created_by"] for entry in config["history"]] == ["made"]
    assert len(list((tmp_path / "blobs/sha256").iterdir())) == 3


def test_the_same_content_has_the_same_digest(tmp_path):
    def make(out, order):
        entries = [write.regular("a", b"1"), write.directory("b"), write.regular("b/c", b"2")]
        layers = [write.Layer(entries[::order])]
        return write.write_layout(str(tmp_path / out), layers, {}, "a:1")

    assert make("one", 1) == make("two", -1)


def test_a_layer_that_cannot_be_written_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"1234")
    entry = write.regular("f", str(path))
    path.unlink()
    out = tmp_path / "out"
    with pytest.raises(FileNotFoundError):
        write.write_layout(str(out), [write.Layer([entry])], {}, "a:1")
    assert list((out / "blobs/sha256").iterdir()) == []
