"""Bad input, hosts that lack something, members that cannot start: one clear error, and nothing
left behind. Every test compares what is on the host before and after."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from pod_lab import SLEEPER, make, pod_file

from pyrun.store.paths import Paths
from support import PYRUN, Node, running
from support import names as names_in

HEAD = "apiVersion: v1\nkind: Pod\nmetadata: {name: bad}\nspec:\n"


@pytest.fixture
def untouched(pyrun: Node) -> Iterator[None]:
    before = pyrun.traces()
    yield
    assert pyrun.traces() == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("containers: [{name: a, image: busybox, comand: [x]}]", ["line 5", "comand"]),
        ("containers: [{name: a, image: busybox}]\n  hostPID: true", ["line 6", "spec.hostPID"]),
        (
            "containers:\n    - name: a\n      image: busybox\n      livenessProbe: {exec: {}}",
            ["line 8", "spec.containers[0].livenessProbe"],
        ),
        ("containers: [{name: a, image: busybox}]\n  volumes: [{name: v, nfs: {}}]", ["nfs"]),
        ("containers: []", ["spec.containers"]),
        ("containers: [{name: a}]", ["spec.containers[0].image"]),
        ("containers: [{name: A_, image: busybox}]", ["spec.containers[0].name"]),
        (
            "containers: [{name: a, image: busybox, volumeMounts: [{name: x, mountPath: /x}]}]",
            ["x", "line 5"],
        ),
        ("containers: [{name: a, image: busybox}, {name: a, image: busybox}]", ["a"]),
    ],
)
def test_unsupported_and_misspelt_fields_name_path_and_line(
    pyrun: Node, untouched: None, tmp_path: Path, text: str, said: list[str]
) -> None:
    error = pyrun.fails(125, "pod", "create", "-f", pod_file(tmp_path, f"{HEAD}  {text}\n"))
    for word in said:
        assert word in error


@pytest.mark.parametrize("text", ["", "{", "a: b: c", "- 1", "kind: Deployment\n", "\tx", "\0"])
def test_a_file_that_is_no_pod(pyrun: Node, untouched: None, text: str) -> None:
    pyrun.fails(125, "pod", "create", "-f", "-", input=text)


def test_a_file_that_is_not_there(pyrun: Node, untouched: None, tmp_path: Path) -> None:
    assert "nowhere.yaml" in pyrun.fails(125, "pod", "create", "-f", tmp_path / "nowhere.yaml")
    pyrun.fails(125, "pod", "create", "-f", tmp_path)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--name", "../x"), "cannot be a name"),
        (("--name", "x" * 200), "cannot be a name"),
        (("--publish", "http:80"), "http"),
        (("--publish", "70000:80"), "70000"),
        (("--publish", "80:80/sctp"), "sctp"),
        (("--publish", "192.0.2.7:8080:80"), "no such address"),
        (("--network", "none", "--publish", "80"), "needs the bridge network"),
        (("--dns", "not-an-address"), "not-an-address"),
        (("--add-host", "nobody"), "NAME:ADDRESS"),
        (("--add-host", "nobody:nowhere"), "nowhere"),
        (("--hostname", "x" * 65), "64"),
        (("--hostname", "two words"), "two words"),
        (("--shm-size", "plenty"), "plenty"),
        (("--container", ""), "names no image"),
        (("--container", "a=busybox 'unclosed"), "quotation"),
        (("--container", "a=busybox", "--container", "a=busybox"), "two members"),
        (("--container", "../a=busybox"), "cannot be a name"),
        (("--container", "=busybox"), "names no member"),
        (("--file", "-", "--name", "x"), "exclude"),
    ],
)
def test_flags_that_make_no_sense(
    pyrun: Node, untouched: None, flags: tuple[str, ...], said: str
) -> None:
    assert said in pyrun.fails(125, "pod", "create", "--container", SLEEPER, *flags)


def test_an_image_that_is_missing_for_the_third_member(pyrun: Node, untouched: None) -> None:
    members = ("a=busybox sleep 9", "b=busybox sleep 9", "c=example.test/missing:1")
    words = [word for member in members for word in ("--container", member)]
    said = pyrun.fails(125, "pod", "create", "--name", "web", *words)
    assert "example.test/missing:1" in said and "hint" in said


@pytest.mark.parametrize(
    ("command", "code"), [("no-such-command", 127), ("/no/such", 127), ("/etc", 126)]
)
def test_a_member_that_cannot_start(pyrun: Node, untouched: None, command: str, code: int) -> None:
    said = pyrun.fails(
        code, "pod", "create", "--name", "web", "-p", "80", "--container", f"a={SLEEPER}",
        "--container", f"b=busybox {command}",
    )  # fmt: skip
    assert command in said
    assert pyrun("pod", "exists", "web", check=False).returncode == 1


def test_names_that_are_taken(pyrun: Node) -> None:
    make(pyrun, "web", f"a={SLEEPER}")
    pyrun.start("busybox", "sleep", "1000", name="two-a")
    before = pyrun.traces()
    create = ("pod", "create", "--container", f"a={SLEEPER}", "--name")
    assert "taken by a pod" in pyrun.fails(125, *create, "web")
    assert "taken by a container" in pyrun.fails(125, *create, "web-a")
    assert "taken by a container" in pyrun.fails(125, *create, "two")
    for name in ("web", "web-a"):
        assert "taken" in pyrun.fails(125, "run", "-d", "--name", name, "busybox", "true")
    said = pyrun.fails(125, "run", "-d", "--pod", "web", "--name", "two-a", "busybox", "true")
    assert "taken" in said
    assert pyrun.traces() == before
    assert pyrun.out("exec", "web-a", "echo", "fine") == "fine"


def test_verbs_on_a_pod_that_is_not_there(pyrun: Node, untouched: None) -> None:
    for verb in ("start", "stop", "restart", "kill", "rm", "inspect", "logs", "top"):
        assert "no such pod: nobody" in pyrun.fails(125, "pod", verb, "nobody")
    pyrun("pod", "rm", "-f", "nobody")


def test_verbs_for_several_pods_go_on_after_a_failure(pyrun: Node) -> None:
    make(pyrun, "web", SLEEPER)
    done = pyrun("pod", "stop", "-t", "0", "nobody", "web", check=False)
    assert (done.returncode, done.stdout) == (125, "web\n")
    assert "no such pod: nobody" in done.stderr
    assert not pyrun.pids("web-busybox", "web")


def test_a_lone_container_is_no_pod(pyrun: Node) -> None:
    name = pyrun.start("busybox", "sleep", "1000")
    assert "is a container" in pyrun.fails(125, "pod", "rm", name)
    pyrun("pod", "rm", "-f", name)
    assert pyrun.pids(name)
    assert "is a container, not a pod" in pyrun.fails(125, "run", "--pod", name, "busybox", "true")


def on_a_full_disk(
    node: Node, places: list[str], pages: int, command: str
) -> subprocess.CompletedProcess[str]:
    """Run a shell line whose `"$@"` is pyrun, where each of the places is a file system of so many
    pages: a small file takes one. In a mount namespace of the test's own."""
    script = f"""
        set -e
        for place in {" ".join(places)}; do
            mkdir -p $place
            mount -t tmpfs -o size={pages * os.sysconf("SC_PAGESIZE")} none $place
        done
        {command}
    """
    return subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *PYRUN],
        env=node.env, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("where", ["root", "run root"])
