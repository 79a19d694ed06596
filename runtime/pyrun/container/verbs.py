"""What each container verb does: gather facts, compute the plan, run it.

Read `run` first: it is create, bring the sandbox up, launch, in one plan, so that a failure
anywhere leaves nothing behind. Every function takes `Paths` first and raises PyrunError.
"""

from __future__ import annotations

import os
import time
from typing import NamedTuple

from pyrun.cgroup import api as cgroup
from pyrun.container import client, files, lifecycle, sandbox, spawn
from pyrun.container import config as configs
from pyrun.container import record as records_of
from pyrun.container.options import Options, parse_security
from pyrun.container.user import identify
from pyrun.errors import BadInput, Conflict, PyrunError, errno_text
from pyrun.explain import steps
from pyrun.image.store import Image, ImageStore
from pyrun.kernel import process
from pyrun.network import ipam
from pyrun.store import records
from pyrun.store.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pyrun.explain.steps import Plan

    Attach = Callable[[str, str, Callable[[], None]], int]


class Outcome(NamedTuple):
    """What came of `run`: code is None for a container left in the background."""

    name: str
    code: int | None
    notes: list[str]


class Draft(NamedTuple):
    """A container about to be made: its records, and what its plans need to know.

    directories  volumes to make: see lifecycle.plan_create
    """

    image: Image
    record: dict[str, Any]
    config: dict[str, Any]
    notes: list[str]
    root_mode: list[int]
    directories: list[tuple[str, str]]

    def plan_create(self, paths: Paths) -> Plan:
        return lifecycle.plan_create(
            paths, self.record, self.config, self.root_mode, self.directories
        )


def find_image(store: ImageStore, ref: str) -> Image:
    """The image `ref`; busybox is made on the spot where it is missing. Raises NotFound."""
    from pyrun.errors import NotFound

    try:
        return store.resolve(ref)
    except NotFound:
        from pyrun.image import reference

        if reference.parse(ref).key != reference.parse("busybox").key:
            raise
        from pyrun.image.embedded import ensure_busybox

        return ensure_busybox(store)


def choose_name(paths: Paths, wanted: str) -> str:
    if wanted:
        sandbox.check_name_free(paths, records_of.check_name(wanted))
        return wanted
    while True:
        name = records_of.random_name()
        if not os.path.isdir(paths.container(name)) and not os.path.isdir(paths.sandbox(name)):
            return name


def sandbox_record(name: str, options: Options, *, pod: bool = False) -> dict[str, Any]:
    """What a sandbox is, as it is written down."""
    from pyrun.network import ports

    published = [port.as_list() for text in options.publish for port in ports.parse_publish(text)]
    check_hostname(options.hostname)
    for server in options.dns:
        check_address("--dns", server)
    return {
        "name": name,
        "id": records_of.new_id(),
        "pod": pod,
        "created": time.time(),
        "labels": {},
        "hostname": options.hostname,
        "network": options.network,
        "ipc": options.ipc,
        "shm_size": options.shm_size,
        "ports": published,
        "hosts": [parse_host(entry) for entry in options.add_hosts],
        "dns": list(options.dns),
        "volumes": [],
        "members": [],
    }


def check_hostname(name: str) -> None:
    """hostname(7), and not longer than the kernel takes it. Raises BadInput."""
    if len(name) > 64:
        raise BadInput(f"--hostname: {name!r} is longer than 64 characters")
    if not set(name) <= records_of.NAME_LETTERS or name[:1] in ("-", "."):
        raise BadInput(
            f"--hostname: {name!r} cannot be a hostname",
            hint="letters, digits, `-` and `.`, beginning with a letter or digit",
        )


def check_address(flag: str, text: str) -> None:
    from pyrun.network.address import to_bytes

    try:
        to_bytes(text)
    except BadInput as error:
        raise BadInput(f"{flag}: {error.message}") from None


