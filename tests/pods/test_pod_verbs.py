"""The pod verbs, one after the other, held against the kernel."""

from __future__ import annotations

import json
import os

import pytest
from pod_lab import SLEEPER, addresses, make, member_pid, netns, pod_file

from support import Node, read, status_of, wait_until

TWO = ("a=busybox sleep 1000", "b=busybox sleep 1000")

YAML = """
apiVersion: v1
kind: Pod
metadata:
  name: filed
  labels: {app: demo}
spec:
  hostname: of-the-file
  containers:
    - name: one
      image: busybox
      command: [sh, -c]
      args: ['echo "$GREETING $(pwd)"; exec sleep 1000']
      workingDir: /tmp
      env:
        - {name: WHO, value: world}
        - {name: GREETING, value: hello $(WHO)}
    - name: two
      image: busybox
      args: [sleep, "1000"]
"""


def listing(pyrun: Node, pod: str) -> dict[str, object]:
    [row] = [row for row in json.loads(pyrun.out("pod", "ps", "--format", "json"))
             if row["name"] == pod]  # fmt: skip
    return dict(row)


def test_create_prints_the_name_and_starts_every_member(pyrun: Node) -> None:
    out = pyrun.out("pod", "create", "--name", "web", *(w for m in TWO for w in ("--container", m)))
    assert out == "web"
    for member in "ab":
        command = read(f"/proc/{member_pid(pyrun, 'web', member)}/cmdline")
        assert command == "sleep\x001000\x00"


def test_create_names_pod_and_members_by_itself(pyrun: Node) -> None:
    pod = pyrun.out("pod", "create", "--container", SLEEPER, "--container", SLEEPER)
    assert listing(pyrun, pod)["running"] == 2
    assert [row["Names"][0] if "Names" in row else row["name"]
            for row in json.loads(pyrun.out("ps", "--format", "json"))] == [
        f"{pod}-busybox", f"{pod}-busybox2"]  # fmt: skip


@pytest.mark.parametrize("way", ["file", "stdin"])
def test_create_from_kubernetes_yaml(pyrun: Node, tmp_path: object, way: str) -> None:
    if way == "file":
        assert isinstance(tmp_path, os.PathLike)
        out = pyrun.out("pod", "create", "-f", pod_file(tmp_path, YAML))  # type: ignore[arg-type]
    else:
        out = pyrun.out("pod", "create", "-f", "-", input=YAML)
    assert out.splitlines()[-1] == "filed"
    one = member_pid(pyrun, "filed", "one")
    assert os.readlink(f"/proc/{one}/cwd") == "/tmp"
    assert pyrun.out("exec", "filed-one", "hostname") == "of-the-file"
    wait_until(lambda: pyrun.out("logs", "filed-one") == "hello world /tmp", "its first line")
    assert listing(pyrun, "filed")["labels"] == {"app": "demo"}


def test_members_answer_to_pod_dash_container_everywhere(pyrun: Node) -> None:
    make(pyrun, "web", "a=busybox sh -c 'echo said; exec sleep 1000'")
    assert pyrun.out("exec", "web-a", "echo", "yes") == "yes"
    wait_until(lambda: pyrun.out("logs", "web-a") == "said", "its output")
    [facts] = json.loads(pyrun.out("inspect", "web-a"))
    assert facts["pod"] == "web"
    assert "web-a" in pyrun.out("ps")
    pyrun("stop", "-t", "0", "web-a")
    assert not pyrun.pids("web-a", "web")
    pyrun("start", "web-a")
    assert pyrun.pids("web-a", "web")
    pyrun("kill", "web-a")
    assert pyrun.out("wait", "web-a") == "137"


def test_stop_and_start_keep_members_and_their_files(pyrun: Node) -> None:
    make(pyrun, "web", *TWO)
    pyrun("exec", "web-a", "sh", "-c", "echo kept > /note")
    before = member_pid(pyrun, "web", "a")
    pyrun("pod", "stop", "-t", "0", "web")
    assert not os.path.exists(f"/proc/{before}")
    assert not os.path.exists(netns(pyrun, "web"))
    assert not pyrun.pids("web-b", "web")
    assert listing(pyrun, "web")["status"] == "Exited"
    assert not [trace for trace in pyrun.traces() if trace.startswith(("link", "cgroup", "mount"))]
    pyrun("pod", "start", "web")
    assert member_pid(pyrun, "web", "b")
    assert len(addresses(pyrun, "web")) == 2
    assert pyrun.out("exec", "web-a", "cat", "/note") == "kept"


