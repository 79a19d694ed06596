"""What members share and what they do not: namespaces, names, volumes, cgroups. Read in /proc."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

from pod_lab import SLEEPER, addresses, make, member_pid, netns, pod_file

from support import Node, namespace, read, running

A, B = f"a={SLEEPER}", f"b={SLEEPER}"


def yaml(volumes: str, mount: str, name: str = "vol", members: str = "ab") -> str:
    text = f"apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  containers:\n"
    for member in members:
        text += f"""
    - name: {member}
      image: busybox
      args: [sleep, "1000"]
      volumeMounts: [{{name: v, mountPath: {mount}}}]
"""
    return text + f"  volumes: [{{name: v, {volumes}}}]\n"


def inside(pid: int, path: str) -> Path:
    """A path of a container, seen through its first process's root."""
    return Path(f"/proc/{pid}/root{path}")


def mount_of(pid: int, path: str) -> list[str]:
    """The mountinfo fields of what is mounted at `path` in a container: proc(5)."""
    rows = [line.split() for line in read(f"/proc/{pid}/mountinfo").splitlines()]
    return next(row for row in reversed(rows) if row[4] == path)


def test_members_share_network_uts_and_ipc_and_nothing_else(pyrun: Node) -> None:
    make(pyrun, "web", A, B)
    a, b = member_pid(pyrun, "web", "a"), member_pid(pyrun, "web", "b")
    for kind in ("net", "uts", "ipc"):
        assert namespace(a, kind) == namespace(b, kind) != namespace("self", kind)
    for kind in ("mnt", "pid", "cgroup"):
        assert len({namespace(pid, kind) for pid in (a, b, "self")}) == 3
    assert namespace(a, "user") == namespace("self", "user")
    # The pins are those very namespaces.
    run = pyrun.paths.sandbox_run("web")
    for kind, path in (("net", netns(pyrun, "web")), ("uts", f"{run}/ns/uts"),
                       ("ipc", f"{run}/ns/ipc")):  # fmt: skip
        assert os.stat(path).st_ino == os.stat(f"/proc/{a}/ns/{kind}").st_ino
    late = pyrun.out("run", "--rm", "--pod", "web", "busybox", "readlink", "/proc/self/ns/net")
    assert late == namespace(a, "net")


def test_each_member_has_its_own_files_and_pids(pyrun: Node) -> None:
    make(pyrun, "web", A, B)
    pyrun("exec", "web-a", "touch", "/only-in-a")
    assert not inside(member_pid(pyrun, "web", "b"), "/only-in-a").exists()
    assert "sleep" in pyrun.out("exec", "web-b", "cat", "/proc/1/cmdline")
    assert int(pyrun.out("exec", "web-b", "sh", "-c", "ls /proc | grep -c '^[0-9]*$'")) <= 4


def test_the_pod_outlives_every_member(pyrun: Node) -> None:
    make(pyrun, "web", A, B)
    before, shared = addresses(pyrun, "web"), os.stat(netns(pyrun, "web")).st_ino
    pyrun("rm", "-f", "web-a")
    pyrun("kill", "web-b")
    assert addresses(pyrun, "web") == before
    pyrun("start", "web-b")
    assert os.stat(f"/proc/{member_pid(pyrun, 'web', 'b')}/ns/net").st_ino == shared


def test_ip_netns_lists_the_pod_by_its_name(pyrun: Node) -> None:
    """With the default roots, in a mount namespace of the test's own; the node's name is random,
    its files and its netns directory are private to it."""
    name = f"pyt-{os.getpid()}-listed"
    script = f"""
        set -e
        trap '"$@" pod rm -f {name}' EXIT
        mount -t tmpfs none /run
        mkdir -p /run/netns /run/pyrun /var/lib/pyrun
        mount -t tmpfs none /var/lib/pyrun
        "$@" pod create --name {name} --network none --container 'busybox sleep 1000'
        ip netns list
        ip netns exec {name} ip -br link
        "$@" pod rm -f {name}
        ip netns list | wc -l
    """
    from support import PYRUN

    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *PYRUN],
        capture_output=True, text=True, timeout=60, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    created, listed, link, gone, count = done.stdout.splitlines()
    assert (created, listed.split()[0], link.split()[0], gone) == (name, name, "lo", name)
    assert count == "0"


