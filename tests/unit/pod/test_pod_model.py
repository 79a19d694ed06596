"""The rules for names, paths and ports that flags and files share."""

import pytest

from pyrun.pod import model


@pytest.mark.parametrize("name", ["a", "0", "web", "web-1", "a--b", "x" * 63])
def test_labels_that_are_right(name: str) -> None:
    assert model.wrong_label(name) == ""


@pytest.mark.parametrize(
    "name", ["", "-", "-a", "a-", "A", "a.b", "a_b", "ä", "٣", "a\n", "a/b", "x" * 64]
)
def test_labels_that_are_wrong(name: str) -> None:
    assert model.wrong_label(name)


@pytest.mark.parametrize("name", ["a", "a.b", "web-1.example.com", "1.2", ".".join("x" * 126)])
def test_subdomains_that_are_right(name: str) -> None:
    assert model.wrong_subdomain(name) == ""


@pytest.mark.parametrize("name", ["", ".", "a.", ".a", "a..b", "a.-b", "A.b", "a/b", "x" * 254])
def test_subdomains_that_are_wrong(name: str) -> None:
    assert model.wrong_subdomain(name)


@pytest.mark.parametrize("name", ["http", "s3-api", "a", "9p", "x" * 15])
def test_port_names_that_are_right(name: str) -> None:
    assert model.wrong_port_name(name) == ""


@pytest.mark.parametrize("name", ["", "80", "a--b", "-a", "HTTP", "a_b", "x" * 16])
def test_port_names_that_are_wrong(name: str) -> None:
    assert model.wrong_port_name(name)


@pytest.mark.parametrize("key", ["app", "app.kubernetes.io/name", "A_b.c-d", "1"])
def test_label_keys_that_are_right(key: str) -> None:
    assert model.wrong_label_key(key) == ""


@pytest.mark.parametrize("key", ["", "/", "a/", "/a", "a/b/c", "A/b", "-a", "ä", "a b", "x" * 64])
def test_label_keys_that_are_wrong(key: str) -> None:
    assert model.wrong_label_key(key)


def test_label_values_may_be_empty_but_not_long() -> None:
    assert not model.wrong_label_value("")
    assert not model.wrong_label_value("1.2.3_x")
    assert model.wrong_label_value("a b")
    assert model.wrong_label_value("x" * 64)


@pytest.mark.parametrize("path", ["/", "/a", "/a/", "//a/./b", "/a..b", "/..."])
def test_paths_that_are_right(path: str) -> None:
    assert model.wrong_path(path) == ""


@pytest.mark.parametrize("path", ["", "a", "./a", "/..", "/a/../b", "/a/.."])
def test_paths_that_are_wrong(path: str) -> None:
    assert model.wrong_path(path)


def test_paths_are_written_one_way() -> None:
    assert model.normal_path("/usr/share/nginx/") == "/usr/share/nginx"
    assert model.normal_path("//usr/./share") == "/usr/share"
    assert model.normal_path("/") == "/"


def test_addresses() -> None:
    for right in ("127.0.0.1", "::", "fd00::1", "0.0.0.0"):
        assert model.wrong_address(right) == ""
    for wrong in ("", "localhost", "1.2.3", "1.2.3.4.5", "::g", "1\0", "256.1.1.1", "fe80::1%eth0"):
        assert model.wrong_address(wrong)


@pytest.mark.parametrize(
    ("one", "other", "clash"),
    [
        (("", "TCP"), ("", "TCP"), True),
        (("", "TCP"), ("", "UDP"), False),
        (("", "TCP"), ("127.0.0.1", "TCP"), True),
        (("0.0.0.0", "TCP"), ("127.0.0.1", "TCP"), True),
        (("0.0.0.0", "TCP"), ("::1", "TCP"), False),
        (("::", "TCP"), ("::1", "TCP"), True),
        (("127.0.0.1", "TCP"), ("127.0.0.2", "TCP"), False),
        (("127.0.0.1", "TCP"), ("127.0.0.1", "TCP"), True),
    ],
)
def test_published_ports_clash_where_the_kernel_would_say_so(
    one: tuple[str, str], other: tuple[str, str], clash: bool
) -> None:
    first = model.PortSpec(80, 8080, *one)
    second = model.PortSpec(81, 8080, *other)
    assert model.ports_clash(first, second) is clash
    assert model.ports_clash(second, first) is clash


def test_ports_that_are_not_published_never_clash() -> None:
    assert not model.ports_clash(model.PortSpec(80), model.PortSpec(80))


def test_a_long_pod_name_becomes_a_host_name_the_kernel_takes() -> None:
    assert model.default_hostname("web") == "web"
    assert model.default_hostname("x" * 62 + ".y") == "x" * 62


def test_specs_cannot_be_changed() -> None:
    pod = model.PodSpec("web", "web", ())
    with pytest.raises(AttributeError):
        pod.name = "other"  # type: ignore[misc]
