"""`pyrun run`: which namespaces are its own and which are shared, by their inodes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from support import PYRUN, Node, namespace, read, running, status_of, wait_until

KINDS = ("mnt", "pid", "net", "uts", "ipc", "cgroup")


def test_a_container_has_its_own_of_every_kind_but_user(pyrun: Node) -> None:
    one = pyrun.pid(pyrun.start("busybox", "sleep", "100"))
    two = pyrun.pid(pyrun.start("busybox", "sleep", "100"))
    for kind in KINDS:
        assert len({namespace(pid, kind) for pid in (one, two, "self")}) == 3, kind
    for kind in ("user", "time"):
        assert namespace(one, kind) == namespace("self", kind)


def test_its_cgroups_look_like_the_root(pyrun: Node) -> None:
    name = pyrun.start("busybox", "sleep", "100")
    inside = pyrun.out("exec", name, "cat", "/proc/self/cgroup").splitlines()
    # Without a controller of pyrun's (v1's name=systemd) it stays where it was.
    assert all(line.endswith(":/") for line in inside if "name=" not in line)


def test_pid_1_inside(pyrun: Node) -> None:
    name = pyrun.start("busybox", "sleep", "100")
    assert status_of(pyrun.pid(name))["NSpid"].split()[-1] == "1"
    assert len(pyrun.out("exec", name, "ps", "-o", "pid").splitlines()) == 3


def test_the_default_network_is_a_bridge_with_an_address(pyrun: Node) -> None:
    pid = pyrun.pid(pyrun.start("busybox", "sleep", "100"))
    links = json.loads(running("nsenter", "-t", str(pid), "-n", "ip", "-j", "address"))
    by_name = {link["ifname"]: link for link in links}
    assert set(by_name) == {"lo", "eth0"}
    addresses = {info["local"] for info in by_name["eth0"]["addr_info"]}
    start = pyrun.env["PYRUN_POD_CIDR"].rpartition(".")[0]
    assert any(address.startswith(start) for address in addresses)
    assert "UP" in by_name["lo"]["flags"]


def test_containers_reach_each_other(pyrun: Node) -> None:
    server = pyrun.start("busybox", "sh", "-c", "mkdir /w; echo it > /w/x; httpd -f -p 80 -h /w")
    pid = str(pyrun.pid(server))
    info = json.loads(running("nsenter", "-t", pid, "-n", "ip", "-j", "-4", "address", "show",
                              "dev", "eth0"))  # fmt: skip
    url = f"http://{info[0]['addr_info'][0]['local']}/x"
    wait_until(lambda: ":0050 " in read(f"/proc/{pid}/net/tcp") + read(f"/proc/{pid}/net/tcp6"),
               "it listens")  # fmt: skip
    assert pyrun.out("run", "--rm", "busybox", "wget", "-q", "-O", "-", url) == "it"


def test_network_none_has_only_a_loopback_that_works(pyrun: Node) -> None:
    name = pyrun.start("--network", "none", "busybox", "sleep", "100")
    links = json.loads(running("nsenter", "-t", str(pyrun.pid(name)), "-n", "ip", "-j", "address"))
    assert [link["ifname"] for link in links] == ["lo"] and "UP" in links[0]["flags"]


def test_network_host(pyrun: Node) -> None:
    name = pyrun.start("--network", "host", "busybox", "sleep", "100")
    pid = pyrun.pid(name)
    assert namespace(pid, "net") == namespace("self", "net")
    assert namespace(pid, "uts") != namespace("self", "uts")
    assert read(f"/proc/{pid}/root/etc/hostname").strip() == os.uname().nodename


def test_network_of_another_container(pyrun: Node) -> None:
    one = pyrun.start("busybox", "sleep", "100")
    two = pyrun.start("--network", f"container:{one}", "busybox", "sleep", "100")
    assert namespace(pyrun.pid(one), "net") == namespace(pyrun.pid(two), "net")
    assert namespace(pyrun.pid(one), "ipc") != namespace(pyrun.pid(two), "ipc")
    # Removing the guest leaves the host's network as it is.
    pyrun("rm", "-f", two)
    assert pyrun.out("exec", one, "ip", "-o", "link").count("\n") == 1


def test_pid_host_and_of_another_container(pyrun: Node) -> None:
    host = pyrun.start("--pid", "host", "busybox", "sleep", "100")
    assert namespace(pyrun.pid(host), "pid") == namespace("self", "pid")
    assert pyrun.out("exec", host, "readlink", "/proc/1/comm", check=False) == ""
    assert pyrun.out("exec", host, "cat", "/proc/1/comm") == read("/proc/1/comm").strip()
    one = pyrun.start("busybox", "sleep", "100")
    two = pyrun.start("--pid", f"container:{one}", "busybox", "sleep", "99")
    assert namespace(pyrun.pid(one), "pid") == namespace(pyrun.pid(two), "pid")
    assert "sleep 100" in pyrun.out("exec", two, "ps", "-o", "args")


def test_ipc(pyrun: Node) -> None:
    host = pyrun.pid(pyrun.start("--ipc", "host", "busybox", "sleep", "100"))
    assert namespace(host, "ipc") == namespace("self", "ipc")
    assert os.stat(f"/proc/{host}/root/dev/shm").st_dev == os.stat("/dev/shm").st_dev
    one = pyrun.start("--ipc", "shareable", "busybox", "sleep", "100")
    two = pyrun.start("--ipc", f"container:{one}", "busybox", "sleep", "100")
    assert namespace(pyrun.pid(one), "ipc") == namespace(pyrun.pid(two), "ipc")
    pyrun("exec", one, "touch", "/dev/shm/shared")
    assert pyrun.out("exec", two, "ls", "/dev/shm") == "shared"


# --init


def test_init_reaps_orphans(pyrun: Node) -> None:
    # The middle shell ends at once, so its child becomes an orphan, and a zombie when it ends.
    name = pyrun.start("--init", "busybox", "sh", "-c", "(true & ); (sleep 0 & ); sleep 100")
    pyrun("exec", name, "sh", "-c", "(sh -c 'exit 3' & ); true")

    def zombies() -> list[int]:
        return [pid for pid in pyrun.pids(name) if status_of(pid)["State"].startswith("Z")]

    # Init, and sleep in the shell's place. An orphan may still be on its way to its end.
    wait_until(lambda: len(pyrun.pids(name)) == 2, "the orphans are gone")
    assert not zombies()


def test_init_forwards_signals_and_keeps_the_exit_code(pyrun: Node) -> None:
    script = "trap 'exit 42' TERM; echo ready; while :; do sleep 1; done"
    name = pyrun.start("--init", "busybox", "sh", "-c", script)
    wait_until(lambda: pyrun.out("logs", name) == "ready", "the trap is set")
    pyrun("kill", "-s", "TERM", name)
    assert pyrun.out("wait", name) == "42"


def test_init_lets_a_program_without_handlers_be_stopped(pyrun: Node) -> None:
    """As pid 1 a program ignores TERM that it does not handle; beneath an init it dies of it."""
    name = pyrun.start("--init", "busybox", "sleep", "100")
    pyrun("stop", "-t", "30", name)
    assert pyrun.out("wait", name) == str(128 + signal.SIGTERM)


# where the host's / is shared, and where it is private


@pytest.mark.parametrize("propagation", ["shared", "private", "slave"])
def test_it_works_whatever_the_propagation_of_the_hosts_root(
    pyrun: Node, propagation: str, tmp_path: Path
) -> None:
    """In a mount namespace of the test's own; no mount of a container may come back into it."""
    script = f"""
        mount --make-r{propagation} /
        cp /proc/self/mountinfo {tmp_path}/before
        "$@" run --rm -v {tmp_path}:/a --tmpfs /t busybox sh -c 'echo works > /a/x'
        # Some may go meanwhile: who removes a directory detaches what is mounted on it everywhere.
        diff {tmp_path}/before /proc/self/mountinfo | grep '^>' || true
    """
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", "sh", "-ec", script, "sh", *PYRUN],
        env=pyrun.env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (tmp_path / "x").read_text() == "works\n"
    assert done.stdout == done.stderr == ""


