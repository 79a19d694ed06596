"""Pods and everything that can go wrong in the middle: kill -9, failing steps, Ctrl-C, dead
supervisors, a reboot. Nothing stays, or something that `pod rm -f` removes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import traceback
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from pod_lab import SLEEPER, addresses, free_port, make, member_pid, netns

from pyrun.container import record as records_of
from pyrun.container import verbs as container_verbs
from pyrun.container.options import Options
from pyrun.errors import PyrunError
from pyrun.explain import steps
from pyrun.pod import kubeyaml, verbs
from pyrun.pod.model import PodSpec
from support import DEADLINE, PYRUN, Node, namespace, read, running, status_of, veth, wait_until

POD = """
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  containers:
    - name: a
      image: busybox
      args: [sleep, "1000"]
      ports: [{containerPort: 80, hostPort: %d}]
      volumeMounts: [{name: disk, mountPath: /disk}, {name: memory, mountPath: /memory}]
    - {name: b, image: busybox, args: [sleep, "1000"]}
  volumes:
    - {name: disk, emptyDir: {}}
    - {name: memory, emptyDir: {medium: Memory}}
"""


@pytest.fixture
def spec(tmp_path: Path) -> PodSpec:
    file = tmp_path / "pod.yaml"
    file.write_text(POD % free_port())
    return kubeyaml.load(str(file))


class Saboteur(steps.Narrator):
    """Strikes when `after` steps are done, whatever plans they belong to."""

    def __init__(self, after: int, strike: Callable[[], None]) -> None:
        self.after = after
        self.strike = strike

    def done(self, step: steps.Step, nanoseconds: int) -> None:
        self.after -= 1
        if self.after == 0:
            self.strike()


def kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def fail() -> None:
    raise OSError(5, "sabotage")


def in_child(act: Callable[[], object], after: int, strike: Callable[[], None]) -> int:
    """Do it in a child process with a saboteur. Returns its wait status as an exit code:
    0 it came to its end, 1 it raised, -9 it was killed."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        steps.narrator = Saboteur(after, strike)
        act()
        os._exit(0)
    except (PyrunError, KeyboardInterrupt):
        os._exit(1)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(2)


def test_kill_9_after_any_step_of_create_leaves_only_what_rm_force_removes(
    pyrun: Node, spec: PodSpec
) -> None:
    before = pyrun.traces()
    for after in count(1):
        code = in_child(lambda: verbs.create(pyrun.paths, spec), after, kill_myself)
        if code == 0:
            break
        assert code == -9
        if after % 8 == 0:  # half a pod does not disturb those who look
            pyrun("pod", "ps")
            pyrun("ps", "-a")
            assert "taken" in pyrun.fails(125, "run", "-d", "--name", "web", "busybox")
        pyrun("pod", "rm", "-f", "web")
        wait_until(lambda: pyrun.traces() <= before, f"after step {after} nothing is left", 5)
    assert after > 40, "so many steps has a pod at least"


def test_kill_9_at_any_moment_of_create(pyrun: Node, spec: PodSpec, tmp_path: Path) -> None:
    """Not only between steps: also in the middle of one."""
    before = pyrun.traces()
    dice = random.Random(2)
    file = tmp_path / "pod.yaml"
    for _ in range(12):
        with open(os.devnull, "w") as null:
            process = subprocess.Popen(
                [*PYRUN, "pod", "create", "-f", str(file)],
                env=pyrun.env, stdout=null, stderr=null, stdin=subprocess.DEVNULL,
            )  # fmt: skip
            try:
                process.wait(dice.uniform(0.06, 0.3))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        pyrun("pod", "rm", "-f", "web")
        wait_until(lambda: pyrun.traces() <= before, "nothing is left", 5)


@pytest.mark.parametrize("strike", [fail, press_ctrl_c])
def test_a_failure_after_any_step_of_create_undoes_everything(
    pyrun: Node, spec: PodSpec, strike: Callable[[], None]
) -> None:
    before = pyrun.traces()
    for after in count(1) if strike is fail else range(1, 200, 7):
        code = in_child(lambda: verbs.create(pyrun.paths, spec), after, strike)
        if code == 0:
            break
        assert code == 1
        left = pyrun.traces() - before
        assert not left, f"after step {after}"
    assert after > 40


