"""`pyrun network` inside a node of its own, checked against `ip` and `nft`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from network_lab import Lab, Node

from pyrun.cli.main import root
from pyrun.errors import Conflict
from pyrun.kernel.netlink import Inside


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Node]:
    with Lab(tmp_path) as lab:
        yield lab.node()


def run(here: Node, *arguments: str) -> str:
    roots = ("--root", here.paths.root, "--run-root", here.paths.run_root)
    with Inside(here.path):
        result = CliRunner().invoke(root, [*roots, "network", *arguments])
    if result.exception is not None:
        raise result.exception
    return result.output


def test_inspect_tells_what_is_missing_and_changes_nothing(here: Node) -> None:
    before = here.links(), here.rules()
    facts = json.loads(run(here, "inspect", "--format", "json"))
    assert facts["pod_cidr"] == "10.66.0.0/24"
    assert any("switch" in why for why in facts["missing"])
    assert (here.links(), here.rules()) == before
    here.pod("web")
    facts = json.loads(run(here, "inspect", "--format", "json"))
    assert facts["missing"] == []
    assert facts["leases"] == 1
    assert facts["mtu"] == here.json("link", "show", facts["bridge"])[0]["mtu"]
    assert f"table {facts['table']} {{" in here.rules()


def test_inspect_names_a_firewall_that_drops_what_pods_send(here: Node) -> None:
    here.set_up()
    assert json.loads(run(here, "inspect", "--format", "json"))["blocked_by"] == []
    here.run("nft", "add table ip filter")
    hook = "{ type filter hook forward priority 0; policy drop; }"
    here.run("nft", f"add chain ip filter FORWARD {hook}")
    assert "ip filter FORWARD" in run(here, "inspect")


def test_ls_lists_who_holds_which_address(here: Node) -> None:
    assert json.loads(run(here, "ls", "--format", "json")) == []
    for name in ("web", "db"):
        here.pod(name)
    assert json.loads(run(here, "ls", "--format", "json")) == [
        {"name": "web", "ip": "10.66.0.2", "ip6": "fd66::2"},
        {"name": "db", "ip": "10.66.0.3", "ip6": "fd66::3"},
    ]
    assert [line.split()[0] for line in run(here, "ls").splitlines()] == ["NAME", "web", "db"]


def test_rm_is_refused_in_use_and_leaves_nothing_otherwise(here: Node) -> None:
    before = here.links(), here.rules()
    pod = here.pod("web")
    with pytest.raises(Conflict, match="in use by 1 sandboxes: web"):
        run(here, "rm")
    pod.remove()
    run(here, "rm")
    assert (here.links(), here.rules()) == before
    assert run(here, "ls").split() == ["NAME", "IP", "IP6"]