def parse_host(entry: str) -> list[str]:
    """`--add-host NAME:ADDRESS` as [address, name]. Raises BadInput."""
    host, colon, address = entry.partition(":")
    address = address.removeprefix("[").removesuffix("]")
    if not colon or not host or not set(host) <= records_of.NAME_LETTERS:
        raise BadInput(f"--add-host: {entry!r} is not NAME:ADDRESS")
    check_address("--add-host", address)
    return [address, host]


def draft(
    paths: Paths, options: Options, name: str, sandbox_: dict[str, Any], host: configs.Host
) -> Draft:
    """Everything about a new container, computed before anything is changed."""
    store = ImageStore(paths)
    image = find_image(store, options.image)
    layers = store.lowerdirs(image)
    own = image.config.get("config") or {}
    user = options.user or own.get("User") or ""
    if user.startswith(":"):  # a group alone: the user is the image's
        user = (own.get("User") or "0").partition(":")[0] + user
    identity = identify(user, options.groups, layers)
    id_ = records_of.new_id()
    if not sandbox_["hostname"]:
        sandbox_["hostname"] = os.uname().nodename if options.network == "host" else id_[:12]
    sources, directories = volume_sources(paths, name, options)
    place = configs.Place(
        namespaces=namespaces(paths, options, sandbox_),
        hostname=sandbox_["hostname"],
        files={
            f"/etc/{file}": f"{paths.sandbox_run(sandbox_['name'])}/{file}"
            for file in ("hosts", "resolv.conf", "hostname")
        },
        shm=sandbox.shm_path(paths, sandbox_),
        cgroup=f"{sandbox_['name']}/{name}",
    )
    config, notes = configs.build(options, image.config, place, identity, host, sources)
    config["annotations"]["org.pyrun.image"] = options.image
    top = os.stat(layers[0])
    record = {
        "name": name,
        "id": id_,
        "sandbox": sandbox_["name"],
        "pod": sandbox_["name"] if sandbox_["pod"] else "",
        "image": image.id,
        "image_name": options.image,
        "created": time.time(),
        "command": config["process"]["args"],
        "labels": {**(own.get("Labels") or {}), **dict(options.labels)},
        "stdin": options.stdin,
        "tty": options.tty,
        "init": options.init,
        "pid": options.pid,
        "remove": options.remove,
        "privileged": options.privileged,
        "seccomp": "unconfined" if options.privileged else parse_security(
            options.security_opt
        ).seccomp,
        "stop_signal": options.stop_signal or own.get("StopSignal") or "TERM",
        "stop_timeout": options.stop_timeout,
        "log_size": options.log_size,
        "log_files": options.log_files,
    }  # fmt: skip
    root_mode = [top.st_mode & 0o7777, top.st_uid, top.st_gid]
    return Draft(image, record, config, notes, root_mode, directories)