def test_a_failure_of_a_nodes_first_pod_takes_the_bridge_away_again(
    pyrun: Node, spec: PodSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYRUN_POD_CIDR", "PYRUN_POD_CIDR6"):
        monkeypatch.setenv(name, pyrun.env[name])
    pyrun("network", "rm")
    for after in range(1, 200, 3):
        code = in_child(lambda: verbs.create(pyrun.paths, spec), after, fail)
        if code == 0:
            break
        assert code == 1
        assert not os.path.exists(f"/sys/class/net/{pyrun.paths.bridge}"), f"after step {after}"
        assert pyrun.paths.nft_table not in running("nft", "list", "tables"), f"after step {after}"
    assert after > 40


def test_a_supervisor_that_dies_during_create_makes_it_fail_and_undo(
    pyrun: Node, spec: PodSpec
) -> None:
    before = pyrun.traces()

    def kill_the_supervisor() -> None:
        pid, _ = records_of.sandbox_state(pyrun.paths, "web").get("supervisor", (0, 0))
        if pid:
            os.kill(pid, signal.SIGKILL)

    failed = 0
    for after in range(1, 200, 3):
        code = in_child(lambda: verbs.create(pyrun.paths, spec), after, kill_the_supervisor)
        failed += code == 1
        if code == 1:
            assert not pyrun.traces() - before, f"after step {after}"
        else:
            assert code == 0
            verbs.remove(pyrun.paths, "web", force=True)
            if failed:
                break
    assert failed > 5
    wait_until(lambda: pyrun.traces() <= before, "nothing is left", 5)


def test_kill_9_after_any_step_of_rm_is_finished_by_rm_force(pyrun: Node, spec: PodSpec) -> None:
    before = pyrun.traces()

    def remove() -> None:
        verbs.remove(pyrun.paths, "web", force=True)

    for after in count(1):
        assert in_child(lambda: verbs.create(pyrun.paths, spec), 0, fail) == 0
        code = in_child(remove, after, kill_myself)
        if code == 0:
            break
        assert code == -9
        pyrun("pod", "rm", "-f", "web")
        wait_until(lambda: pyrun.traces() <= before, f"after step {after} nothing is left", 5)
    assert after > 10


def test_kill_9_while_a_member_is_added_is_cured_by_rm_force(pyrun: Node) -> None:
    make(pyrun, "web", f"a={SLEEPER}")
    before = pyrun.traces()
    options = Options(image="busybox", args=("sleep", "1000"), name="late", pod="web")
    for after in count(1):
        code = in_child(lambda: container_verbs.run(pyrun.paths, options), after, kill_myself)
        if code == 0:
            break
        assert code == -9
        pyrun("rm", "-f", "late")
        wait_until(lambda: pyrun.traces() <= before, f"after step {after} nothing is left", 5)
        [row] = json.loads(pyrun.out("pod", "ps", "--format", "json"))
        assert (row["status"], len(row["containers"])) == ("Running", 1), f"after step {after}"
    assert after > 10
    pyrun("rm", "-f", "late")


@pytest.mark.parametrize("verb", ["stop", "start"])
def test_kill_9_in_stop_and_start_is_cured_by_start(pyrun: Node, spec: PodSpec, verb: str) -> None:
    for after in range(1, 100, 4):
        assert in_child(lambda: verbs.create(pyrun.paths, spec), 0, fail) == 0
        if verb == "start":
            verbs.stop(pyrun.paths, "web", 0)
            code = in_child(lambda: verbs.start(pyrun.paths, "web"), after, kill_myself)
        else:
            code = in_child(lambda: verbs.stop(pyrun.paths, "web", 0), after, kill_myself)
        assert code in (0, -9)
        verbs.start(pyrun.paths, "web")
        assert len(addresses(pyrun, "web")) == 2
        assert member_pid(pyrun, "web", "a") and member_pid(pyrun, "web", "b")
        verbs.remove(pyrun.paths, "web", force=True)
        if code == 0:
            break
    assert after > 4


def test_ctrl_c_on_the_command_line(pyrun: Node) -> None:
    """A real SIGINT to the real command, somewhere in the middle."""
    process = pyrun.spawn("pod", "create", "--name", "web", "--container", SLEEPER)
    with process:
        wait_until(lambda: os.path.isdir(pyrun.paths.sandbox("web")), "it has begun")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130, said
    assert b"interrupted" in said
    assert pyrun.out("pod", "ps", "-q") == ""


def test_members_outlive_their_supervisor(pyrun: Node) -> None:
    make(pyrun, "web", f"a={SLEEPER}", f"b={SLEEPER}")
    a, b = member_pid(pyrun, "web", "a"), member_pid(pyrun, "web", "b")
    kill_supervisor(pyrun, "web")
    assert read(f"/proc/{a}/comm") == read(f"/proc/{b}/comm") == "sleep\n"
    assert len(addresses(pyrun, "web")) == 2
    [row] = json.loads(pyrun.out("pod", "ps", "--format", "json"))
    assert (row["status"], row["running"]) == ("Unsupervised", 2)
    pyrun("pod", "stop", "-t", "0", "web")
    assert has_ended(a) and has_ended(b)
    pyrun("pod", "start", "web")
    assert member_pid(pyrun, "web", "a")
    kill_supervisor(pyrun, "web")
    pyrun("pod", "rm", "-f", "web")


def kill_supervisor(pyrun: Node, pod: str, member: str = "a") -> None:
    pid = int(status_of(member_pid(pyrun, pod, member))["PPid"])
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: has_ended(pid), "the supervisor is gone")