def test_somebody_elses_namespace_of_that_name_is_respected(pyrun: Node) -> None:
    place = Path(netns(pyrun, "web"))
    place.parent.mkdir(exist_ok=True)
    place.touch()
    running("unshare", f"--net={place}", "true")
    theirs = os.stat(place).st_ino
    try:
        assert str(place) in pyrun.fails(
            125, "pod", "create", "--name", "web", "--container", SLEEPER
        )
        assert os.stat(place).st_ino == theirs
        assert pyrun.out("pod", "ps", "-q") == ""
    finally:
        running("umount", str(place))
        place.unlink()
    # Nor is one taken away that came while the pod was stopped.
    make(pyrun, "web", A)
    pyrun("pod", "stop", "-t", "0", "web")
    place.touch()
    running("unshare", f"--net={place}", "true")
    theirs = os.stat(place).st_ino
    try:
        pyrun.fails(125, "pod", "start", "web")
        pyrun("pod", "rm", "-f", "web")
        assert os.stat(place).st_ino == theirs
    finally:
        running("umount", str(place))
        place.unlink()


def test_hosts_resolv_conf_and_hostname(pyrun: Node) -> None:
    make(
        pyrun, "web", A, B,
        flags=("--hostname", "front", "--dns", "192.0.2.53", "--add-host", "db:192.0.2.9"),
    )  # fmt: skip
    for member in "ab":
        pid = member_pid(pyrun, "web", member)
        hosts = [line.split() for line in inside(pid, "/etc/hosts").read_text().splitlines()]
        assert ["192.0.2.9", "db"] in hosts
        for address in addresses(pyrun, "web"):
            assert [address, "front"] in hosts
        assert "nameserver 192.0.2.53\n" in inside(pid, "/etc/resolv.conf").read_text()
        assert inside(pid, "/etc/hostname").read_text() == "front\n"
    assert pyrun.out("exec", "web-b", "hostname") == "front"
    # One file, not copies: what a member writes the others read.
    pyrun("exec", "web-a", "sh", "-c", "echo 192.0.2.10 late >> /etc/hosts")
    assert "192.0.2.10 late" in pyrun.out("exec", "web-b", "cat", "/etc/hosts")


def test_shared_memory_is_the_pods(pyrun: Node) -> None:
    make(pyrun, "web", A, B, flags=("--shm-size", "2m"))
    pyrun("exec", "web-a", "sh", "-c", "echo hello > /dev/shm/note")
    assert pyrun.out("exec", "web-b", "cat", "/dev/shm/note") == "hello"
    pid = member_pid(pyrun, "web", "a")
    size = os.statvfs(inside(pid, "/dev/shm"))
    assert size.f_blocks * size.f_frsize == 2 << 20


def test_system_v_ipc_is_the_pods(pyrun: Node) -> None:
    make(pyrun, "web", A, B)
    assert len(pyrun.out("exec", "web-b", "cat", "/proc/sysvipc/shm").splitlines()) == 1
    running("nsenter", "-t", str(member_pid(pyrun, "web", "a")), "-i", "ipcmk", "-M", "4096")
    assert len(pyrun.out("exec", "web-b", "cat", "/proc/sysvipc/shm").splitlines()) == 2


