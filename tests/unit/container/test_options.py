"""Flag texts to data, as docker and podman read them; wrong ones get one clear error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrun.container import options as parse
from pyrun.container.options import Device, Volume
from pyrun.errors import BadInput, Unsupported


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("10", 10), ("1k", 1024), ("64m", 64 << 20), ("1.5g", 3 << 29), ("2GB", 2 << 30),
     ("1Mib", 1 << 20), ("512b", 512)],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert parse.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "m", "1x", "-1m", "1 2", "nan", "infg", "0x10"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(BadInput):
        parse.parse_size(text)


def test_env_takes_the_callers_value_where_none_is_given() -> None:
    environ = {"HERE": "x"}
    assert parse.parse_env(["A=1", "HERE", "MISSING", "B=a=b", "C="], environ) == (
        "A=1", "HERE=x", "B=a=b", "C=",
    )  # fmt: skip


def test_env_file_keeps_values_as_they_are() -> None:
    text = '# note\nA=1\n\nB="quoted"\n  C=c\nHERE\n'
    assert parse.parse_env_file(text, "f", {"HERE": "x"}) == ("A=1", 'B="quoted"', "C=c", "HERE=x")


@pytest.mark.parametrize(
    ("text", "volume"),
    [
        ("/a:/b", Volume("bind", "/a", "/b", (), True)),
        ("/a:/b:ro", Volume("bind", "/a", "/b", ("ro",), True)),
        ("/a:/b:ro,Z", Volume("bind", "/a", "/b", ("ro",), True)),
        ("data:/b", Volume("volume", "data", "/b")),
        ("/b", Volume("volume", "", "/b")),
    ],
)
def test_volumes(text: str, volume: Volume) -> None:
    assert parse.parse_volume(text) == volume


@pytest.mark.parametrize(
    "text", ["/a:b", "/a:/b:ro:rw", "/a:/b:sideways", "/a:/", "/a:/../b", "a/b:/c", ":/b:"]
)
def test_volumes_that_are_none(text: str) -> None:
    with pytest.raises(BadInput):
        parse.parse_volume(text)


def test_mounts() -> None:
    assert parse.parse_mount("type=bind,src=/a,dst=/b,readonly") == Volume(
        "bind", "/a", "/b", ("ro",)
    )
    assert parse.parse_mount("type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1777") == Volume(
        "tmpfs", "", "/t", ("size=1048576", "mode=1777")
    )


@pytest.mark.parametrize(
    "text", ["type=bind,target=/b", "type=disk,target=/b", "type=tmpfs,target=/b,colour=red", ""]
)
def test_mounts_that_are_none(text: str) -> None:
    with pytest.raises(BadInput):
        parse.parse_mount(text)


def test_devices() -> None:
    assert parse.parse_device("/dev/a") == Device("/dev/a", "/dev/a", "rwm")
    assert parse.parse_device("/dev/a:r") == Device("/dev/a", "/dev/a", "r")
    assert parse.parse_device("/dev/a:/dev/b:rw") == Device("/dev/a", "/dev/b", "rw")
    with pytest.raises(BadInput):
        parse.parse_device("a:b:c:d")


def test_ulimits() -> None:
    assert parse.parse_ulimit("nofile=10:20") == ("RLIMIT_NOFILE", 10, 20)
    assert parse.parse_ulimit("core=-1") == ("RLIMIT_CORE", parse.UNLIMITED, parse.UNLIMITED)
    for text in ("nofile", "files=1", "nofile=2:1", "nofile=x"):
        with pytest.raises(BadInput):
            parse.parse_ulimit(text)


def test_capabilities_by_any_spelling_and_the_near_one_is_named() -> None:
    assert parse.parse_capability("net_admin", "--cap-add") == "CAP_NET_ADMIN"
    assert parse.parse_capability("CAP_CHOWN", "--cap-add") == "CAP_CHOWN"
    assert parse.parse_capability("all", "--cap-drop") == "ALL"
    with pytest.raises(BadInput) as caught:
        parse.parse_capability("net_admni", "--cap-add")
    assert "NET_ADMIN" in caught.value.hint


def test_signals() -> None:
    assert [parse.parse_signal(t) for t in ("TERM", "SIGHUP", "9", "rtmin+3")] == [15, 1, 9, 37]
    for text in ("", "NOPE", "0", "65", "SIG_DFL", "RTMIN+x"):
        with pytest.raises(BadInput):
            parse.parse_signal(text)


def test_security_options() -> None:
    found = parse.parse_security(("no-new-privileges", "seccomp=unconfined"))
    assert found.no_new_privs and found.seccomp == "unconfined"
    with pytest.raises(Unsupported):
        parse.parse_security(("apparmor=mine",))
    with pytest.raises(BadInput):
        parse.parse_security(("frobnicate",))


@given(st.text(max_size=40))
def test_no_text_makes_a_parser_raise_anything_but_bad_input(text: str) -> None:
    for function in (
        parse.parse_size, parse.parse_volume, parse.parse_mount, parse.parse_tmpfs,
        parse.parse_device, parse.parse_ulimit, parse.parse_signal,
    ):  # fmt: skip
        try:
            function(text)
        except BadInput:
            pass
