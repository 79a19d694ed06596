"""The elements of our nftables maps: which port of the host leads to which port of which pod.

Each carries its sandbox's name as a comment, so `nft list table inet pyrun` tells who holds a port.
The maps and the rules that ask them are in `nat.py`, what users write is in `ports.py`.
"""

from __future__ import annotations

from pyrun.errors import Conflict, KernelError
from pyrun.kernel import conntrack, netlink, nft
from pyrun.network import nat
from pyrun.network.address import to_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    Row = Sequence[str | int]  # host_ip, host_port, container_port, protocol


def commands(
    verb: str, family4: str, family6: str, table: str, name: str, ports: Sequence[Row], ip4: str,
    ip6: str | None,
) -> list[str]:  # fmt: skip
    """One nft command an element. In the maps without address go the ports on every address."""
    found = []
    targets = (family4, "ip", "0.0.0.0", ip4), (family6, "ip6", "::", ip6)
    for host_ip, host_port, container_port, protocol in ports:
        for family, l3, every, pod in targets:
            if pod is None or (host_ip != "" and (":" in str(host_ip)) != (l3 == "ip6")):
                continue
            where, suffix = f" . {host_ip}", ""
            if host_ip in ("", every):
                where, suffix = "", "_any"
            found.append(
                f"{verb} element {family} {table} {nat.MAP[l3]}{suffix} "
                f'{{ {protocol}{where} . {host_port} comment "{_comment(name)}"'
                f" : {pod} . {container_port} }}"
            )
    return found


def elements(table: str) -> list[tuple[str, list[str], str]]:
    """(`inet pyrun publish4`, key, sandbox) of every element in our maps.

    nft prints them as `tcp . 192.0.2.1 . 8080 comment "web" : 10.66.0.2 . 80`, between commas.
    """
    found = []
    for l3 in ("ip", "ip6"):
        for name in (nat.MAP[l3], f"{nat.MAP[l3]}_any"):
            where = f"{nat.family_of(table, l3)} {table} {name}"
            try:
                text = nft.run(f"list map {where}")
            except KernelError:
                continue  # no table yet, or no IPv6
            for element in text.replace("{", ",").split(","):
                key, comment, rest = element.partition(' comment "')
                if comment:
                    found.append((where, key.strip().split(" . "), rest.partition('"')[0]))
    return found


def _comment(name: str) -> str:
    return name[:120]  # nft's limit is 128


def add(table: str, name: str, ports: Sequence[Row], ip4: str, ip6: str | None) -> None:
    """Add the elements, all or none. Raises Conflict where a port leads to another pod already.

    Flows of UDP that began before are forgotten, so that they are led to the pod too.
    """
    families = nat.family_of(table, "ip"), nat.family_of(table, "ip6")
    try:
        nft.run("\n".join(commands("add", *families, table, name, ports, ip4, ip6)))
    except KernelError as error:
        if error.errno != 17:  # EEXIST
            raise
        raise _leads_elsewhere(table, name, ports) from error
    udp = [(str(row[0]), int(row[1])) for row in ports if row[3] == "udp"]
    if udp:
        conntrack.forget_udp(_targets(udp))


def _leads_elsewhere(table: str, name: str, ports: Sequence[Row]) -> Conflict:
    """The port was free to bind, and yet it is another pod's: its supervisor must have died."""
    wanted = {(row[3], str(row[1])) for row in ports}
    for _, key, owner in elements(table):
        if (key[0], key[-1]) in wanted and owner != _comment(name):
            return Conflict(
                f"cannot publish {key[0]} port {key[-1]}: it is taken by pod {owner}, "
                "whose supervisor has died",
                hint="choose another host port; `pyrun pod start` or `stop` cures the other pod",
            )
    return Conflict(f"cannot publish the ports of {name}: they lead elsewhere", hint="try again")


def _targets(ports: Sequence[tuple[str, int]]) -> set[tuple[bytes, int]]:
    """(address, port), with each of the host's own addresses where a port is on every one."""
    with netlink.Netlink() as rtnl:
        own = [address for address, _ in netlink.addresses(rtnl, 0)]
    found = set()
    for host_ip, port in ports:
        every = host_ip in ("", "0.0.0.0", "::")
        found |= {(address, port) for address in (own if every else [to_bytes(host_ip)])}
    return found


def delete(table: str, name: str, ports: Sequence[Row], ip4: str, ip6: str | None) -> None:
    """Delete exactly our elements; what is not there, or leads to another pod by now, is left.

    Each delete follows an add of the same element in the same transaction: the add does nothing
    where it is there and makes the delete possible where it is missing; where the port leads
    elsewhere the add fails, and so nobody else's element is deleted.
    """
    families = nat.family_of(table, "ip"), nat.family_of(table, "ip6")
    arguments = (*families, table, name, ports, ip4, ip6)
    pairs = [
        f"{put}\n{take}"
        for put, take in zip(
            commands("add", *arguments), commands("delete", *arguments), strict=True
        )
    ]
    if not _try("\n".join(pairs)):
        for pair in pairs:
            _try(pair)


def sweep(table: str, name: str) -> None:
    """Delete every element whose comment is `name`."""
    for where, key, owner in elements(table):
        if owner == _comment(name):
            _try(f"delete element {where} {{ {' . '.join(key)} }}")


def _try(commands: str) -> bool:
    """Run; False where an element leads elsewhere (EEXIST) or there is no table (ENOENT)."""
    try:
        nft.run(commands)
    except KernelError as error:
        if error.errno not in (2, 17):
            raise
        return False
    return True
