"""What a pod is, as plain immutable objects: the shape every other module of this room reads.

A Pod, in the words of the Kubernetes API (v1), is a group of containers that share a network, a
hostname and volumes. There are two ways to a `PodSpec`: `kubeyaml.parse` reads a Kubernetes file,
and the command line builds the same objects from flags. Values are ready to use: variables are
expanded, quantities are integers, paths are normal.

The name rules are those Kubernetes enforces (RFC 1123), because pod names become host names,
file names and part of DNS names.
"""

from __future__ import annotations

from typing import NamedTuple

LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz")
LETTERS_DIGITS = LETTERS | frozenset("0123456789")

DEFAULT_NAMESPACE = "default"
DEFAULT_GRACE_SECONDS = 30

HOST_PATH_TYPES = (
    "",
    "DirectoryOrCreate",
    "Directory",
    "FileOrCreate",
    "File",
    "Socket",
    "CharDevice",
    "BlockDevice",
)
"""What a hostPath may ask of its path. "" checks nothing, but makes a missing directory. The
OrCreate types make an empty directory (mode 0755) or an empty file (mode 0644) where nothing is;
the others demand that the path is there and of that kind."""

PROTOCOLS = ("TCP", "UDP", "SCTP")


class EnvVar(NamedTuple):
    """`value` is final: `$(OTHER)` has been replaced."""

    name: str
    value: str


class PortSpec(NamedTuple):
    """A port a container listens on; `host_port` 0 means that it is not published."""

    container_port: int
    host_port: int = 0
    host_ip: str = ""
    protocol: str = "TCP"
    name: str = ""


class Mount(NamedTuple):
    """Where a container sees a volume of the pod."""

    volume: str
    path: str
    read_only: bool = False


class EmptyDir(NamedTuple):
    """A directory that starts empty and lives as long as the pod. `memory` puts it on a tmpfs,
    whose `size` in bytes the kernel enforces (None: half of the machine's memory)."""

    name: str
    memory: bool = False
    size: int | None = None


class HostPath(NamedTuple):
    """A file or directory of the host. `type` is one of HOST_PATH_TYPES."""

    name: str
    path: str
    type: str = ""


Volume = EmptyDir | HostPath


class Resources(NamedTuple):
    """Limits: `memory` in bytes, `cpu` in thousandths of a core. None means no limit."""

    memory: int | None = None
    cpu: int | None = None


class Security(NamedTuple):
    """None leaves a choice to the image or to pyrun's defaults. Capabilities are named without
    CAP_; ALL means every one."""

    privileged: bool = False
    user: int | None = None
    group: int | None = None
    read_only_rootfs: bool = False
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()


class ContainerSpec(NamedTuple):
    """One member of a pod.

    command  replaces the image's entry point, and with it the image's own arguments
    args     replace the image's arguments; empty leaves them (unless `command` is set)
    workdir  "" is the image's
    pull     imagePullPolicy as written: "", Never or IfNotPresent
    """

    name: str
    image: str
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: tuple[EnvVar, ...] = ()
    workdir: str = ""
    ports: tuple[PortSpec, ...] = ()
    mounts: tuple[Mount, ...] = ()
    resources: Resources = Resources()
    security: Security = Security()
    pull: str = ""
    stdin: bool = False
    tty: bool = False


class HostAlias(NamedTuple):
    """One more line in the pod's /etc/hosts."""

    ip: str
    hostnames: tuple[str, ...]


class PodSpec(NamedTuple):
    """A whole pod. Labels and annotations are pairs in the order they were written.

    `notes` are sentences for the user about what differs from Kubernetes for this very pod.
    """

    name: str
    hostname: str
    containers: tuple[ContainerSpec, ...]
    volumes: tuple[Volume, ...] = ()
    namespace: str = DEFAULT_NAMESPACE
    labels: tuple[tuple[str, str], ...] = ()
    annotations: tuple[tuple[str, str], ...] = ()
    host_aliases: tuple[HostAlias, ...] = ()
    grace_seconds: int = DEFAULT_GRACE_SECONDS
    notes: tuple[str, ...] = ()


