"""Names inside a pod: the text of /etc/hosts and /etc/resolv.conf. hosts(5), resolv.conf(5).

Both files are made per pod and bind-mounted into each member. Pure text here; who writes and
mounts them is `pod` and `container`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

RESOLV_CONF = "/etc/resolv.conf"
RESOLVED_CONF = "/run/systemd/resolve/resolv.conf"
"""The servers systemd-resolved really asks, where /etc/resolv.conf only names its own 127.0.0.53"""


def hosts_text(ips: Sequence[str], hostname: str, extra: Iterable[tuple[str, str]] = ()) -> str:
    """/etc/hosts: loopback, the pod's own name on each of its addresses, `extra` (address, name).

    A pod without addresses finds its name on 127.0.0.1, as programs look their own name up.
    """
    lines = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
    lines += [f"{ip}\t{hostname}" for ip in ips or ["127.0.0.1"]]
    lines += [f"{ip}\t{name}" for ip, name in extra]
    return "\n".join(lines) + "\n"


def host_resolv() -> str:
    """The host's resolv.conf that is of use to a pod; empty where the host has none."""
    text = _read(RESOLV_CONF)
    if all(map(_is_loopback, _servers(text))):
        text = _read(RESOLVED_CONF) or text
    return text


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def resolv_text(
    host_resolv: str,
    dns: Sequence[str] = (),
    search: Sequence[str] = (),
    options: Sequence[str] = (),
    *,
    own_network: bool = True,
) -> str:
    """/etc/resolv.conf: what was asked for, and the host's where nothing was.

    Servers on loopback are left out when the pod has a network of its own: its 127.0.0.1 is not
    the host's. `search` of a single `.` means no search list, as docker and podman have it.
    """
    servers = list(dns) or [
        server for server in _servers(host_resolv) if not (own_network and _is_loopback(server))
    ]
    domains = list(search) or _values(host_resolv, ("search", "domain"))
    choices = list(options) or _values(host_resolv, ("options",))
    lines = [f"nameserver {server}" for server in servers]
    if domains and domains != ["."]:
        lines.insert(0, "search " + " ".join(domains))
    if choices:
        lines.append("options " + " ".join(choices))
    if not servers:
        lines.insert(0, "# the host names no server a pod could reach; give one with --dns")
    return "\n".join(lines) + "\n"


def _servers(text: str) -> list[str]:
    words = (line.split() for line in text.splitlines())
    return [w[1] for w in words if len(w) > 1 and w[0] == "nameserver"]


def _values(text: str, keywords: tuple[str, ...]) -> list[str]:
    """The words of the last line that begins with one of `keywords`: it replaces the others."""
    found: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if words and words[0] in keywords:
            found = words[1:]
    return found


def _is_loopback(server: str) -> bool:
    return server.startswith("127.") or server.partition("%")[0] == "::1"
