"""Kernel parameters below /proc/sys/net, of this network namespace or of a pinned one.

Each network namespace has its own set: /proc/sys/net shows that of the thread that looks.
Names are written with slashes, since an interface's name may hold a dot. sysctl(8).
"""

from __future__ import annotations

from pyrun.errors import KernelError
from pyrun.kernel import files
from pyrun.kernel.netlink import Inside

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def read(name: str) -> str | None:
    """The value, words separated by one space; None where this kernel has no such parameter."""
    try:
        with open(f"/proc/sys/{name}", encoding="ascii") as file:
            return " ".join(file.read().split())
    except FileNotFoundError:
        return None


def write(name: str, value: str) -> None:
    """Set one parameter, unless it has that value already. Raises OSError."""
    if read(name) != value:
        files.write(f"/proc/sys/{name}", value)


def write_in(netns: str, values: Iterable[tuple[str, str]]) -> None:
    """Set parameters inside the namespace pinned at `netns`; what this kernel lacks is skipped."""
    with Inside(netns):
        for name, value in values:
            if read(name) not in (value, None):
                try:
                    files.write(f"/proc/sys/{name}", value)
                except OSError as error:
                    raise KernelError(error.errno or 0, f"sysctl {name}={value}") from error


def ipv6_enabled() -> bool:
    """Whether new links of this namespace speak IPv6: built in, and switched off nowhere."""
    return all(read(f"net/ipv6/conf/{name}/disable_ipv6") == "0" for name in ("all", "default"))