def default_hostname(pod: str) -> str:
    """A pod's name may have 253 characters, a host name 63: cut as the kubelet cuts it."""
    return pod[:63].rstrip("-.")


# What is wrong with a value, as the end of a sentence; "" where nothing is.


def wrong_label(text: str) -> str:
    """The rule for names of containers, volumes, namespaces and hosts: a DNS label."""
    if 0 < len(text) <= 63 and _is_label(text):
        return ""
    return (
        "must be a DNS label: at most 63 lower-case letters, digits and '-', "
        "with a letter or digit at both ends"
    )


def wrong_subdomain(text: str) -> str:
    """The rule for names of pods: DNS labels joined by dots."""
    if len(text) <= 253 and all(map(_is_label, text.split("."))):
        return ""
    return (
        "must be a DNS name: at most 253 lower-case letters, digits, '-' and '.', "
        "every part with a letter or digit at both ends"
    )


def wrong_port_name(text: str) -> str:
    """The rule for names of ports: an IANA service name (RFC 6335)."""
    if len(text) <= 15 and _is_label(text) and "--" not in text and LETTERS & set(text):
        return ""
    return "must be a service name: at most 15 lower-case letters, digits and '-', one a letter"


def wrong_variable_name(text: str) -> str:
    """The kernel passes NAME=VALUE strings, so a name is anything printable without '='."""
    if text and text.isascii() and text.isprintable() and "=" not in text:
        return ""
    return "must be printable ASCII without '='"


def wrong_label_key(text: str) -> str:
    """The rule for keys of labels and annotations: `name` or `dns.prefix/name`."""
    prefix, slash, name = text.rpartition("/")
    if _is_qualified(name) and (not slash or not wrong_subdomain(prefix)):
        return ""
    return (
        "must be NAME or DNS-PREFIX/NAME, NAME at most 63 letters, digits, '-', '_' and '.', "
        "with a letter or digit at both ends"
    )


def wrong_label_value(text: str) -> str:
    if not text or _is_qualified(text):
        return ""
    return (
        "must have at most 63 letters, digits, '-', '_' and '.', "
        "with a letter or digit at both ends"
    )


def wrong_path(text: str) -> str:
    """The rule for paths of mounts and of the host: absolute, and never stepping back."""
    if not text.startswith("/"):
        return "must be an absolute path"
    if ".." in text.split("/"):
        return "must not contain '..'"
    return ""


def wrong_address(text: str) -> str:
    return "" if normal_address(text) else "must be an IPv4 or IPv6 address"


def normal_address(text: str) -> str:
    """An IP address in its one spelling (`0:0::1` → `::1`), "" for what is none."""
    import _socket

    for family in (_socket.AF_INET, _socket.AF_INET6):
        try:
            return _socket.inet_ntop(family, _socket.inet_pton(family, text))
        except (OSError, ValueError):
            continue
    return ""


def normal_path(text: str) -> str:
    """`//usr/./share/` → `/usr/share`. Only for paths that `wrong_path` found right."""
    return "/" + "/".join(part for part in text.split("/") if part not in ("", "."))


def ports_clash(one: PortSpec, other: PortSpec) -> bool:
    """Whether two published ports want the same port of the host."""
    if not one.host_port or (one.host_port, one.protocol) != (other.host_port, other.protocol):
        return False
    first, second = one.host_ip, other.host_ip
    if not first or not second or first == second:
        return True
    same_family = (":" in first) == (":" in second)
    return same_family and bool({first, second} & {"0.0.0.0", "::"})


def _is_label(text: str) -> bool:
    return bool(text) and LETTERS_DIGITS.issuperset(text.replace("-", "")) and _ends_well(text)


def _is_qualified(text: str) -> bool:
    plain = text.lower().replace("-", "").replace("_", "").replace(".", "")
    return (
        0 < len(text) <= 63
        and text.isascii()
        and LETTERS_DIGITS.issuperset(plain)
        and _ends_well(text.lower())
    )


def _ends_well(text: str) -> bool:
    return text[0] in LETTERS_DIGITS and text[-1] in LETTERS_DIGITS