def test_stop_waits_no_longer_than_the_longest_member(pyrun: Node) -> None:
    trap = "busybox sh -c 'trap \"echo bye; exit 3\" TERM; while :; do sleep 0.01; done'"
    make(pyrun, "web", f"a={trap}", f"b={trap}")
    wait_until(lambda: has_handler(member_pid(pyrun, "web", "b"), 15), "the trap")
    wait_until(lambda: has_handler(member_pid(pyrun, "web", "a"), 15), "the trap")
    pyrun("pod", "stop", "web")
    codes = {c["name"]: c["exit_code"] for c in listing(pyrun, "web")["containers"]}  # type: ignore[attr-defined]
    assert codes == {"web-a": 3, "web-b": 3}
    assert pyrun.out("logs", "web-a") == "bye"


def has_handler(pid: int, signal: int) -> bool:
    return bool(int(status_of(pid)["SigCgt"], 16) >> (signal - 1) & 1)


def test_paused_members_are_stopped_and_removed(pyrun: Node) -> None:
    make(pyrun, "web", *TWO)
    pyrun("pause", "web-a")
    pyrun("pod", "stop", "-t", "0", "web")
    assert not pyrun.pids("web-a", "web")
    pyrun("pod", "start", "web")
    pyrun("pause", "web-b")
    pyrun("pod", "rm", "-f", "web")


def test_stop_of_a_stopped_and_start_of_a_running_pod_change_nothing(pyrun: Node) -> None:
    make(pyrun, "web", *TWO)
    pid = member_pid(pyrun, "web", "a")
    pyrun("pod", "start", "web")
    assert member_pid(pyrun, "web", "a") == pid
    pyrun("pod", "stop", "-t", "0", "web")
    pyrun("pod", "stop", "-t", "0", "web")


def test_start_starts_members_that_have_ended_and_leaves_the_others(pyrun: Node) -> None:
    make(pyrun, "web", *TWO)
    kept, ended = member_pid(pyrun, "web", "a"), member_pid(pyrun, "web", "b")
    pyrun("kill", "web-b")
    pyrun("pod", "start", "web")
    assert member_pid(pyrun, "web", "a") == kept
    assert member_pid(pyrun, "web", "b") != ended


def test_restart_gives_new_processes(pyrun: Node) -> None:
    make(pyrun, "web", *TWO)
    before = member_pid(pyrun, "web", "a")
    pyrun("pod", "restart", "-t", "0", "web")
    assert member_pid(pyrun, "web", "a") != before


def test_kill_signals_every_member(pyrun: Node) -> None:
    make(pyrun, "web", *TWO)
    pyrun("pod", "kill", "web")
    assert pyrun.out("wait", "web-a", "web-b") == "137\n137"
    assert "no running member" in pyrun.fails(125, "pod", "kill", "web")


def test_rm_refuses_a_running_pod_and_force_does_not(pyrun: Node) -> None:
    make(pyrun, "web", *TWO)
    assert "web-a" in pyrun.fails(125, "pod", "rm", "web")
    assert member_pid(pyrun, "web", "a")
    assert pyrun.out("pod", "rm", "-f", "web") == "web"
    assert "no such pod" in pyrun.fails(125, "pod", "rm", "web")
    pyrun("pod", "rm", "-f", "web")


def test_rm_all(pyrun: Node) -> None:
    make(pyrun, "one", TWO[0])
    make(pyrun, "two", TWO[0])
    assert pyrun.out("pod", "rm", "-fa").splitlines() == ["one", "two"]
    assert pyrun.out("pod", "ps", "-q") == ""


def test_ps_and_inspect_tell_what_the_kernel_tells(pyrun: Node) -> None:
    make(pyrun, "web", *TWO, flags=("-l", "app=demo"))
    row = listing(pyrun, "web")
    assert row["ips"] == addresses(pyrun, "web")
    assert (row["status"], row["running"]) == ("Running", 2)
    [facts] = json.loads(pyrun.out("pod", "inspect", "web"))
    assert [c["pid"] for c in facts["containers"]] == [member_pid(pyrun, "web", m) for m in "ab"]
    assert facts["network_namespace"] == netns(pyrun, "web")
    assert facts["labels"] == {"app": "demo"}
    assert pyrun.out("pod", "ps", "-q") == "web"
    assert "2/2" in pyrun.out("pod", "ps")
    pyrun("kill", "web-b")
    assert listing(pyrun, "web")["status"] == "Degraded"
    # By its id as well.
    assert json.loads(pyrun.out("pod", "inspect", facts["id"][:12]))[0]["name"] == "web"


