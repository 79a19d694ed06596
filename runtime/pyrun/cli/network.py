"""`pyrun network`: this node's pod network, as kept and as the kernel has it."""

from __future__ import annotations

from typing import Any

import click

from pyrun.cli.output import print_json, table
from pyrun.explain import steps
from pyrun.network import ipam, nat, node
from pyrun.store.paths import Paths


@click.group("network", epilog="Example: pyrun network inspect")
def network() -> None:
    """The network of this node's pods: a bridge, an address range, rules."""


@network.command("inspect", epilog="Example: pyrun network inspect")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text")
@click.pass_obj
def inspect_command(paths: Paths, form: str) -> None:
    """Show the node's pod network."""
    facts = describe(paths)
    if form == "json":
        print_json(facts)
        return
    for key, value in facts.items():
        shown = "\n               ".join(value) if isinstance(value, list) else value
        print(f"{key + ':':<15}{'-' if shown in (None, '') else shown}")


def describe(paths: Paths) -> dict[str, Any]:
    """The ranges as kept, what is missing in the kernel, how many addresses are leased.

    `blocked_by` names other programs' chains that drop forwarded packets by default.
    """
    net = node.node_network(paths)
    missing = [step.why for step in node.plan_node(paths, net)]
    return {
        "bridge": net.bridge,
        "mtu": net.mtu,
        "pod_cidr": net.cidr4,
        "cluster_cidr": net.cluster4,
        "gateway": net.gateway4,
        "pod_cidr6": net.cidr6,
        "cluster_cidr6": net.cluster6,
        "gateway6": net.gateway6,
        "table": f"{nat.family_of(net.table, 'ip')} {net.table}",
        "leases": len(ipam.leases(paths)),
        "missing": missing,
        "blocked_by": nat.dropping_chains(),
    }


@network.command("ls", epilog="Example: pyrun network ls")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table")
@click.pass_obj
def ls_command(paths: Paths, form: str) -> None:
    """List the leased addresses and who holds them."""
    net = node.node_network(paths)
    rows = [(owner, ipam.lease_of(net, address)) for address, owner in ipam.leases(paths).items()]
    if form == "json":
        print_json([{"name": name, "ip": held.ip4, "ip6": held.ip6} for name, held in rows])
    else:
        table([(name, held.ip4, held.ip6 or "-") for name, held in rows], ("NAME", "IP", "IP6"))


@network.command("rm", epilog="Example: pyrun network rm")
@click.pass_obj
def rm_command(paths: Paths) -> None:
    """Remove the bridge, the rules and the kept ranges; refused while a pod holds an address."""
    steps.run(node.plan_node_remove(paths, node.node_network(paths)))