def volume_sources(
    paths: Paths, name: str, options: Options
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """({place in the container: host directory} of the named volumes, directories to make, each
    with the lowest one above it that is there)."""
    sources, missing = {}, []
    for volume in options.volumes:
        if volume.kind == "volume":
            if volume.source:
                path = f"{paths.root}/volumes/{volume.source}/data"
            else:  # anonymous: lives and dies with the container
                place = volume.target.strip("/").replace("/", "-")
                path = f"{paths.container(name)}/volumes/{place}"
            sources[volume.target] = path
        elif volume.kind == "bind":
            path = os.path.abspath(volume.source)
            if not volume.create and not os.path.exists(path):
                raise BadInput(
                    f"--mount: there is no {volume.source} on this host",
                    hint="make it first; `--volume` makes a missing directory",
                )
        else:
            continue
        if not os.path.exists(path):
            above = path
            while not os.path.exists(above):
                above = os.path.dirname(above)
            missing.append((path, above.rstrip("/")))
    return sources, missing


def namespaces(paths: Paths, options: Options, sandbox_: dict[str, Any]) -> dict[str, str]:
    """linux.namespaces: kind → path to join, "" for a new one; what is shared is left out."""
    return {
        "mount": "",
        **sandbox.namespace_paths(paths, sandbox_),
        **pid_namespace(paths, options.pid),
        "cgroup": "",
    }


def pid_namespace(paths: Paths, mode: str) -> dict[str, str]:
    """The pid namespace for `--pid MODE`; asked again at each start, as another's pid changes."""
    kind, _, other = mode.partition(":")
    if kind in ("", "private"):
        return {"pid": ""}
    if kind == "host":
        return {}
    if kind != "container":
        raise BadInput(f"--pid: {mode!r} is not private, host or container:NAME")
    name = records_of.find(paths, "containers", other)
    return {"pid": f"/proc/{records_of.require_running(paths, name).pid}/ns/pid"}


def seccomp_program(paths: Paths, record: dict[str, Any], config: dict[str, Any]) -> str:
    """Path of the compiled filter for this container, or "" for none."""
    from pyrun.oci import seccomp
    from pyrun.oci.seccomp_default import default_profile

    capabilities = config["process"]["capabilities"]["bounding"]
    if record["seccomp"] == "unconfined":
        return ""
    if record["seccomp"]:
        import json

        from pyrun.oci.seccomp_docker import profile_from_docker

        try:
            with open(record["seccomp"], encoding="utf-8") as file:
                written = json.load(file)
        except OSError as error:
            why = errno_text(error.errno or 0)
            raise BadInput(f"--security-opt seccomp={record['seccomp']}: {why}") from None
        except ValueError as error:
            raise BadInput(f"--security-opt seccomp={record['seccomp']}: {error}") from None
        machine = os.uname()
        profile = profile_from_docker(written, capabilities, machine.machine, machine.release)
    else:
        profile = default_profile(capabilities)
    return seccomp.compiled(profile, paths.cache)


def start_plan(
    paths: Paths,
    record: dict[str, Any],
    config: dict[str, Any],
    layout: cgroup.Layout,
    lowerdirs: list[str],
) -> Plan:
    if "pid" in (namespaces := pid_namespace(paths, record["pid"])):
        others = [ns for ns in config["linux"]["namespaces"] if ns["type"] != "pid"]
        pid = {"type": "pid", "path": namespaces["pid"]}
        config["linux"]["namespaces"] = [*others, pid if pid["path"] else {"type": "pid"}]
    program = seccomp_program(paths, record, config)
    init_order, init_steps = lifecycle.order(paths, record, config, layout, lowerdirs, program)
    steps.narrator.inside(record["name"], init_steps)
    return lifecycle.plan_start(paths, record, config, layout, init_order)


# the verbs


def create(paths: Paths, options: Options) -> tuple[str, list[str]]:
    """Make a container without starting it. Returns its name and notes for the user."""
    sandbox_, made, plan = creation(paths, options)
    with sandbox.lock(paths, sandbox_["name"]):
        steps.run(plan + lifecycle.plan_sync(paths, sandbox_["name"], [made.record]))
    return made.record["name"], made.notes


def creation(paths: Paths, options: Options) -> tuple[dict[str, Any], Draft, Plan]:
    """The sandbox's record, the draft and the plan of `create`: a sandbox of its own, or a place
    in a pod."""
    name = choose_name(paths, options.name)
    host = configs.host_facts()
    plan: Plan = []
    if options.pod:
        sandbox_ = pod_to_join(paths, options)
    else:
        check_modes(options)
        sandbox_ = sandbox_record(name, options)
    made = draft(paths, options, name, sandbox_, host)
    if not options.pod:
        plan += lifecycle.plan_create_sandbox(paths, sandbox_)
    plan += made.plan_create(paths)
    return sandbox_, made, plan


def pod_to_join(paths: Paths, options: Options) -> dict[str, Any]:
    pod = records_of.find(paths, "sandboxes", options.pod)
    sandbox_ = records_of.sandbox(paths, pod)
    if not sandbox_["pod"]:
        raise BadInput(f"--pod: {pod} is a container, not a pod")
    if options.publish or options.hostname or options.network != "bridge":
        raise BadInput(
            "--publish, --hostname and --network belong to the pod, not to a member",
            hint="give them to `pyrun pod create`",
        )
    return sandbox_


def check_modes(options: Options) -> None:
    kind, colon, other = options.network.partition(":")
    if kind not in ("bridge", "none", "host", "container") or (kind == "container") != bool(other):
        raise BadInput(
            f"--network: {options.network!r} is not bridge, none, host or container:NAME"
        )
    kind, colon, other = options.ipc.partition(":")
    if kind not in ("", "private", "shareable", "host", "container") or bool(colon) != bool(other):
        raise BadInput(f"--ipc: {options.ipc!r} is not private, shareable, host or container:NAME")


def run(paths: Paths, options: Options, attach: Attach | None = None) -> Outcome:
    """Create and start in one plan; a failure anywhere leaves nothing behind.

    `attach(sandbox, name, then)` launches the container with the terminal attached, calls `then`
    when it runs, and returns its exit code.
    """
    sandbox_, made, plan = creation(paths, options)
    name, sandbox_name = made.record["name"], sandbox_["name"]
    launch = lifecycle.plan_launch(paths, sandbox_name, [name] if attach is None else [])
    durable = lifecycle.plan_sync(paths, sandbox_["name"], [made.record])
    lowerdirs = ImageStore(paths).lowerdirs(made.image)
    # The lock comes before the address: of two that take the same name at once the second must
    # not give back what the first one holds under it.
    with sandbox.lock(paths, sandbox_name):
        if options.pod:
            sandbox.require_up(paths, sandbox_name)
            facts = sandbox.Facts(cgroup.host_layout())
        else:
            sandbox.check_name_free(paths, name)
            facts = sandbox.gather(paths, sandbox_)
        try:
            if not options.pod:
                plan += sandbox.plan_up(paths, sandbox_, facts, lone=True)
            plan += start_plan(paths, made.record, made.config, facts.layout, lowerdirs) + launch
            steps.run(plan + (durable if attach is None else []))
        except BaseException:
            sandbox.give_back(paths, name, facts)
            raise
    if attach is None:
        return Outcome(name, None, made.notes)
    executing = []

    def executes() -> None:
        executing.append(True)
        steps.run(durable)

    try:
        code = attach(sandbox_name, name, executes)
    except (PyrunError, KeyboardInterrupt):
        # It could not be launched: nothing of a container that never ran stays.
        if not executing and records_of.status(paths, name).word != "running":
            remove(paths, name, force=True)
            for path, above in made.directories:
                files.unmake(path, above)
        raise
    if options.remove and options.pod and os.path.isdir(paths.container(name)):
        remove(paths, name, force=True)
    return Outcome(name, code, made.notes)


def start(paths: Paths, name: str, attach: Attach | None = None) -> int | None:
    """Start a container that was created or has ended; bring its sandbox up where it is down."""
    record = records_of.container(paths, name)
    if records_of.status(paths, name).running:
        return None
    store = ImageStore(paths)
    config = records.read(f"{paths.container(name)}/config.json")
    lowerdirs = store.lowerdirs(store.resolve(record["image"]))
    sandbox_ = records_of.sandbox(paths, record["sandbox"])
    launch = lifecycle.plan_launch(paths, sandbox_["name"], [name] if attach is None else [])
    with sandbox.lock(paths, sandbox_["name"]):
        records_of.container(paths, name)  # raises where it was removed while we waited
        facts = sandbox.Facts(cgroup.host_layout())
        if records_of.is_up(paths, sandbox_["name"]):
            up = lifecycle.plan_member_down(paths, record, facts.layout)
        elif sandbox_["pod"]:
            raise PyrunError(
                f"pod {sandbox_['name']} is not running, so {name} cannot start",
                hint=f"`pyrun pod start {sandbox_['name']}` starts it with all its members",
            )
        else:
            clear(paths, sandbox_, facts.layout)
            facts = sandbox.gather(paths, sandbox_)
            up = sandbox.plan_up(paths, sandbox_, facts, lone=True)
        try:
            steps.run(up + start_plan(paths, record, config, facts.layout, lowerdirs) + launch)
        except BaseException:
            sandbox.give_back(paths, sandbox_["name"], facts)
            raise
    if attach is None:
        return None
    executing: list[bool] = []
    try:
        return attach(sandbox_["name"], name, lambda: executing.append(True))
    except (PyrunError, KeyboardInterrupt):
        if not executing and not records_of.status(paths, name).running:
            never_started(paths, record, sandbox_)
        raise


def never_started(paths: Paths, record: dict[str, Any], sandbox_: dict[str, Any]) -> None:
    """Undo `start` where the launch, which is not a part of its plan, has failed."""
    with sandbox.lock(paths, sandbox_["name"]):
        layout = cgroup.host_layout()
        if sandbox_["pod"]:
            steps.run(lifecycle.plan_member_down(paths, record, layout))
        else:
            clear(paths, sandbox_, layout)
        files.unmark_started(paths.container(record["name"]))


def clear(paths: Paths, sandbox_: dict[str, Any], layout: cgroup.Layout) -> None:
    """Take down what a dead supervisor or a crash left of a sandbox; nothing left is fine."""
    plan: Plan = []
    for member in records_of.members(paths, sandbox_["name"]):
        plan += lifecycle.plan_member_down(paths, member, layout)
    spawn.end_supervisor(paths.root, paths.run_root, sandbox_["name"])
    steps.run(plan + sandbox.plan_down(paths, sandbox_, layout))


def stop(paths: Paths, name: str, timeout: float | None = None) -> None:
    """Send the stop signal, wait up to the grace period, kill. Returns when it has ended."""
    from pyrun.container.options import parse_signal

    record = records_of.container(paths, name)
    status = records_of.status(paths, name)
    if not status.running:
        return
    layout = cgroup.host_layout()
    if status.word == "paused":
        cgroup.thaw(layout, sandbox.cgroup_path(paths, layout, record["sandbox"], name))
    seconds = record["stop_timeout"] if timeout is None else timeout
    signal = parse_signal(record["stop_signal"])
    steps.run(lifecycle.plan_stop(paths, [(record, status, signal)], layout, seconds))
    settle(paths, record, status)


def kill_all(paths: Paths, record: dict[str, Any], layout: cgroup.Layout) -> None:
    """SIGKILL to every process of the container, and wait until the first one is gone."""
    status = records_of.status(paths, record["name"])
    cgroup.kill(layout, sandbox.cgroup_path(paths, layout, record["sandbox"], record["name"]))
    if status.running:
        process.kill_pid(status.pid, status.ticks, 9)
        client.wait_for_end(status.pid, status.ticks, 10.0)


def settle(
    paths: Paths, record: dict[str, Any], ended: records_of.Status, seconds: float = 10.0
) -> None:
    """Wait until the supervisor has written down how process `ended` ended; a lone one takes its
    sandbox down too."""
    sandbox_name = record["sandbox"]
    pid, ticks = records_of.sandbox_state(paths, sandbox_name).get("supervisor", (0, 0))
    if record["pod"]:
        await_record(paths, record, ended, seconds)
    elif process.is_alive(pid, ticks):
        client.wait_for_end(pid, ticks, seconds)
    elif os.path.isdir(paths.sandbox(sandbox_name)):
        with sandbox.lock(paths, sandbox_name):
            clear(paths, records_of.sandbox(paths, sandbox_name), cgroup.host_layout())


def await_record(
    paths: Paths, record: dict[str, Any], ended: records_of.Status, seconds: float = 10.0
) -> None:
    """Wait until the end of that very process is on record, or nobody is there to write it.

    Not `wait`: another command may have started the container again, and that one runs on.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        now = records_of.status(paths, record["name"])
        if (now.pid, now.ticks) != (ended.pid, ended.ticks) and (now.running or now.finished):
            return
        if now.word in ("broken", "created"):
            return  # removed meanwhile
        if not records_of.supervisor_alive(paths, record["sandbox"]):
            return
        time.sleep(0.002)


def wait(paths: Paths, name: str) -> int:
    """Block until the container has ended. Returns its exit code."""
    record = records_of.container(paths, name)
    status = records_of.status(paths, name)
    if status.finished and status.code is not None:
        return status.code
    if status.word == "created":
        while status.word == "created":
            time.sleep(0.1)
            status = records_of.status(paths, name)
    try:
        with client.Connection(paths, record["sandbox"]) as connection:
            answer = connection.ask({"do": "wait", "name": name})
            if "exit" in answer:
                return int(answer["exit"])
    except PyrunError:
        pass
    # No supervisor to ask: the process itself tells when it ends, the record how.
    status = records_of.status(paths, name)
    if status.running:
        client.wait_for_end(status.pid, status.ticks, 1e6)
        status = records_of.status(paths, name)
    return 255 if status.code is None else status.code


def remove(paths: Paths, name: str, *, force: bool = False) -> None:
    """Remove a container. `force` ends it first, and removes also what a crash left half made."""
    record = records.read(f"{paths.container(name)}/record.json")
    if record is None:
        if not force:
            records_of.container(paths, name)  # raises, with the way forward
        record = half_made_container(paths, name)
    status = records_of.status(paths, name)
    layout = cgroup.host_layout()
    if status.running:
        if not force:
            raise Conflict(
                f"container {name} is running",
                hint=f"`pyrun stop {name}` ends it, or `pyrun rm -f {name}` removes it anyway",
            )
        kill_all(paths, record, layout)
        settle(paths, record, status, 2.0)  # a supervisor that does not listen is killed below
    sandbox_name = record["sandbox"]
    with sandbox.lock(paths, sandbox_name):
        plan = lifecycle.plan_member_down(paths, record, layout)
        if record["pod"]:
            forget_member(paths, sandbox_name, name)
        else:
            sandbox_ = records.read(f"{paths.sandbox(sandbox_name)}/record.json")
            down = sandbox_ or sandbox.half_made(paths, sandbox_name)
            spawn.end_supervisor(paths.root, paths.run_root, sandbox_name)
            plan += sandbox.plan_down(paths, down, layout)
        plan += lifecycle.plan_forget_container(paths, record)
        if not record["pod"]:
            plan += sandbox.plan_forget_sandbox(paths, down)
        steps.run(plan)


def half_made_container(paths: Paths, name: str) -> dict[str, Any]:
    """A record for removing what a killed `create` left of a container."""
    pod = next((r["name"] for r in records_of.sandboxes(paths) if name in r["members"]), name)
    return {"name": name, "sandbox": pod, "pod": pod if pod != name else "", "id": ""}


def sweep(paths: Paths, name: str) -> None:
    """`rm -f` of a name no container or pod has. A `create` that was killed before it could make
    the directory may have left a member that is counted, a sandbox, or an address."""
    if os.path.isdir(paths.container(name)):
        return  # it is one, and `pod rm` meant no container
    record = records.read(f"{paths.sandbox(name)}/record.json")
    if os.path.isdir(paths.sandbox(name)):
        if record is None or not record["pod"]:
            remove(paths, name, force=True)
    elif half_made_container(paths, name)["pod"]:
        remove(paths, name, force=True)
    else:
        with sandbox.lock(paths, name):
            if not os.path.isdir(paths.sandbox(name)):
                steps.run(ipam.plan_release(paths, name))


def forget_member(paths: Paths, sandbox_name: str, name: str) -> None:
    try:
        with client.Connection(paths, sandbox_name) as connection:
            connection.ask({"do": "forget", "name": name})
    except (OSError, PyrunError):
        pass  # a supervisor that is gone has forgotten already


def kill(paths: Paths, name: str, signal: int) -> None:
    status = records_of.require_running(paths, name)
    process.kill_pid(status.pid, status.ticks, signal)
    if signal == 9:
        client.wait_for_end(status.pid, status.ticks, 10.0)
        settle(paths, records_of.container(paths, name), status)


def pause(paths: Paths, name: str, frozen: bool) -> None:
    """Freeze or thaw every process of the container."""
    record = records_of.container(paths, name)
    records_of.require_running(paths, name)
    layout = cgroup.host_layout()
    cgroup.freeze(layout, sandbox.cgroup_path(paths, layout, record["sandbox"], name), frozen)
    path = f"{paths.container_run(name)}/state.json"
    state = records.read(path)
    state["paused"] = frozen
    records.write(path, state, durable=False)
