"""What the pod tests share: making pods, and asking the kernel about them.

A socket belongs to the network namespace it is made in for its whole life, so tests make sockets
inside pods and use them from outside.
"""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pyrun.kernel.netlink import Inside
from support import DEADLINE, Node

SLEEPER = "busybox sleep 1000"


def make(node: Node, name: str, *members: str, flags: Iterable[str] = ()) -> str:
    """`pod create` with these members, each as `--container` has it. Returns the pod's name."""
    words = [word for member in members for word in ("--container", member)]
    node("pod", "create", "--name", name, *flags, *words)
    return name


def member_pid(node: Node, pod: str, member: str) -> int:
    """The pid of a member's first process, read from its cgroup."""
    return node.pid(f"{pod}-{member}", pod)


def netns(node: Node, pod: str) -> str:
    return f"{node.paths.netns}/{pod}"


def ip_json(node: Node, pod: str, *words: str) -> Any:
    """`ip -j …` inside the pod's network namespace."""
    done = subprocess.run(
        ["nsenter", f"--net={netns(node, pod)}", "ip", "-j", *words],
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout or "[]")


def addresses(node: Node, pod: str) -> list[str]:
    """The pod's global addresses on eth0, IPv4 first, as the kernel has them."""
    [link] = ip_json(node, pod, "address", "show", "eth0")
    found = [info["local"] for info in link["addr_info"] if info["scope"] == "global"]
    return sorted(found, key=lambda address: ":" in address)


def pod_socket(
    node: Node, pod: str, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM
) -> socket.socket:
    with Inside(netns(node, pod)):
        made = socket.socket(family, kind)
    made.settimeout(DEADLINE)
    return made


def family_of(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def server(node: Node, pod: str, address: str, port: int) -> socket.socket:
    made = pod_socket(node, pod, family_of(address))
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((address, port))
    made.listen(16)
    return made


def peer_seen(listener: socket.socket, client: socket.socket, address: str, port: int) -> str:
    """Connect and pass a byte each way; the client's address as the server saw it."""
    client.settimeout(DEADLINE)
    client.connect((address, port))
    accepted, peer = listener.accept()
    with accepted, client:
        accepted.settimeout(DEADLINE)
        client.sendall(b"?")
        assert accepted.recv(1) == b"?"
        accepted.sendall(b"!")
        assert client.recv(1) == b"!"
    return str(peer[0]).removeprefix("::ffff:")


def http_get(sock: socket.socket, address: str, port: int, path: str = "/") -> tuple[int, bytes]:
    """(status, body) of a GET over a fresh socket, made where the request shall come from."""
    with sock:
        sock.settimeout(DEADLINE)
        sock.connect((address, port))
        sock.sendall(f"GET {path} HTTP/1.0\r\nHost: pod\r\n\r\n".encode())
        answer = b""
        while chunk := sock.recv(65536):
            answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET6, kind) as found:
        found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        found.bind(("::", 0))
        return int(found.getsockname()[1])


def pod_file(directory: Path, text: str, name: str = "pod.yaml") -> Path:
    path = directory / name
    path.write_text(text, encoding="utf-8")
    return path
