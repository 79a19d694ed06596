"""A sandbox: the namespaces, address, cgroup and supervisor that its members share.

A pod is a sandbox with a name the user chose; a lone container has one to itself. `plan_up` makes
it, `plan_down` removes it; both are pure. What is only a fact of the moment (the address leased,
the ports reserved) is gathered before by `gather` and given back when the plan fails.
"""

from __future__ import annotations

import os

from pyrun.cgroup import api as cgroup
from pyrun.container import record as records_of
from pyrun.errors import BadInput, Conflict, PyrunError
from pyrun.explain.steps import Step
from pyrun.network import ipam, link, names, node, ports
from pyrun.store import records
from pyrun.store.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyrun.explain.steps import Plan


def cgroup_path(paths: Paths, layout: cgroup.Layout, sandbox: str, member: str = "") -> str:
    """`pyrun/web/nginx`: the member's cgroup lies beneath its pod's."""
    return "/".join(filter(None, (node_cgroup(paths, layout), sandbox, member)))


def node_cgroup(paths: Paths, layout: cgroup.Layout) -> str:
    """Where the cgroups of this node's sandboxes are; nodes with roots of their own have one more
    level."""
    return f"{layout.base()}/{paths.tag}" if paths.tag else layout.base()


def netns_path(paths: Paths, record: dict[str, Any]) -> str:
    """Where the sandbox's network namespace is pinned; "" when it uses the host's."""
    kind, _, other = record["network"].partition(":")
    if kind == "host":
        return ""
    if kind == "container":
        return netns_path(paths, owner_of(paths, other))
    return f"{paths.netns}/{record['name']}"


def owner_of(paths: Paths, container: str) -> dict[str, Any]:
    """The sandbox record of a container named by the user."""
    name = records_of.find(paths, "containers", container)
    return records_of.sandbox(paths, records_of.container(paths, name)["sandbox"])


def namespace_paths(paths: Paths, record: dict[str, Any]) -> dict[str, str]:
    """What a member joins: kind → pinned path. Kinds it shares with the host are left out."""
    run = paths.sandbox_run(record["name"])
    found = {"uts": f"{run}/ns/uts"}
    if network := netns_path(paths, record):
        found["network"] = network
    kind, _, other = record["ipc"].partition(":")
    if kind == "container":
        found["ipc"] = f"{paths.sandbox_run(owner_of(paths, other)['name'])}/ns/ipc"
    elif kind != "host":
        found["ipc"] = f"{run}/ns/ipc"
    return found


def shm_path(paths: Paths, record: dict[str, Any]) -> str:
    kind, _, other = record["ipc"].partition(":")
    if kind == "container":
        return f"{paths.sandbox_run(owner_of(paths, other)['name'])}/shm"
    return "/dev/shm" if kind == "host" else f"{paths.sandbox_run(record['name'])}/shm"


class Facts:
    """What was gathered for one start: an address, ports with the sockets that hold them."""

    __slots__ = ("layout", "lease", "net", "ports", "sockets")

    def __init__(self, layout: cgroup.Layout) -> None:
        self.layout = layout
        self.net: node.NodeNetwork | None = None
        self.lease: ipam.Lease | None = None
        self.ports: list[ports.Port] = []
        self.sockets: list[int] = []

    @property
    def ips(self) -> list[str]:
        return self.lease.ips if self.lease else []


def gather_again(paths: Paths, record: dict[str, Any]) -> Facts:
    """The facts of a sandbox that lives on without its supervisor: the same address and ports.

    Raises Conflict where somebody has taken a port since the supervisor died.
    """
    facts = Facts(cgroup.host_layout())
    state = records_of.sandbox_state(paths, record["name"])
    published = [ports.Port(*port) for port in state.get("ports", [])]
    if state.get("ips"):
        facts.net = node.node_network(paths)
        facts.lease = ipam.lease_of(facts.net, state["ips"][0])
    facts.ports, facts.sockets = ports.reserve(published, paths)
    return facts


