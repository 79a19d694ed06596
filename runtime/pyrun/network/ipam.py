"""IP address management: who holds which address of this node's pod range.

A lease is a symlink `leases/ADDRESS` that points to its owner's name: symlink(2) makes it with
its content in one atomic call, and `ls -l` shows the table. Addresses are handed out round the
range ("next fit"): the one just given back comes last, so that no peer still holding a connection
or a neighbour entry for it meets a stranger. Where the last one was is kept in the lock file.

IPv6 needs no bookkeeping of its own: host number N of the one range is host number N of the other.
"""

from __future__ import annotations

import os

from pyrun.errors import BadInput, Conflict
from pyrun.explain.steps import Step
from pyrun.network.address import Range, parse_range, to_bytes
from pyrun.store.records import Lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyrun.network.node import NodeNetwork
    from pyrun.store.paths import Paths

FIRST = 2
"""Host number 0 names the range, 1 is the gateway (the bridge itself)."""


class Lease:
    """The addresses of one sandbox. `ip6` is None (and `prefix6` 0) on a node without IPv6."""

    __slots__ = ("ip4", "ip6", "prefix4", "prefix6")

    def __init__(self, ip4: str, prefix4: int, ip6: str | None, prefix6: int) -> None:
        self.ip4 = ip4
        self.prefix4 = prefix4
        self.ip6 = ip6
        self.prefix6 = prefix6

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Lease) and self.as_tuple() == other.as_tuple()

    def __hash__(self) -> int:
        return hash(self.as_tuple())

    def __repr__(self) -> str:
        return f"Lease{self.as_tuple()!r}"

    def as_tuple(self) -> tuple[str, int, str | None, int]:
        return self.ip4, self.prefix4, self.ip6, self.prefix6

    @property
    def ips(self) -> list[str]:
        return [self.ip4, *([self.ip6] if self.ip6 else [])]


def lock_path(paths: Paths) -> str:
    return f"{paths.run_root}/network.lock"


def lease(paths: Paths, net: NodeNetwork, name: str) -> Lease:
    """Take the next free address for `name`. `release` gives it back.

    Raises Conflict when every address of the range is held.
    """
    os.makedirs(paths.leases, 0o711, exist_ok=True)
    pool = parse_range(net.cidr4)
    with Lock(lock_path(paths)) as lock:
        for index in _candidates(pool, os.pread(lock.fd, 64, 0)):
            address = pool.address(index)
            try:
                os.symlink(name, f"{paths.leases}/{address}")
            except FileExistsError:
                continue
            os.ftruncate(lock.fd, 0)
            os.pwrite(lock.fd, f"{address}\n".encode(), 0)
            return lease_of(net, address)
    raise Conflict(
        f"no free address for {name!r}: all {pool.size - 3} of {pool} are leased",
        hint="`pyrun network ls` shows who holds them; remove a pod, or remove them all, run "
        "`pyrun network rm` and set a larger range with PYRUN_POD_CIDR",
    )


def next_lease(paths: Paths, net: NodeNetwork) -> Lease | None:
    """What `lease` would give now, for plans that are only printed. None: the range is full."""
    pool = parse_range(net.cidr4)
    try:
        with open(lock_path(paths), "rb") as file:
            last = file.read(64)
    except FileNotFoundError:
        last = b""
    for index in _candidates(pool, last):
        if not os.path.lexists(f"{paths.leases}/{pool.address(index)}"):
            return lease_of(net, pool.address(index))
    return None


def _candidates(pool: Range, last: bytes) -> list[int] | range:
    """Host numbers in the order they are tried: behind the last one given out, then from FIRST.

    The highest number is left out: in IPv4 it is the broadcast address.
    """
    end = pool.size - 1
    text = last.decode("ascii", "replace").strip()
    try:
        after = pool.index(text) + 1
    except BadInput:  # no address has been given out yet
        after = FIRST
    if not FIRST < after < end:
        return range(FIRST, end)
    return [*range(after, end), *range(FIRST, after)]


def lease_of(net: NodeNetwork, ip4: str) -> Lease:
    """The lease that belongs to an IPv4 address: its IPv6 twin has the same host number."""
    pool = parse_range(net.cidr4)
    if net.cidr6 is None:
        return Lease(ip4, pool.prefix, None, 0)
    pool6 = parse_range(net.cidr6)
    return Lease(ip4, pool.prefix, pool6.address(pool.index(ip4)), pool6.prefix)


def plan_lease(paths: Paths, lease: Lease, name: str) -> list[Step]:
    """The step that holds `lease` for `name`; its undo gives it back.

    Addresses are in the plan as plain text, so one is chosen before the plan is made: by `lease`,
    which takes it at once, or by `next_lease` where the plan is only to be shown.
    """
    return [
        Step(
            "network.ipam.hold",
            paths.leases,
            lease.ip4,
            name,
            why=f"hold address {lease.ip4} for {name}, so that no other pod gets it",
            undo=("network.ipam.give_back", (paths.leases, name)),
            shell=f"ln -s {name} {paths.leases}/{lease.ip4}",
            man="symlink(2)",
        )
    ]


def plan_release(paths: Paths, name: str) -> list[Step]:
    return [
        Step(
            "network.ipam.give_back",
            paths.leases,
            name,
            why=f"give the address of {name} back to the node's range",
            shell=f"find {paths.leases} -lname {name} -delete",
            man="unlink(2)",
        )
    ]


def hold(directory: str, address: str, name: str) -> None:
    """Make `address` the lease of `name`; it may be already. Raises Conflict if another's."""
    path = f"{directory}/{address}"
    os.makedirs(directory, 0o711, exist_ok=True)
    try:
        os.symlink(name, path)
    except FileExistsError:
        owner = os.readlink(path)
        if owner != name:
            raise Conflict(f"address {address} is leased to {owner!r}", hint="try again") from None


def release(paths: Paths, name: str) -> None:
    """Give back every address `name` holds; none is fine."""
    give_back(paths.leases, name)


def give_back(directory: str, name: str) -> None:
    for address, owner in _entries(directory):
        if owner == name:
            try:
                os.unlink(f"{directory}/{address}")
            except FileNotFoundError:
                pass


def leases(paths: Paths) -> dict[str, str]:
    """Address → owner, in the order of the addresses."""
    found = dict(_entries(paths.leases))
    return {address: found[address] for address in sorted(found, key=to_bytes)}


def holders(directory: str) -> list[str]:
    """Who holds the addresses in `directory`."""
    return [owner for _, owner in _entries(directory)]


def _entries(directory: str) -> list[tuple[str, str]]:
    found = []
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    for address in names:
        try:
            found.append((address, os.readlink(f"{directory}/{address}")))
        except FileNotFoundError:
            pass  # given back since we listed them
    return found