def test_logs_of_all_members_in_the_order_of_time(pyrun: Node) -> None:
    make(pyrun, "web", "a=busybox sh -c 'echo from a; echo err >&2; exec sleep 1000'", TWO[1])

    def lines() -> list[str]:
        return pyrun.out("pod", "logs", "web").splitlines()

    wait_until(lambda: len(lines()) == 2, "the lines of a")
    pyrun("run", "--pod", "web", "--name", "web-late", "busybox", "echo", "from late")
    assert [line.split(" | ")[1] for line in lines()] == ["from a", "err", "from late"]
    assert lines()[2].startswith("web-late")
    assert pyrun.out("pod", "logs", "-n", "1", "web").endswith("from late")
    assert pyrun.out("pod", "logs", "-c", "late", "web") == "from late"
    assert "no member 'nobody'" in pyrun.fails(125, "pod", "logs", "-c", "nobody", "web")


def test_logs_follow_until_every_member_has_ended(pyrun: Node) -> None:
    make(pyrun, "web", "a=busybox sh -c 'read x; echo a done'", "b=busybox sh -c 'echo b done'")
    pyrun("wait", "web-a", "web-b")
    done = pyrun("pod", "logs", "-f", "web")
    assert {line.split(" | ")[1] for line in done.stdout.splitlines()} == {"a done", "b done"}


def test_top_lists_the_processes_of_every_member(pyrun: Node) -> None:
    make(pyrun, "web", *TWO)
    pid = member_pid(pyrun, "web", "a")
    rows = json.loads(pyrun.out("pod", "top", "--format", "json", "web"))
    assert {"member": "web-a", "pid": pid, "inner_pid": 1, "ppid": int(status_of(pid)["PPid"]),
            "uid": 0, "command": "sleep 1000"} in rows  # fmt: skip
    assert len(rows) == 2


def test_exists(pyrun: Node) -> None:
    make(pyrun, "web", TWO[0])
    assert pyrun("pod", "exists", "web").returncode == 0
    assert pyrun("pod", "exists", "nobody", check=False).returncode == 1
    name = pyrun.start("busybox", "sleep", "1000")
    assert pyrun("pod", "exists", name, check=False).returncode == 1, "a container is no pod"


def test_prune_removes_what_does_not_run(pyrun: Node) -> None:
    make(pyrun, "up", TWO[0])
    make(pyrun, "down", TWO[0])
    pyrun("pod", "stop", "-t", "0", "down")
    assert pyrun.out("pod", "prune") == "down"
    assert pyrun.out("pod", "ps", "-q") == "up"


def test_an_empty_pod_takes_members_later(pyrun: Node) -> None:
    make(pyrun, "web")
    assert len(addresses(pyrun, "web")) == 2
    assert listing(pyrun, "web")["status"] == "Ready"
    pyrun("run", "-d", "--pod", "web", "--name", "web-a", "busybox", "sleep", "1000")
    assert member_pid(pyrun, "web", "a")
    assert pyrun.out("run", "--rm", "--pod", "web", "busybox", "hostname") == "web"
    pyrun("rm", "-f", "web-a")
    assert listing(pyrun, "web")["containers"] == []
    assert len(addresses(pyrun, "web")) == 2, "the pod outlives its last member"


def test_what_belongs_to_the_pod_cannot_be_asked_of_a_member(pyrun: Node) -> None:
    make(pyrun, "web", TWO[0])
    for flags in (("-p", "80"), ("--hostname", "x"), ("--network", "none")):
        said = pyrun.fails(125, "run", "--pod", "web", *flags, "busybox", "true")
        assert "belong to the pod" in said
    said = pyrun.fails(125, "run", "--pod", "nobody", "busybox", "true")
    assert "no such pod" in said


def test_the_pod_network_can_be_the_hosts_or_none(pyrun: Node) -> None:
    make(pyrun, "alone", TWO[0], flags=("--network", "none"))
    make(pyrun, "hostly", TWO[0], flags=("--network", "host"))
    assert pyrun.out("exec", "alone-a", "ls", "/sys/class/net") == "lo"
    here = os.readlink("/proc/self/ns/net")
    assert os.readlink(f"/proc/{member_pid(pyrun, 'hostly', 'a')}/ns/net") == here
    for pod in ("alone", "hostly"):
        pyrun("pod", "restart", "-t", "0", pod)
        assert pyrun.out("exec", f"{pod}-a", "hostname") == pod