def test_empty_dir_on_disk(pyrun: Node, tmp_path: Path) -> None:
    """Starts empty whatever the image has there, is shared, outlives members, ends with the pod."""
    pyrun("pod", "create", "-f", pod_file(tmp_path, yaml("emptyDir: {}", "/etc")))
    pids = [member_pid(pyrun, "vol", member) for member in "ab"]
    names = set(os.listdir(inside(pids[0], "/etc"))) - {"hosts", "hostname", "resolv.conf"}
    assert names == set(), "the image's own /etc is hidden"
    assert stat.S_IMODE(os.stat(inside(pids[0], "/etc")).st_mode) == 0o777
    (inside(pids[0], "/etc") / "note").write_text("from a")
    assert (inside(pids[1], "/etc") / "note").read_text() == "from a"
    pyrun("restart", "-t", "0", "vol-a")
    assert (inside(member_pid(pyrun, "vol", "a"), "/etc") / "note").read_text() == "from a"
    pyrun("pod", "restart", "-t", "0", "vol")
    assert (inside(member_pid(pyrun, "vol", "b"), "/etc") / "note").read_text() == "from a"
    pyrun("pod", "rm", "-f", "vol")
    pyrun("pod", "create", "-f", pod_file(tmp_path, yaml("emptyDir: {}", "/etc")))
    assert not (inside(member_pid(pyrun, "vol", "a"), "/etc") / "note").exists()