def gather(paths: Paths, record: dict[str, Any]) -> Facts:
    """Lease an address and reserve the host ports. `give_back` undoes it.

    Raises Conflict where a port is taken or the range is full.
    """
    facts = Facts(cgroup.host_layout())
    wanted = [ports.Port(*port) for port in record["ports"]]
    if record["network"] != "bridge":
        if wanted:
            raise BadInput(f"--publish needs the bridge network, not {record['network']}")
        return facts
    facts.net = node.node_network(paths)
    try:
        if wanted:
            facts.ports, facts.sockets = ports.reserve(wanted, paths)
        facts.lease = ipam.lease(paths, facts.net, record["name"])
    except BaseException:
        give_back(paths, record["name"], facts)
        raise
    return facts


def close_sockets(facts: Facts) -> None:
    for fd in facts.sockets:
        os.close(fd)
    facts.sockets = []


def give_back(paths: Paths, name: str, facts: Facts) -> None:
    close_sockets(facts)
    if facts.lease is not None:
        ipam.release(paths, name)


def plan_up(paths: Paths, record: dict[str, Any], facts: Facts, lone: bool) -> Plan:
    """The steps that bring a sandbox up. Pure."""
    name = record["name"]
    run = paths.sandbox_run(name)
    layout = facts.layout
    group = cgroup_path(paths, layout, name)
    plan = [
        Step(
            "kernel.files.mkdir",
            f"{run}/ns",
            why="make a directory for what lives as long as the sandbox",
            undo=("kernel.files.remove_tree", (run,)),
            shell=f"mkdir -p {run}/ns",
        )
    ]
    # The supervisor comes first: it loads while the rest is made, on another processor.
    if own := _supervisor_cgroup(paths, name, layout):
        plan += cgroup.plan_create(layout, own, {})
    plan.append(_spawn(paths, name, facts, lone))
    # A step of its own: as a mere parent of the first member's nobody would take it back.
    plan += cgroup.plan_create(layout, group, {})
    plan += _namespaces(paths, record, run)
    plan += _network(paths, record, facts)
    plan += _files(paths, record, facts, run)
    plan += _volumes(paths, record)
    plan.append(
        Step(
            "kernel.files.write",
            f"{run}/up",
            "",
            why="note that the sandbox is whole: members may be launched in it",
            shell=f"touch {run}/up",
        )
    )
    return plan


def plan_revive(paths: Paths, name: str, facts: Facts, running: list[str]) -> Plan:
    """A new supervisor for a sandbox that is whole, but whose own has died. Pure."""
    run = paths.sandbox_run(name)
    return [
        Step(
            "kernel.files.unlink",
            f"{run}/socket",
            why="remove the socket that nobody answers any more",
            shell=f"rm {run}/socket",
        ),
        _spawn(paths, name, facts, lone=False),
        Step(
            "container.client.adopt_members",
            paths.root,
            paths.run_root,
            name,
            running,
            why="put the members that run into its care: their output, their exit codes",
            man="pidfd_open(2)",
        ),
    ]


def _spawn(paths: Paths, name: str, facts: Facts, lone: bool) -> Step:
    """The step that starts the supervisor, in a cgroup that `_supervisor_cgroup` names."""
    own = _supervisor_cgroup(paths, name, facts.layout)
    return Step(
        "container.spawn.spawn_supervisor",
        paths.root,
        paths.run_root,
        name,
        "lone" if lone else "pod",
        cgroup.join_files(facts.layout, own, unified=True) if own else [],
        facts.sockets,
        facts.ips,
        [port.as_list() for port in facts.ports],
        why="start the supervisor: it launches the members, keeps output and exit codes",
        undo=("container.spawn.end_supervisor", (paths.root, paths.run_root, name)),
        man="posix_spawn(3)",
    )