def test_a_full_disk(pyrun: Node, where: str) -> None:
    """Whatever step the space runs out at, all is undone."""
    if where == "root":
        places = [pyrun.paths.containers, pyrun.paths.ids, pyrun.paths.sandboxes]
    else:
        run = pyrun.paths.run_root
        places = [f"{run}/containers", f"{run}/leases", f"{run}/sandboxes"]
    before = pyrun.traces()
    for pages in range(1, 20, 2):
        done = on_a_full_disk(
            pyrun, places, pages,
            f"""code=0; "$@" pod create --name web --container 'a={SLEEPER}' \
            --container 'b={SLEEPER}' || code=$?
            ls {" ".join(places)}
            "$@" pod rm -f web >&2; exit $code""",
        )  # fmt: skip
        if done.returncode == 0:
            break
        assert done.returncode == 125, done.stderr
        assert "ENOSPC" in done.stderr and "file system is full" in done.stderr
        assert done.stdout.split() == [f"{place}:" for place in places], done.stderr
        assert pyrun.traces() == before, f"{pages} pages"
    assert 1 < pages < 19
    assert pyrun.traces() == before


def test_leases_of_nobody_do_not_last(pyrun: Node) -> None:
    """What a create that was killed before its first record leaves is an address, held by name."""
    os.makedirs(pyrun.paths.leases, exist_ok=True)
    os.symlink("ghost", f"{pyrun.paths.leases}/192.0.2.1")
    pyrun("pod", "rm", "-f", "ghost")
    assert os.listdir(pyrun.paths.leases) == []


def test_the_first_pod_of_a_node_whose_range_is_taken(pyrun: Node, tmp_path: Path) -> None:
    """The range overlaps a route of the host: said before anything is made."""
    env = {
        **pyrun.env,
        "PYRUN_RUN_ROOT": str(tmp_path / "run"),
        "PYRUN_ROOT": str(tmp_path / "root"),
    }
    make(pyrun, "web", SLEEPER)
    done = pyrun("pod", "create", "--container", SLEEPER, env=env, check=False)
    assert done.returncode == 125 and "overlaps the route" in done.stderr
    bridge = Paths(env["PYRUN_ROOT"], env["PYRUN_RUN_ROOT"]).bridge
    assert bridge not in running("ip", "-br", "link")
    left = [name for _, _, names in os.walk(tmp_path / "run") for name in names]
    assert sorted(left) == ["boot.lock", "boot_id", "network.lock"]
    assert not names_in(str(tmp_path / "root" / "sandboxes"))
