"""Where everything lives. Every path and every kernel-visible name derives from two roots.

root      what survives a reboot: images, layers, records, volumes   (/var/lib/pyrun)
run_root  what dies with the kernel: namespaces, sockets, leases     (/run/pyrun)

With other roots the names of the bridge, the nftables table, the cgroups and the directory of
pinned network namespaces change too, so that several nodes can live on one machine.
"""

from __future__ import annotations

import os
import zlib

ROOT = "/var/lib/pyrun"
RUN_ROOT = "/run/pyrun"


class Paths:
    """All paths are absolute strings. Creating the object touches nothing."""

    __slots__ = ("root", "run_root", "tag")

    def __init__(self, root: str = "", run_root: str = "") -> None:
        self.root = os.path.abspath(root or os.environ.get("PYRUN_ROOT") or ROOT)
        self.run_root = os.path.abspath(run_root or os.environ.get("PYRUN_RUN_ROOT") or RUN_ROOT)
        # Eight hex digits fit an interface name (15 bytes) together with a prefix.
        default = self.run_root == RUN_ROOT
        self.tag = "" if default else f"{zlib.crc32(self.run_root.encode()):08x}"

    def make_private(self) -> None:
        """Make both roots, for root's eyes only.

        Images hold setuid programs, with bugs that the host has long mended: a user of the host
        who could reach them would be root (CVE-2021-41091).
        """
        for path in (self.root, self.run_root):
            os.makedirs(path, 0o700, exist_ok=True)
            if os.stat(path).st_mode & 0o077:
                os.chmod(path, 0o700)

    # names the kernel shows

    @property
    def bridge(self) -> str:
        return f"pyr{self.tag}" if self.tag else "pyrun0"

    @property
    def nft_table(self) -> str:
        return f"pyrun_{self.tag}" if self.tag else "pyrun"

    @property
    def netns(self) -> str:
        """Directory of pinned network namespaces: iproute2's own, so that `ip netns` lists them."""
        return f"{self.run_root}/netns" if self.tag else "/run/netns"

    # survives a reboot

    @property
    def images(self) -> str:
        return f"{self.root}/images"

    @property
    def layers(self) -> str:
        return f"{self.root}/layers"

    @property
    def cache(self) -> str:
        """Things that can be made again: compiled seccomp filters."""
        return f"{self.root}/cache"

    @property
    def ids(self) -> str:
        return f"{self.root}/ids"

    @property
    def containers(self) -> str:
        return f"{self.root}/containers"

    @property
    def sandboxes(self) -> str:
        return f"{self.root}/sandboxes"

    def container(self, name: str) -> str:
        return f"{self.root}/containers/{name}"

    def sandbox(self, name: str) -> str:
        return f"{self.root}/sandboxes/{name}"

    # dies with the kernel

    @property
    def leases(self) -> str:
        return f"{self.run_root}/leases"

    @property
    def rootfs(self) -> str:
        """An empty directory: every container mounts its rootfs here, in its own namespace."""
        return f"{self.run_root}/rootfs"

    def container_run(self, name: str) -> str:
        return f"{self.run_root}/containers/{name}"

    def sandbox_run(self, name: str) -> str:
        return f"{self.run_root}/sandboxes/{name}"
