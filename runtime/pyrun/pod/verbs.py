"""What each pod verb does. Read `create` first: it is the daily command, from spec to running pod.

A pod is a sandbox (`container/sandbox.py`) with members; this room turns a `PodSpec` into one
plan for all of them, so that a failure of the last member leaves nothing of the first.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pyrun.cgroup import api as cgroup
from pyrun.container import client, lifecycle, sandbox, spawn
from pyrun.container import config as configs
from pyrun.container import record as records_of
from pyrun.container import verbs as container_verbs
from pyrun.container.options import Options, Volume, parse_signal
from pyrun.errors import Conflict, NotFound, PyrunError
from pyrun.explain import steps
from pyrun.image.store import ImageStore
from pyrun.kernel import process
from pyrun.pod.model import ContainerSpec, EmptyDir, PodSpec, default_hostname
from pyrun.store import records
from pyrun.store.paths import Paths

if TYPE_CHECKING:
    from pyrun.explain.steps import Plan


class PodOptions:
    """What the command line says of a pod besides its spec."""

    __slots__ = ("dns", "network", "publish", "shm_size")

    def __init__(
        self,
        *,
        publish: tuple[str, ...] = (),
        network: str = "bridge",
        dns: tuple[str, ...] = (),
        shm_size: int = 64 << 20,
    ) -> None:
        self.publish = publish
        self.network = network
        self.dns = dns
        self.shm_size = shm_size


def member_name(pod: str, container: str) -> str:
    """How a member is called wherever a container is named: POD-CONTAINER, as in podman."""
    return f"{pod}-{container}"


def create(paths: Paths, spec: PodSpec, options: PodOptions | None = None) -> list[str]:
    """Make the pod and start its members, in one plan. Returns notes for the user."""
    options = options or PodOptions()
    records_of.check_name(spec.name)
    # From the first look at the name on: of two that create the same pod the second finds it taken.
    with sandbox.lock(paths, spec.name):
        check_names_free(paths, spec)
        record = pod_record(spec, options)
        host = configs.host_facts()
        drafts = [
            container_verbs.draft(
                paths,
                member_options(paths, spec, container),
                member_name(spec.name, container.name),
                record,
                host,
            )
            for container in spec.containers
        ]
        facts = sandbox.gather(paths, record)
        try:
            steps.run(create_plan(paths, record, drafts, facts))
        except BaseException:
            sandbox.give_back(paths, spec.name, facts)
            raise
    return [*spec.notes, *(note for made in drafts for note in made.notes)]


def check_names_free(paths: Paths, spec: PodSpec) -> None:
    """Raises Conflict where the pod's name or a member's is taken."""
    sandbox.check_name_free(paths, spec.name)
    for container in spec.containers:
        name = records_of.check_name(member_name(spec.name, container.name))
        if os.path.isdir(paths.container(name)):
            raise Conflict(
                f"the name {name!r} is taken by a container",
                hint=f"`pyrun rm {name}` frees it, or name the pod differently",
            )


def create_plan(
    paths: Paths, record: dict[str, Any], drafts: list[container_verbs.Draft], facts: sandbox.Facts
) -> Plan:
    """Records of the pod and its members, the sandbox, the members; the disk is waited for last."""
    plan = lifecycle.plan_create_sandbox(paths, record)
    for made in drafts:
        plan += made.plan_create(paths)
    plan += sandbox.plan_up(paths, record, facts, lone=False)
    store = ImageStore(paths)
    for made in drafts:
        plan += container_verbs.start_plan(
            paths, made.record, made.config, facts.layout, store.lowerdirs(made.image)
        )
    members = [made.record for made in drafts]
    plan += lifecycle.plan_launch(paths, record["name"], [member["name"] for member in members])
    return plan + lifecycle.plan_sync(paths, record["name"], members)


def pod_record(spec: PodSpec, options: PodOptions) -> dict[str, Any]:
    """The sandbox record of a pod."""
    base = container_verbs.sandbox_record(
        spec.name,
        Options(
            image="",
            hostname=spec.hostname or default_hostname(spec.name),
            network=options.network,
            publish=options.publish,
            dns=options.dns,
            shm_size=options.shm_size,
        ),
        pod=True,
    )
    for container in spec.containers:
        for port in container.ports:
            if port.host_port:
                base["ports"].append(
                    [port.host_ip, port.host_port, port.container_port, port.protocol.lower()]
                )
    return {
        **base,
        "namespace": spec.namespace,
        "labels": dict(spec.labels),
        "annotations": dict(spec.annotations),
        "hosts": [[alias.ip, name] for alias in spec.host_aliases for name in alias.hostnames],
        "grace": spec.grace_seconds,
        "volumes": [volume_record(volume) for volume in spec.volumes],
    }


def volume_record(volume: Any) -> dict[str, Any]:
    if isinstance(volume, EmptyDir):
        kind = "memory" if volume.memory else "disk"
        return {"name": volume.name, "kind": kind, "size": volume.size}
    return {"name": volume.name, "kind": "hostPath", "path": volume.path, "type": volume.type}


def member_options(paths: Paths, spec: PodSpec, container: ContainerSpec) -> Options:
    """A member's part of the spec as the Options every container is made from."""
    volumes = {volume.name: volume_record(volume) for volume in spec.volumes}
    security = container.security
    user = "" if security.user is None else str(security.user)
    if security.group is not None:
        user += f":{security.group}"
    limits = container.resources
    return Options(
        image=container.image,
        entrypoint=container.command or None,
        args=container.args,
        env=tuple(f"{var.name}={var.value}" for var in container.env),
        workdir=container.workdir,
        user=user,
        memory=limits.memory,
        cpus=None if limits.cpu is None else limits.cpu / 1000,
        volumes=tuple(
            Volume(
                "pod",
                sandbox.volume_path(paths, spec.name, volumes[mount.volume]),
                mount.path,
                ("ro",) if mount.read_only else (),
            )
            for mount in container.mounts
        ),
        read_only=security.read_only_rootfs,
        privileged=security.privileged,
        cap_add=tuple(map(full_name, security.cap_add)),
        cap_drop=tuple(map(full_name, security.cap_drop)),
        stdin=container.stdin,
        tty=container.tty,
        stop_timeout=spec.grace_seconds,
    )