def _supervisor_cgroup(paths: Paths, name: str, layout: cgroup.Layout) -> str:
    """systemd ends what is left in a login session's cgroup; without systemd nobody does, and the
    supervisor may stay where it was started: ""."""
    # No member can be called so: names begin with a letter or a digit.
    return f"{cgroup_path(paths, layout, name)}/_supervisor" if layout.systemd else ""


def _namespaces(paths: Paths, record: dict[str, Any], run: str) -> Plan:
    plan = [
        _pin("uts", f"{run}/ns/uts"),
        Step(
            "kernel.namespaces.set_hostname",
            f"{run}/ns/uts",
            record["hostname"],
            why="give the sandbox its hostname",
            shell=f"nsenter --uts={run}/ns/uts hostname {record['hostname']}",
            man="sethostname(2)",
        ),
    ]
    if record["ipc"] in ("", "private", "shareable"):
        plan.append(_pin("ipc", f"{run}/ns/ipc"))
        plan.append(
            Step(
                "kernel.mounts.mount_tmpfs",
                f"{run}/shm",
                f"mode=1777,size={record['shm_size']}",
                why="make the /dev/shm that the members share",
                undo=("kernel.mounts.umount", (f"{run}/shm",)),
                shell=f"mount -t tmpfs -o mode=1777,size={record['shm_size']} tmpfs {run}/shm",
                man="shm_overview(7)",
            )
        )
    if record["network"] in ("bridge", "none"):
        if paths.netns == "/run/netns":
            plan.append(
                Step(
                    "kernel.namespaces.share_directory",
                    paths.netns,
                    why="keep pinned network namespaces where `ip netns` keeps them",
                    shell=f"mount --bind --make-shared {paths.netns} {paths.netns}",
                    man="ip-netns(8)",
                )
            )
        else:
            plan.append(Step("kernel.files.mkdir", paths.netns, why="keep network namespaces here"))
        plan.append(_pin("network", f"{run}/ns/network"))
        plan.append(
            Step(
                "kernel.namespaces.show",
                f"{run}/ns/network",
                f"{paths.netns}/{record['name']}",
                why="show it under the pod's name, as `ip netns` does",
                undo=(
                    "kernel.namespaces.hide",
                    (f"{run}/ns/network", f"{paths.netns}/{record['name']}"),
                ),
                shell=f"touch {paths.netns}/{record['name']}; "
                f"mount --bind {run}/ns/network {paths.netns}/{record['name']}",
                man="ip-netns(8)",
            )
        )
    return plan


def _pin(kind: str, path: str) -> Step:
    short = "net" if kind == "network" else kind
    return Step(
        "kernel.namespaces.pin",
        kind,
        path,
        why=f"make a new {kind} namespace and pin it, so that it outlives every process in it",
        undo=("kernel.namespaces.unpin", (path,)),
        shell=f"touch {path}; unshare --{short}={path} true",
        man=f"{kind}_namespaces(7)",
    )


def _network(paths: Paths, record: dict[str, Any], facts: Facts) -> Plan:
    name = record["name"]
    netns = f"{paths.netns}/{name}"
    if record["network"] == "none":
        return link.plan_loopback(netns)
    if facts.net is None or facts.lease is None:
        return []
    return [
        *node.plan_node(paths, facts.net, name),
        *ipam.plan_lease(paths, facts.lease, name),
        *link.plan_attach(paths, facts.net, facts.lease, name, netns),
        *ports.plan_publish(paths, facts.net, name, facts.ports, facts.lease.ip4, facts.lease.ip6),
    ]


