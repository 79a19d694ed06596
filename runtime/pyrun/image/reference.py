"""Image names: Docker's short-name rule, and the grammar of the distribution specification.

    nginx                     docker.io/library/nginx:latest
    minio/minio               docker.io/minio/minio:latest
    localhost:5000/web:1      as it stands: the first part has a dot, a colon, or is `localhost`
    nginx@sha256:…            by the digest of its manifest

Parsing is done by hand: `pyrun run` passes here, and importing `re` costs more than all of it.
"""

from __future__ import annotations

from pyrun.errors import BadInput

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"

_LOWER = "abcdefghijklmnopqrstuvwxyz0123456789"
_WORD = _LOWER + "ABCDEFGHIJKLMNOPQRSTUVWXYZ_"
HEX = "0123456789abcdef"
DIGEST_LENGTH = {"sha256": 64, "sha512": 128}


class Reference:
    """One parsed name. `tag` and `digest` are empty where the text had none."""

    __slots__ = ("digest", "domain", "path", "tag")

    def __init__(self, domain: str, path: str, tag: str = "", digest: str = "") -> None:
        self.domain = domain
        self.path = path
        self.tag = tag
        self.digest = digest

    @property
    def repository(self) -> str:
        return f"{self.domain}/{self.path}"

    @property
    def key(self) -> str:
        """The one spelling the store knows; a digest says more than a tag."""
        if self.digest:
            return f"{self.repository}@{self.digest}"
        return f"{self.repository}:{self.tag or DEFAULT_TAG}"


def parse(text: str) -> Reference:
    """The reference a user's `text` means. Raises BadInput."""
    rest, at, digest = text.partition("@")
    if at and not is_digest(digest):
        raise _bad(text, "after the @ comes a digest such as sha256:… of 64 hexadecimal digits")
    head, slash, path = rest.partition("/")
    if slash and ("." in head or ":" in head or head == "localhost"):
        domain = DEFAULT_DOMAIN if head == "index.docker.io" else head
    else:
        domain, path = DEFAULT_DOMAIN, rest
    path, colon, tag = path.partition(":")
    if colon and not is_tag(tag):
        raise _bad(text, "a tag is up to 128 letters, digits, '_', '.' and '-'")
    if domain == DEFAULT_DOMAIN and "/" not in path:
        path = f"library/{path}"
    if not _is_domain(domain):
        raise _bad(text, f"{domain!r} is no host name with an optional port")
    if len(path) > 255 or not all(map(is_component, path.split("/"))):
        raise _bad(text, "a repository is a-z and 0-9, parted by '.', '_', '-', '/'")
    return Reference(domain, path, tag, digest)


def familiar(key: str) -> str:
    """A stored name as people say it: `docker.io/library/nginx:latest` → `nginx:latest`."""
    return key.removeprefix(f"{DEFAULT_DOMAIN}/library/").removeprefix(f"{DEFAULT_DOMAIN}/")


def split(key: str) -> tuple[str, str]:
    """A stored name as repository and tag; the tag of a digest name is empty."""
    if "@" in key:
        return key.partition("@")[0], ""
    repository, _, tag = key.rpartition(":")
    return repository, tag


def is_digest(text: str) -> bool:
    algorithm, _, value = text.partition(":")
    return len(value) == DIGEST_LENGTH.get(algorithm, -1) and not value.strip(HEX)


def is_tag(text: str) -> bool:
    return 0 < len(text) <= 128 and text[0] in _WORD and not text.strip(_WORD + ".-")


def is_component(text: str) -> bool:
    """`[a-z0-9]+` parts, joined by one dot, one or two underscores, or any number of dashes."""
    if not text or text[0] not in _LOWER or text[-1] not in _LOWER:
        return False
    separator = ""
    for letter in text:
        if letter not in _LOWER:
            separator += letter
            continue
        if separator and separator not in (".", "_", "__") and separator.strip("-"):
            return False
        separator = ""
    return True


def _is_domain(text: str) -> bool:
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        host, port = text, "0"
    if host.startswith("[") and host.endswith("]"):
        return bool(host[1:-1]) and not host[1:-1].strip(HEX + "ABCDEF:.") and port.isdigit()
    return (
        port.isdigit()
        and port.isascii()
        and all(
            label and label[0] != "-" and label[-1] != "-" and not label.strip(_WORD + "-")
            for label in host.split(".")
        )
    )


def _bad(text: str, reason: str) -> BadInput:
    return BadInput(
        f"{text!r} is no image name: {reason}",
        hint="names look like nginx, nginx:1.27, minio/minio, host:5000/team/web:tag",
    )