def full_name(capability: str) -> str:
    return capability if capability == "ALL" else f"CAP_{capability}"


def find(paths: Paths, wanted: str) -> str:
    """The name of the pod the user means. Raises NotFound; a lone container is no pod."""
    name = records_of.find(paths, "sandboxes", wanted)
    record = records.read(f"{paths.sandbox(name)}/record.json")
    if record is not None and not record["pod"]:
        raise NotFound(
            f"no such pod: {wanted}", hint=f"{name} is a container; `pyrun ps` lists containers"
        )
    return name


def pods(paths: Paths) -> list[dict[str, Any]]:
    return [record for record in records_of.sandboxes(paths) if record["pod"]]


def half_made(paths: Paths) -> list[str]:
    """Names that a killed `create` has taken without getting as far as a record."""
    return [
        name
        for name in records_of.names(paths.sandboxes)
        if records.read(f"{paths.sandbox(name)}/record.json") is None
        and not os.path.isdir(paths.container(name))
    ]


def state(paths: Paths, record: dict[str, Any]) -> str:
    """Created (no members yet or none started), Running, Degraded (some ended), Exited."""
    words = [records_of.status(paths, member).word for member in record["members"]]
    up = records_of.is_up(paths, record["name"])
    if words and all(word in ("running", "paused") for word in words):
        return "Running" if up else "Unsupervised"
    if any(word in ("running", "paused") for word in words):
        return "Degraded"
    if not words:
        return "Ready" if up else "Stopped"
    return "Created" if all(word == "created" for word in words) else "Exited"


def start(paths: Paths, name: str) -> None:
    """Bring the pod up and start every member that does not run.

    Where only the supervisor has died, the members that run are put into the care of a new one.
    """
    with sandbox.lock(paths, name):
        record = records_of.sandbox(paths, name)
        layout = cgroup.host_layout()
        members = records_of.members(paths, name)
        idle = [m for m in members if not records_of.status(paths, m["name"]).running]
        running = [m["name"] for m in members if m not in idle]
        whole = os.path.exists(f"{paths.sandbox_run(name)}/up")
        if records_of.is_up(paths, name):
            steps.run(restart_plan(paths, name, idle, layout))
        elif whole and running:
            facts = sandbox.gather_again(paths, record)
            try:
                plan = sandbox.plan_revive(paths, name, facts, running)
                steps.run(plan + restart_plan(paths, name, idle, layout))
            finally:
                sandbox.close_sockets(facts)
        else:
            container_verbs.clear(paths, record, layout)
            facts = sandbox.gather(paths, record)
            try:
                plan = sandbox.plan_up(paths, record, facts, lone=False)
                steps.run(plan + launch_plan(paths, name, members, layout))
            except BaseException:
                sandbox.give_back(paths, name, facts)
                raise


def restart_plan(
    paths: Paths, name: str, idle: list[dict[str, Any]], layout: cgroup.Layout
) -> Plan:
    """Start members that have ended, in a pod that is up."""
    plan: Plan = []
    for member in idle:
        plan += lifecycle.plan_member_down(paths, member, layout)
    return plan + launch_plan(paths, name, idle, layout)