def has_ended(pid: int) -> bool:
    """Gone, or a zombie for which its new parent has had no time yet."""
    try:
        return status_of(pid)["State"].startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_start_gives_running_members_a_new_supervisor(pyrun: Node) -> None:
    """The members that run do not notice; their output and exit codes are kept again."""
    port = free_port()
    talker = 'mkfifo /say; exec 3<>/say; while read -r words <&3; do eval "$words"; done'
    make(pyrun, "web", f"a=busybox sh -c '{talker}'", f"b={SLEEPER}", flags=("-p", f"{port}:80"))
    before, held = member_pid(pyrun, "web", "a"), addresses(pyrun, "web")
    kill_supervisor(pyrun, "web")
    pyrun("kill", "web-b")
    pyrun("pod", "start", "web")
    assert member_pid(pyrun, "web", "a") == before
    assert namespace(member_pid(pyrun, "web", "b"), "net") == namespace(before, "net")
    assert addresses(pyrun, "web") == held
    [row] = json.loads(pyrun.out("pod", "ps", "--format", "json"))
    assert row["status"] == "Running"
    # The port is held again.
    assert "taken by pod web" in pyrun.fails(125, "run", "-d", "-p", f"{port}:80", "busybox")
    say = Path(f"/proc/{before}/root/say")
    say.write_text("echo still here\n")
    wait_until(lambda: pyrun.out("logs", "web-a") == "still here", "its output is logged")
    with pyrun.spawn("wait", "web-a") as waiting:
        say.write_text("echo bye; exit 7\n")
        code, said = waiting.communicate(timeout=DEADLINE)
    assert (code, said) == (b"7\n", b"")
    assert pyrun.out("logs", "web-a") == "still here\nbye"
    # In the pod's care like any other: it can be started again, and be removed.
    pyrun("start", "web-a")
    assert member_pid(pyrun, "web", "a") != before


def test_the_port_of_a_pod_without_supervisor_is_still_its_own(pyrun: Node) -> None:
    port = free_port()
    make(pyrun, "web", f"a={SLEEPER}", flags=("-p", f"{port}:80"))
    kill_supervisor(pyrun, "web")
    before = pyrun.traces()
    create = ("pod", "create", "--name", "two", "-p", f"{port}:80", "--container", SLEEPER)
    assert "taken by pod web, whose supervisor has died" in pyrun.fails(125, *create)
    assert pyrun.traces() == before
    assert "pyrun pod start web" in pyrun.fails(125, "exec", "web-a", "true")


def test_a_pod_starts_again_after_a_reboot(pyrun: Node, spec: PodSpec) -> None:
    """As far as pyrun can see: no processes, namespaces, cgroups and mounts, an empty run root."""
    verbs.create(pyrun.paths, spec)
    pyrun("exec", "web-a", "sh", "-c", "echo kept > /disk/note; echo lost > /memory/note")
    pids = [member_pid(pyrun, "web", member) for member in "ab"]
    kill_supervisor(pyrun, "web")
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: all(map(has_ended, pids)), "they are dead")
    forget_everything_the_kernel_holds(pyrun, "web")
    assert not [trace for trace in pyrun.traces() if not trace.startswith("file")]

    [row] = json.loads(pyrun.out("pod", "ps", "--format", "json"))
    assert (row["status"], row["running"], row["ips"]) == ("Exited", 0, [])
    assert pyrun.out("wait", "web-a") == "255", "cut off by the reboot"
    pyrun("pod", "start", "web")
    assert pyrun.out("exec", "web-a", "cat", "/disk/note") == "kept"
    assert not os.path.exists(f"/proc/{member_pid(pyrun, 'web', 'a')}/root/memory/note")


