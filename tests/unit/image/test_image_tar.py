"""The tar reader against the standard library's writer, and against noise."""

from __future__ import annotations

import io
import os
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagebuild import Tar, header, number, pax_records
from pyrun.errors import BadInput
from pyrun.image import tar
from pyrun.image.names import clean


def read(data: bytes, chunk: int = 1 << 16) -> list[tuple[tar.Entry, bytes]]:
    pieces = (data[at : at + chunk] for at in range(0, len(data), chunk))
    reader = tar.Reader(lambda: next(pieces, b""))
    return [(entry, b"".join(map(bytes, reader.content()))) for entry in reader]


names = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=300
).filter(lambda name: not name.endswith("/"))


files_of_tarfile = st.tuples(
    names,
    st.binary(max_size=2000),
    st.integers(0, 2**31),
    st.integers(-(10**12), 10**13).map(lambda milliseconds: milliseconds / 1000),
)


@given(
    st.lists(files_of_tarfile),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    st.integers(1, 5000),
)
def test_what_tarfile_writes_is_read(
    files: list[tuple[str, bytes, int, float]], form: int, chunk: int
) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form, encoding="utf-8") as out:
        for name, content, uid, mtime in files:
            info = tarfile.TarInfo(name)
            info.size, info.uid, info.mtime = len(content), uid, mtime
            out.addfile(info, io.BytesIO(content))
    found = read(stream.getvalue(), chunk)
    assert [(e.name, content, e.uid) for e, content in found] == [
        (name.encode(), content, uid) for name, content, uid, _ in files
    ]
    if form == tarfile.PAX_FORMAT:
        for (entry, _), (*_, mtime) in zip(found, files, strict=True):
            assert abs(entry.mtime / 1e9 - mtime) < 1e-5


@settings(max_examples=300)
@given(st.binary(max_size=3000))
def test_noise_is_refused_or_empty(data: bytes) -> None:
    try:
        read(data)
    except BadInput:
        pass


VALID = (
    Tar()
    .pax((b"path", b"long"), (b"SCHILY.xattr.user.x", b"\0"), (b"mtime", b"1.5"))
    .file("f", b"content" * 100)
    .gnu_long(b"L", b"n" * 200)
    .file("g", b"x", magic=b"ustar  \0")
    .pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.realsize", b"9000"))
    .file("s", b"1\n0\n5\n".ljust(512, b"\0") + b"hello")
    .end()
)


@settings(max_examples=500)
@given(st.data())
def test_damaged_headers_are_refused_or_read_as_something(data: st.DataObject) -> None:
    """Bytes change and the checksum is made right again: no other error may come than BadInput."""
    spoiled = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(spoiled) - 1))
        spoiled[at] = data.draw(st.integers(0, 255))
    for start in range(0, len(spoiled), 512):
        block = spoiled[start : start + 512]
        if any(block) and data.draw(st.booleans()):
            block[148:156] = b" " * 8
            spoiled[start + 148 : start + 156] = b"%06o\0 " % (sum(block) & 0o777777)
    try:
        for entry, _ in read(bytes(spoiled)):
            clean(entry.name)
    except BadInput:
        pass


@given(st.lists(st.tuples(st.binary(min_size=1).filter(lambda k: b"=" not in k), st.binary())))
def test_pax_values_are_bytes(records: list[tuple[bytes, bytes]]) -> None:
    special = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
    records = [record for record in records if record[0] not in special]
    assert tar._records(pax_records(records), []) == dict(records)


@given(st.integers(-(2**62), 2**62))
def test_numbers_in_octal_and_base_256(value: int) -> None:
    assert tar._number(number(value, 12)) == value


@pytest.mark.parametrize("field", [b"12x4567\0", b"0o17\0", b"1_0\0", b"-1\0", b"+1\0"])
def test_what_is_no_octal_number(field: bytes) -> None:
    with pytest.raises(BadInput):
        tar._number(field)


def sparse(numbers: bytes, stored: int) -> bytes:
    records = [(b"GNU.sparse.map", numbers), (b"GNU.sparse.size", b"10")]
    return Tar().pax(*records).file("f", b"x" * stored).end()


def sparse_1_0(listed: bytes) -> bytes:
    records = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.realsize", b"1")]
    return Tar().pax(*records).file("f", listed.ljust(512, b"\0")).end()


@pytest.mark.parametrize(
    "data",
    [
        VALID[:100],
        VALID[:700],
        VALID[:1600],
        header(b"x", b"x", size=2 << 20),
        header(b"x", b"x", size=20) + b"99999 path=x\n".ljust(512, b"\0"),
        header(b"x", b"x", size=20) + b"5 p=x\nrest".ljust(512, b"\0"),
        header(b"x", b"x", size=3) + b"0 =".ljust(512, b"\0"),
        Tar().pax((b"size", b"-5")).file("f").end(),
        Tar().pax((b"size", b"9" * 30)).file("f").end(),
        Tar().pax((b"mtime", b"soon")).file("f").end(),
        sparse(b"0,5,3,5", 10),
        sparse(b"0,5,3", 5),
        sparse(b"8,5", 5),
        sparse(b"0,4", 5),
        sparse_1_0(b"9" * 512),
        sparse_1_0(b"99999999\n"),
        Tar().pax((b"LIBARCHIVE.xattr.user.x", b"!!")).file("f").end(),
        Tar().file("f", size=-1).end(),
    ],
)  # fmt: skip
def test_hostile_headers_are_refused(data: bytes) -> None:
    with pytest.raises(BadInput):
        read(data)


def test_a_header_that_repeats_for_ever_is_bounded_in_memory() -> None:
    """Sparse extension blocks and PAX headers may come without end: the reader counts."""
    block = header(b"x", b"S", tail=bytes(137) + b"\1")
    endless = b"".join(number(n, 12) + number(1, 12) for n in range(21)).ljust(504, b"\0")
    endless += b"\1" + bytes(7)
    chunks = iter([block])
    reader = tar.Reader(lambda: next(chunks, endless))
    with pytest.raises(BadInput, match="a million pieces"):
        list(reader)


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        (b"./", b""), (b".", b""), (b"", b""), (b"/", b""), (b"./a", b"a"), (b"/a/b/", b"a/b"),
        (b"a//b", b"a/b"), (b"a/./b", b"a/b"), (b"a/../b", b"b"), (b"./././a", b"a"),
        (b"a/.", b"a"), (b"..a/b..", b"..a/b.."), (b"...", b"..."), (b".a", b".a"), (b"./.", b""),
        (b"//etc", b"etc"), (b"a/b/../..", b""),
    ],
)  # fmt: skip
def test_names_are_cleaned(name: bytes, cleaned: bytes) -> None:
    assert clean(name) == cleaned


@given(st.lists(st.sampled_from([b"a", b".", b"/", b"b"]), max_size=40).map(b"".join))
def test_a_cleaned_name_never_leaves_the_root(name: bytes) -> None:
    try:
        cleaned = clean(name)
    except BadInput:
        assert b".." in name
        return
    parts = cleaned.split(b"/") if cleaned else []
    assert all(part not in (b"", b".", b"..") for part in parts)
    assert os.path.normpath(b"/" + name.strip(b"/")).lstrip(b"/") == cleaned