def test_exec_stays_in_the_container_where_pyrun_runs_below_a_chroot(
    pyrun: Node, tmp_path: Path
) -> None:
    """setns(2) goes to the root of the mount namespace, which is then the real host's."""
    (tmp_path / "below").mkdir()
    script = f"""
        mount --rbind / {tmp_path}/below
        inside="chroot {tmp_path}/below"
        $inside "$@" run -d --name below --network none busybox sleep 1000 >/dev/null
        $inside "$@" exec below sh -c 'ls -d /bin/busybox /usr/lib/os-release 2>/dev/null' || true
        $inside "$@" rm -f below >/dev/null
    """
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", "sh", "-ec", script, "sh", *PYRUN],
        env=pyrun.env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["/bin/busybox"], done.stderr
    assert os.path.exists("/usr/lib/os-release"), "what the container must not see"


def test_a_supervisor_holds_nothing_of_its_caller(pyrun: Node, tmp_path: Path) -> None:
    """A script's lock or pipe must not be held for as long as the container lives."""
    lock = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    os.set_inheritable(lock, True)
    try:
        done = subprocess.run(
            [*PYRUN, "run", "-d", "--name", "holds", "busybox", "sleep", "1000"],
            env=pyrun.env, pass_fds=[lock], capture_output=True, text=True, check=True,
        )  # fmt: skip
    finally:
        os.close(lock)
    assert done.stdout
    for pid in (pyrun.supervisor("holds"), pyrun.pid("holds")):
        held = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        assert str(tmp_path / "lock") not in held


def test_the_roots_are_roots_alone(pyrun: Node) -> None:
    """CVE-2021-41091: a user of the host must not reach the setuid programs of images."""
    for root in (pyrun.paths.root, pyrun.paths.run_root):
        os.chmod(root, 0o755)
    pyrun("ps")
    for root in (pyrun.paths.root, pyrun.paths.run_root):
        assert os.stat(root).st_mode & 0o777 == 0o700


def test_no_capability_is_inheritable(pyrun: Node) -> None:
    """CVE-2022-29162: nor ambient, so a user other than root gets none back by a file's."""
    name = pyrun.start("--cap-add", "NET_ADMIN", "busybox", "sleep", "1000")
    status = status_of(pyrun.pid(name))
    assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