def _files(paths: Paths, record: dict[str, Any], facts: Facts, run: str) -> Plan:
    own = record["network"] in ("bridge", "none")
    ips = facts.ips
    if record["network"].startswith("container:"):
        other = owner_of(paths, record["network"].partition(":")[2])
        ips = records_of.sandbox_state(paths, other["name"]).get("ips", [])
    extra = [tuple(pair) for pair in record["hosts"]]
    texts = {
        "hosts": names.hosts_text(ips, record["hostname"], extra),
        "resolv.conf": names.resolv_text(
            names.host_resolv() if own else _host_file("/etc/resolv.conf"),
            record["dns"],
            own_network=own,
        ),
        "hostname": record["hostname"] + "\n",
    }
    return [
        Step(
            "kernel.files.write",
            f"{run}/{file}",
            text,
            why=f"write the /etc/{file} that the members share",
            shell=f"cat > {run}/{file}",
            man=f"{file}(5)",
        )
        for file, text in texts.items()
    ]


def _host_file(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def volume_path(paths: Paths, sandbox: str, volume: dict[str, Any]) -> str:
    """Where a pod volume is on the host: emptyDir on disk, on a tmpfs, or the host's own path."""
    if volume["kind"] == "hostPath":
        return str(volume["path"])
    root = paths.sandbox_run(sandbox) if volume["kind"] == "memory" else paths.sandbox(sandbox)
    return f"{root}/volumes/{volume['name']}"


def _volumes(paths: Paths, record: dict[str, Any]) -> Plan:
    plan = []
    for volume in record["volumes"]:
        path = volume_path(paths, record["name"], volume)
        if volume["kind"] == "memory":
            size = f",size={volume['size']}" if volume.get("size") else ""
            plan.append(
                Step(
                    "kernel.mounts.mount_tmpfs",
                    path,
                    f"mode=0777{size}",
                    why=f"make the volume {volume['name']} in memory",
                    undo=("kernel.mounts.umount", (path,)),
                    shell=f"mount -t tmpfs -o mode=0777{size} tmpfs {path}",
                    man="tmpfs(5)",
                )
            )
        elif volume["kind"] == "disk":
            plan.append(
                Step(
                    "container.sandbox.make_empty_dir",
                    path,
                    why=f"make the volume {volume['name']}: an empty directory the members share",
                    shell=f"mkdir -p -m 0777 {path}",
                )
            )
        else:
            plan.append(
                Step(
                    "container.sandbox.check_host_path",
                    path,
                    volume["type"],
                    why=f"check that {path} is what the volume {volume['name']} expects",
                    shell=f"stat {path}",
                )
            )
    return plan


def make_empty_dir(path: str) -> None:
    """An emptyDir: writable for every user, as the kubelet makes it."""
    os.makedirs(path, exist_ok=True)
    os.chmod(path, 0o777)


def check_host_path(path: str, kind: str) -> None:
    """hostPath types as the kubelet checks them. Raises BadInput, makes the OrCreate ones.

    Without a type nothing is checked, and a missing directory is made, as containerd does it.
    """
    import stat

    if kind == "DirectoryOrCreate" or (not kind and not os.path.lexists(path)):
        os.makedirs(path, 0o755, exist_ok=True)
    elif kind == "FileOrCreate":
        os.close(os.open(path, os.O_CREAT | os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, 0o644))
    tests = {
        "Directory": stat.S_ISDIR,
        "DirectoryOrCreate": stat.S_ISDIR,
        "File": stat.S_ISREG,
        "FileOrCreate": stat.S_ISREG,
        "Socket": stat.S_ISSOCK,
        "CharDevice": stat.S_ISCHR,
        "BlockDevice": stat.S_ISBLK,
    }
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise BadInput(
            f"hostPath {path}: there is no such path on this host",
            hint="make it first, or ask for type: DirectoryOrCreate",
        ) from None
    if kind and not tests[kind](mode):
        raise BadInput(f"hostPath {path} is not a {kind}")


# the way down


def plan_down(paths: Paths, record: dict[str, Any], layout: cgroup.Layout) -> Plan:
    """The steps that take a sandbox down. Every one tolerates that nothing is there, so the plan
    serves after a crash in the middle of anything. The members must have ended."""
    name = record["name"]
    run = paths.sandbox_run(name)
    state = records_of.sandbox_state(paths, name)
    plan: Plan = []
    if record["network"] == "bridge":
        net = node.node_network(paths)
        ips = [*state.get("ips", []), "", ""]
        published = [ports.Port(*port) for port in state.get("ports", [])]
        plan += ports.plan_unpublish(paths, net, name, published, ips[0], ips[1] or None)
        if record["ports"] and not state:  # a crash: nobody wrote down what leads here
            plan += ports.plan_sweep(net, name)
        plan += link.plan_detach(paths, net, name)
    if record["network"] in ("bridge", "none"):
        plan.append(
            Step(
                "kernel.namespaces.hide",
                f"{run}/ns/network",
                f"{paths.netns}/{name}",
                why="take the pod's name off its network namespace",
                shell=f"umount {paths.netns}/{name}; rm {paths.netns}/{name}",
                man="ip-netns(8)",
            )
        )
    if record["network"] == "bridge":
        plan += ipam.plan_release(paths, name)
    plan += [_unpin(kind, f"{run}/ns/{kind}") for kind in ("network", "uts", "ipc")]
    mounted = [f"{run}/shm"] + [
        volume_path(paths, name, volume)
        for volume in record["volumes"]
        if volume["kind"] == "memory"
    ]
    plan += [
        Step("kernel.mounts.umount", path, why=f"unmount {path}", shell=f"umount {path}")
        for path in mounted
    ]
    above = node_cgroup(paths, layout) if paths.tag else ""
    plan += cgroup.plan_remove(layout, cgroup_path(paths, layout, name), above)
    plan.append(
        Step(
            "kernel.files.remove_tree",
            run,
            why="remove what lived as long as the sandbox",
            shell=f"rm -r {run}",
        )
    )
    return plan


def _unpin(kind: str, path: str) -> Step:
    return Step(
        "kernel.namespaces.unpin",
        path,
        why=f"let the {kind} namespace go: nothing keeps it alive now",
        shell=f"umount {path}; rm {path}",
        man="namespaces(7)",
    )


def lock(paths: Paths, name: str) -> records.Lock:
    """Held by whoever changes this sandbox or its members."""
    return records.Lock(f"{paths.run_root}/locks/{name}", owner=paths.sandbox(name))


def half_made(paths: Paths, name: str) -> dict[str, Any]:
    """A record for taking down what a killed `create` left, where its own record is missing."""
    return {"name": name, "network": "bridge", "ipc": "", "volumes": [], "ports": [], "pod": False}


def plan_forget_sandbox(paths: Paths, record: dict[str, Any]) -> Plan:
    """The last steps of a removal: the name is free again."""
    name = record["name"]
    return [
        Step(
            "container.record.unlink_id",
            paths.ids,
            f"sandboxes/{name}",
            record.get("id", ""),
            why="forget the id",
        ),
        Step(
            "kernel.files.remove_tree",
            paths.sandbox(name),
            why=f"forget {name}: its name is free again",
            shell=f"rm -r {paths.sandbox(name)}",
        ),
    ]


def check_name_free(paths: Paths, name: str) -> None:
    """Pods and containers share one space of names. Raises Conflict."""
    # A container in no pod has a sandbox of its own too, of the same name.
    for directory, what in ((paths.container(name), "container"), (paths.sandbox(name), "pod")):
        if os.path.isdir(directory):
            raise Conflict(
                f"the name {name!r} is taken by a {what}",
                hint=f"`pyrun {'pod ' if what == 'pod' else ''}rm {name}` frees it, "
                "or choose another name",
            )


def require_up(paths: Paths, name: str) -> None:
    if not records_of.is_up(paths, name):
        raise PyrunError(f"pod {name} is not running", hint=f"`pyrun pod start {name}` starts it")