def test_what_somebody_has_mounted_in_a_volume_is_not_removed(pyrun: Node, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thing").touch()
    pyrun("pod", "create", "-f", pod_file(tmp_path, yaml("emptyDir: {}", "/v")))
    place = Path(pyrun.paths.sandbox("vol")) / "volumes/v/place"
    place.mkdir()
    running("mount", "--bind", str(precious), str(place))
    try:
        assert str(place.name) in pyrun.fails(125, "pod", "rm", "-f", "vol")
        assert (precious / "thing").exists()
    finally:
        running("umount", str(place))
    pyrun("pod", "rm", "-f", "vol")


def test_empty_dir_in_memory_has_a_size(pyrun: Node, tmp_path: Path) -> None:
    volume = "emptyDir: {medium: Memory, sizeLimit: 1Mi}"
    pyrun("pod", "create", "-f", pod_file(tmp_path, yaml(volume, "/cache")))
    a, b = (member_pid(pyrun, "vol", member) for member in "ab")
    fields = mount_of(a, "/cache")
    assert fields[fields.index("-") + 1] == "tmpfs"
    (inside(a, "/cache/note")).write_text("hello")
    assert inside(b, "/cache/note").read_text() == "hello"
    fill = "dd if=/dev/zero of=/cache/big bs=1M count=2"
    said = pyrun.fails(1, "exec", "vol-a", *fill.split())
    assert "No space left" in said


def test_host_path_types(pyrun: Node, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (there / "note").write_text("of the host")
    made = tmp_path / "deep" / "made"

    def create(path: Path, kind: str) -> list[str | Path]:
        volume = f"hostPath: {{path: {path}, type: {kind}}}"
        return ["pod", "create", "-f", pod_file(tmp_path, yaml(volume, "/v", members="a"))]

    pyrun(*create(there, "Directory"))
    assert inside(member_pid(pyrun, "vol", "a"), "/v/note").read_text() == "of the host"
    pyrun("pod", "rm", "-f", "vol")
    assert (there / "note").exists(), "a hostPath is the host's and stays"
    for kind, wrong in (("File", there), ("Socket", there / "note"), ("Directory", there / "note"),
                        ("CharDevice", there), ("BlockDevice", there)):  # fmt: skip
        assert f"is not a {kind}" in pyrun.fails(125, *create(wrong, kind))
    assert "no such path" in pyrun.fails(125, *create(tmp_path / "missing", "Directory"))
    assert not (tmp_path / "missing").exists()
    assert pyrun.out("pod", "ps", "-q") == ""
    pyrun(*create(made, "DirectoryOrCreate"))
    assert stat.S_IMODE(made.stat().st_mode) == 0o755
    pyrun("pod", "rm", "-f", "vol")
    pyrun(*create(made / "file", "FileOrCreate"))
    assert stat.S_IMODE((made / "file").stat().st_mode) == 0o644
    pyrun("pod", "rm", "-f", "vol")
    pyrun(*create(Path("/dev/null"), "CharDevice"))
    pyrun("pod", "rm", "-f", "vol")
    pyrun(*create(tmp_path / "untyped", '""'))
    assert (tmp_path / "untyped").is_dir()


def test_read_only_mounts_are(pyrun: Node, tmp_path: Path) -> None:
    text = yaml("emptyDir: {}", "/v").replace("mountPath: /v}", "mountPath: /v, readOnly: true}", 1)
    pyrun("pod", "create", "-f", pod_file(tmp_path, text))
    assert "Read-only" in pyrun.fails(1, "exec", "vol-a", "touch", "/v/x")
    pyrun("exec", "vol-b", "touch", "/v/x")


def test_limits_are_in_the_members_cgroup_beneath_the_pods(pyrun: Node, tmp_path: Path) -> None:
    text = """
apiVersion: v1
kind: Pod
metadata: {name: lim}
spec:
  containers:
    - name: a
      image: busybox
      args: [sleep, "1000"]
      resources: {limits: {memory: 64Mi, cpu: 250m}}
    - {name: b, image: busybox, args: [sleep, "1000"]}
"""
    pyrun("pod", "create", "-f", pod_file(tmp_path, text))
    pids = {member: member_pid(pyrun, "lim", member) for member in "ab"}
    for member, pid in pids.items():
        paths = {line.split(":", 2)[2] for line in read(f"/proc/{pid}/cgroup").splitlines()}
        ours = {path for path in paths if pyrun.paths.tag in path}
        assert ours == {f"/pyrun/{pyrun.paths.tag}/lim/lim-{member}"}
    group = pyrun.cgroup("lim-a", "memory", "lim")
    v2 = pyrun.layout.controllers["memory"].version == 2
    assert read(group / ("memory.max" if v2 else "memory.limit_in_bytes")).strip() == str(64 << 20)
    group = pyrun.cgroup("lim-a", "cpu", "lim")
    if pyrun.layout.controllers["cpu"].version == 2:
        assert read(group / "cpu.max").split() == ["25000", "100000"]
    else:
        quota, period = (int(read(group / f"cpu.cfs_{n}_us")) for n in ("quota", "period"))
        assert quota / period == 0.25


def test_a_member_over_its_memory_limit_is_killed_and_the_others_live(
    pyrun: Node, tmp_path: Path
) -> None:
    text = """
apiVersion: v1
kind: Pod
metadata: {name: oom}
spec:
  containers:
    - name: a
      image: busybox
      args: [sh, -c, "dd if=/dev/zero of=/dev/null bs=64M count=1"]
      resources: {limits: {memory: 8Mi}}
    - {name: b, image: busybox, args: [sleep, "1000"]}
"""
    pyrun("pod", "create", "-f", pod_file(tmp_path, text))
    assert pyrun.out("wait", "oom-a") == "137"
    [facts] = json.loads(pyrun.out("inspect", "oom-a"))
    assert facts["state"]["oom_killed" if "oom_killed" in facts["state"] else "oom"] is True
    assert member_pid(pyrun, "oom", "b")


def test_one_supervisor_for_all_members_keeps_output_and_exit_codes(pyrun: Node) -> None:
    """The CLI that made the pod is gone when they write and end."""
    make(pyrun, "web", "a=busybox sleep 1000")
    parents = set()
    for member, code in (("b", 3), ("c", 4)):
        pyrun("run", "-d", "--pod", "web", "--name", f"web-{member}", "busybox", "sh", "-c",
              f"sleep 0.2; i=0; while [ $i -lt 2000 ]; do echo {member} $i; i=$((i+1)); done; "
              f"exit {code}")  # fmt: skip
        parents |= {read(f"/proc/{pid}/stat").rpartition(")")[2].split()[1]
                    for pid in pyrun.pids(f"web-{member}", "web")[:1]}  # fmt: skip
    assert parents == {str(pyrun.supervisor("web"))}
    assert pyrun.out("wait", "web-b", "web-c") == "3\n4"
    for member in "bc":
        assert pyrun.out("logs", f"web-{member}").splitlines() == [
            f"{member} {number}" for number in range(2000)
        ]


def test_last_words_survive_the_end_of_the_pod(pyrun: Node) -> None:
    make(pyrun, "web", "a=busybox sh -c 'echo last words; exit 7'")
    assert pyrun.out("wait", "web-a") == "7"
    pyrun("pod", "stop", "web")
    assert pyrun.out("logs", "web-a") == "last words"
    assert pyrun.out("wait", "web-a") == "7"