def launch_plan(
    paths: Paths, name: str, members: list[dict[str, Any]], layout: cgroup.Layout
) -> Plan:
    store = ImageStore(paths)
    plan: Plan = []
    for member in members:
        config = records.read(f"{paths.container(member['name'])}/config.json")
        image = store.resolve(member["image"])
        plan += container_verbs.start_plan(paths, member, config, layout, store.lowerdirs(image))
    return plan + lifecycle.plan_launch(paths, name, [member["name"] for member in members])


def stop(paths: Paths, name: str, timeout: float | None = None) -> None:
    """Stop all members at once, each within its grace period, then take the sandbox down."""

    record = records_of.sandbox(paths, name)
    grace = float(record.get("grace", 10)) if timeout is None else timeout
    layout = cgroup.host_layout()
    running = []
    for member in records_of.members(paths, name):
        status = records_of.status(paths, member["name"])
        if status.running:
            if status.word == "paused":
                cgroup.thaw(layout, sandbox.cgroup_path(paths, layout, name, member["name"]))
            running.append((member, status, parse_signal(member["stop_signal"])))
    steps.run(lifecycle.plan_stop(paths, running, layout, grace))
    for member, status, _ in running:
        container_verbs.await_record(paths, member, status)
    with sandbox.lock(paths, name):
        container_verbs.clear(paths, record, layout)


def kill(paths: Paths, name: str, signal: int) -> None:
    """Send a signal to the first process of every running member."""
    record = records_of.sandbox(paths, name)
    sent = False
    for member in record["members"]:
        status = records_of.status(paths, member)
        if status.running:
            sent |= process.kill_pid(status.pid, status.ticks, signal)
    if not sent:
        raise PyrunError(f"pod {name} has no running member to signal")


def remove(paths: Paths, name: str, *, force: bool = False) -> None:
    """Remove a pod with its members. `force` ends them first, and removes also half a pod."""
    with sandbox.lock(paths, name):
        if not os.path.isdir(paths.sandbox(name)):
            raise NotFound(f"no such pod: {name}")  # another one has removed it just now
        record = records.read(f"{paths.sandbox(name)}/record.json")
        if record is None:
            if not force:
                records_of.sandbox(paths, name)  # raises, with the way forward
            record = {**sandbox.half_made(paths, name), "members": []}
        members = members_to_remove(paths, record)
        running = [m["name"] for m in members if records_of.status(paths, m["name"]).running]
        if running and not force:
            raise Conflict(
                f"pod {name} has running members: {', '.join(running)}",
                hint=f"`pyrun pod stop {name}` ends them, or `pyrun pod rm -f {name}`",
            )
        layout = cgroup.host_layout()
        spawn.end_supervisor(paths.root, paths.run_root, name)  # first: it launches no more
        cgroup.kill(layout, sandbox.cgroup_path(paths, layout, name))
        for member in running:
            status = records_of.status(paths, member)
            process.kill_pid(status.pid, status.ticks, 9)
            client.wait_for_end(status.pid, status.ticks, 10.0)
        plan = sandbox.plan_down(paths, record, layout)
        for made in members:
            plan += lifecycle.plan_forget_member_files(paths, made)
        steps.run(plan + sandbox.plan_forget_sandbox(paths, record))


def members_to_remove(paths: Paths, record: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of a pod's members, and those that a killed `create` had not counted yet: their
    own record says whose they are or, where that is missing too, their name does."""
    name = record["name"]
    found = []
    for member in records_of.names(paths.containers):
        known = records.read(f"{paths.container(member)}/record.json")
        if known is not None:
            ours = known["sandbox"] == name
        else:
            ours = member in record["members"] or member.startswith(f"{name}-")
        if ours:
            half = {"name": member, "sandbox": name, "pod": name, "id": ""}
            found.append(known or half)
    return found


def prune(paths: Paths) -> list[str]:
    """Remove every pod without a running member. Returns their names."""
    gone = []
    for record in pods(paths):
        if state(paths, record) in ("Exited", "Stopped", "Created"):
            remove(paths, record["name"])
            gone.append(record["name"])
    return gone


def top(paths: Paths, name: str) -> list[dict[str, Any]]:
    """The processes of every member, as the kernel has them: member, pids, user, command."""
    record = records_of.sandbox(paths, name)
    layout = cgroup.host_layout()
    rows = []
    for member in record["members"]:
        for pid in cgroup.pids(layout, sandbox.cgroup_path(paths, layout, name, member)):
            try:
                with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
                    facts = dict(line.split(":", 1) for line in file if ":" in line)
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    command = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
            except (FileNotFoundError, ProcessLookupError):
                continue  # ended while we looked
            rows.append(
                {
                    "member": member,
                    "pid": pid,
                    "inner_pid": int(facts["NSpid"].split()[-1]),
                    "ppid": int(facts["PPid"]),
                    "uid": int(facts["Uid"].split()[0]),
                    "command": command or f"[{facts['Name'].strip()}]",
                }
            )
    return rows
