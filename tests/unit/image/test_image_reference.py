"""Image names by Docker's rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrun.errors import BadInput
from pyrun.image import reference

D = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("nginx", "docker.io/library/nginx:latest"),
        ("nginx:1.27-alpine", "docker.io/library/nginx:1.27-alpine"),
        ("minio/minio", "docker.io/minio/minio:latest"),
        ("docker.io/nginx", "docker.io/library/nginx:latest"),
        ("docker.io/library/nginx", "docker.io/library/nginx:latest"),
        ("index.docker.io/a/b:c", "docker.io/a/b:c"),
        ("localhost/x", "localhost/x:latest"),
        ("localhost:5000/x", "localhost:5000/x:latest"),
        ("host:5000/a/b/c:T_a.g-1", "host:5000/a/b/c:T_a.g-1"),
        ("quay.io/team/app@" + D, "quay.io/team/app@" + D),
        ("app:1@" + D, "docker.io/library/app@" + D),
        ("[::1]:5000/x", "[::1]:5000/x:latest"),
        ("a__b/c-d--e.f/g_h", "docker.io/a__b/c-d--e.f/g_h:latest"),
        ("registry/app", "docker.io/registry/app:latest"),
        ("MyHost.example/app", "MyHost.example/app:latest"),
    ],
)
def test_names_are_completed_by_dockers_rule(text: str, key: str) -> None:
    assert reference.parse(text).key == key
    assert reference.parse(key).key == key


@pytest.mark.parametrize(
    "text",
    ["", ":", "@", "a b", "UPPER", "a:", "a@sha256:12", "a//b", "/a", "a/", "-a", "a-", "a._b",
     "a___b", "a..b", "a:" + "t" * 129, "a:.x", "a:-x", "a:b:c", "host:port/x", "host:/x", "é",
     "a@" + D + "@" + D, "a@" + D.upper(), "x" * 256, "..", "../a", "a/../b", "a\n", "http://a/b",
     "-host.x/a"],
)  # fmt: skip
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(BadInput) as caught:
        reference.parse(text)
    assert "image name" in caught.value.message
    assert caught.value.hint


@given(st.text(max_size=80))
def test_any_text_is_a_stable_name_or_refused(text: str) -> None:
    try:
        key = reference.parse(text).key
    except BadInput:
        return
    assert reference.parse(key).key == key
    assert "\n" not in key and "\0" not in key and ".." not in key.split("/")


def test_familiar_names_are_what_people_say() -> None:
    assert reference.familiar("docker.io/library/nginx:1") == "nginx:1"
    assert reference.familiar("docker.io/minio/minio:1") == "minio/minio:1"
    assert reference.familiar("quay.io/a:1") == "quay.io/a:1"