def forget_everything_the_kernel_holds(pyrun: Node, pod: str) -> None:
    for link in (veth(pyrun, pod), pyrun.paths.bridge):
        subprocess.run(["ip", "link", "delete", link], check=True)
    subprocess.run(["nft", "delete", "table", "inet", pyrun.paths.nft_table], check=True)
    for line in reversed(read("/proc/self/mountinfo").splitlines()):
        if line.split()[4].startswith(pyrun.paths.run_root):
            subprocess.run(["umount", "-l", line.split()[4]], check=True)
    for hierarchy in [*pyrun.layout.hierarchies(), *pyrun.layout.named.values()]:
        top = hierarchy.directory(f"{pyrun.layout.base()}/{pyrun.paths.tag}/{pod}")
        for path, _, _ in os.walk(top, topdown=False):
            os.rmdir(path)
    for entry in os.listdir(pyrun.paths.run_root):
        path = f"{pyrun.paths.run_root}/{entry}"
        if os.path.isdir(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)


@pytest.mark.parametrize(
    "rival",
    [("pod", "create", "--name", "web", "--container", SLEEPER),
     ("run", "-d", "--name", "web", "busybox", "sleep", "1000")],
)  # fmt: skip
def test_a_name_taken_several_times_at_once(pyrun: Node, rival: tuple[str, ...]) -> None:
    command = ("pod", "create", "--name", "web", "--container", SLEEPER)
    processes = [
        pyrun.spawn(*words, stdin=subprocess.DEVNULL) for words in (command, rival, command, rival)
    ]
    results = []
    for process in processes:
        with process:
            _, said = process.communicate(timeout=DEADLINE)
            results.append((process.returncode, said))
    assert sorted(code for code, _ in results) == [0, 125, 125, 125], results
    assert all(b"taken" in said for code, said in results if code), results
    # The winner is whole, its address included.
    assert len(addresses(pyrun, "web")) == 2
    [lease] = os.listdir(pyrun.paths.leases)
    assert lease in addresses(pyrun, "web")
    pyrun("rm", "-f", "web")
    pyrun("pod", "rm", "-f", "web")


def test_a_pod_and_a_container_of_its_members_name_at_once(pyrun: Node) -> None:
    """Whoever comes second leaves the first one's things alone."""
    for _ in range(3):
        pod = pyrun.spawn("pod", "create", "--name", "web", "--container", f"a={SLEEPER}")
        lone = pyrun.spawn("run", "-d", "--name", "web-a", "busybox", "sleep", "1000")
        codes = []
        for process in (pod, lone):
            with process:
                process.communicate(timeout=DEADLINE)
                codes.append(process.returncode)
        assert sorted(codes) == [0, 125]
        assert pyrun.out("exec", "web-a", "echo", "alive") == "alive"
        pyrun("pod", "rm", "-f", "web")
        pyrun("rm", "-f", "web-a")


def test_many_pods_at_once(pyrun: Node) -> None:
    names = [f"p{number}" for number in range(20)]
    creates = [
        pyrun.spawn("pod", "create", "--name", name, "--container", f"a={SLEEPER}",
                    "--container", f"b={SLEEPER}", stdin=subprocess.DEVNULL)
        for name in names
    ]  # fmt: skip
    finish(creates)
    assert len({address for name in names for address in addresses(pyrun, name)}) == 40
    assert len({os.stat(netns(pyrun, name)).st_ino for name in names}) == 20
    finish([pyrun.spawn("pod", "rm", "-f", name, stdin=subprocess.DEVNULL) for name in names])


def finish(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        with process:
            _, said = process.communicate(timeout=60)
            assert process.returncode == 0, said


def test_a_storm_of_verbs_on_one_pod(pyrun: Node) -> None:
    """Whatever comes between whatever: every answer is an orderly one, and nothing is left."""
    before = pyrun.traces()
    dice = random.Random(7)
    choices = (
        ("pod", "create", "--name", "web", "--container", f"a={SLEEPER}", "--container", SLEEPER),
        ("pod", "start", "web"),
        ("pod", "stop", "-t", "0", "web"),
        ("pod", "restart", "-t", "0", "web"),
        ("pod", "kill", "web"),
        ("pod", "rm", "-f", "web"),
        ("pod", "ps"),
        ("pod", "inspect", "web"),
        ("run", "-d", "--pod", "web", "--name", "web-late", "busybox", "sleep", "1000"),
        ("rm", "-f", "web-late"),
        ("restart", "-t", "0", "web-a"),
    )
    for _ in range(6):
        storm = [choices[0], *(dice.choice(choices) for _ in range(7))]
        processes = [pyrun.spawn(*words, stdin=subprocess.DEVNULL) for words in storm]
        for words, process in zip(storm, processes, strict=True):
            with process:
                _, said = process.communicate(timeout=60)
            assert process.returncode in (0, 125), (words, said)
            assert b"Traceback" not in said, (words, said)
            assert b"left behind" not in said, (words, said)
    pyrun("pod", "rm", "-f", "web")
    pyrun("rm", "-f", "web-late")
    wait_until(lambda: pyrun.traces() <= before, "nothing is left", 5)
