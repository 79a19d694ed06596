"""`exec`: one more process in a running container, launched by its supervisor.

The supervisor does it, not the CLI, because it runs from a read-only clone of the interpreter:
a container that rigs its own programs to open /proc/self/exe gets nothing it can write to
(CVE-2019-5736 was found in `exec`).
"""

from __future__ import annotations

import os

from pyrun.cgroup import api as cgroup
from pyrun.container import client, sandbox, verbs
from pyrun.container import record as records_of
from pyrun.container.options import parse_env
from pyrun.container.user import identify
from pyrun.errors import BadInput, PyrunError
from pyrun.explain import steps
from pyrun.image.store import ImageStore
from pyrun.kernel import caps
from pyrun.kernel import process as processes
from pyrun.oci import initplan
from pyrun.store import records
from pyrun.store.fastjson import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyrun.store.paths import Paths


class Request:
    """What the user asks of one `exec`. Empty values take the container's own."""

    __slots__ = ("args", "env", "privileged", "stdin", "tty", "user", "workdir")

    def __init__(
        self,
        args: list[str],
        *,
        env: list[str] | None = None,
        user: str = "",
        workdir: str = "",
        tty: bool = False,
        stdin: bool = False,
        privileged: bool = False,
    ) -> None:
        self.args = args
        self.env = env or []
        self.user = user
        self.workdir = workdir
        self.tty = tty
        self.stdin = stdin
        self.privileged = privileged


def process(paths: Paths, record: dict[str, Any], config: dict[str, Any], request: Request) -> Any:
    """The specification's `process` object for this exec."""
    own = config["process"]
    made = dict(own)
    made["args"] = request.args
    made["terminal"] = request.tty
    made["cwd"] = request.workdir or own["cwd"]
    if not made["cwd"].startswith("/"):
        raise BadInput(f"--workdir: {made['cwd']!r} is not an absolute path")
    extra = parse_env(request.env, dict(os.environ))
    merged = dict(entry.partition("=")[::2] for entry in (*own["env"], *extra))
    if request.tty:
        merged.setdefault("TERM", "xterm")
    if request.user:
        store = ImageStore(paths)
        layers = store.lowerdirs(store.resolve(record["image"]))
        found = identify(request.user, (), [f"{paths.container(record['name'])}/upper", *layers])
        made["user"] = {"uid": found.uid, "gid": found.gid, "additionalGids": list(found.groups)}
        merged["HOME"] = found.home
    made["env"] = [f"{key}={value}" for key, value in merged.items()]
    if request.privileged:
        every = caps.names(caps.own_bounding())
        made["capabilities"] = {
            **own["capabilities"], "bounding": every, "effective": every, "permitted": every
        }  # fmt: skip
    return made


def order(paths: Paths, name: str, request: Request) -> tuple[str, dict[str, Any]]:
    """(sandbox, the supervisor's order). Raises PyrunError where the container does not run."""
    record = records_of.container(paths, name)
    status = records_of.require_running(paths, name)
    if status.word == "paused":
        raise PyrunError(
            f"container {name} is paused: a new process in it would be frozen at once",
            hint=f"`pyrun unpause {name}` lets it go on",
        )
    config = records.read(f"{paths.container(name)}/config.json")
    layout = cgroup.host_layout()
    group = sandbox.cgroup_path(paths, layout, record["sandbox"], name)
    program = "" if request.privileged else verbs.seccomp_program(paths, record, config)
    plan = initplan.exec_plan(
        process(paths, record, config, request),
        cgroup_files=cgroup.join_files(layout, group),
        seccomp_program=program,
    )
    steps.narrator.inside(name, plan)
    return record["sandbox"], {
        "flags": 0,
        "plan": [[step.op, *step.args] for step in plan],
        "unified": cgroup.unified_directory(layout, group) or "",
        "pid_namespace": "",
        "cgroups": [],
        "target": status.pid,
        "tell_steps": steps.narrator.wants_inside,
    }


def execute(paths: Paths, name: str, request: Request, *, detach: bool = False) -> int:
    """Run it with the caller's own streams. Returns its exit code (0 at once when detached)."""
    sandbox_name, value = order(paths, name, request)
    memory = os.memfd_create("order", os.MFD_CLOEXEC)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        client.write_all(memory, dumps(value).encode())
        os.lseek(memory, 0, os.SEEK_SET)
        if request.tty or detach:
            streams = (null, null, null)
        else:
            streams = (0 if request.stdin else null, 1, 2)
        with client.Connection(paths, sandbox_name) as connection:
            connection.send({"do": "exec", "name": name}, (memory, *streams))
            return follow(connection, name, value, request, detach)
    finally:
        os.close(memory)
        os.close(null)


def follow(
    connection: client.Connection,
    name: str,
    value: dict[str, Any],
    request: Request,
    detach: bool,
) -> int:
    master = -1
    while True:
        answer, fd = connection.receive()
        if answer is None:
            raise PyrunError("the supervisor ended; how the command ended is not known")
        if "terminal" in answer:
            master = fd
        elif "error" in answer:
            index = answer["step"]
            step = value["plan"][index] if 0 <= index < len(value["plan"]) else [""]
            raise client.describe_failure(
                "cannot execute in the container", step, answer["errno"], answer["error"]
            )
        elif "step" in answer:
            steps.narrator.inside_done(name, answer["step"], answer["took"])
        elif "pid" in answer:
            steps.narrator.inside_done(name, len(value["plan"]) - 1, 0)
            if detach:
                return 0
            if request.tty and master >= 0:
                from pyrun.container.attach import pump_terminal

                return pump_terminal(master, connection, stdin=request.stdin)
            return wait_forwarding(connection, answer["pid"])


def wait_forwarding(connection: client.Connection, pid: int) -> int:
    """Wait for the command's exit code; signals sent to us go to it, as for a foreground child."""
    import select

    from pyrun.container.attach import FORWARDED, INT, PATIENCE, TERM, Signals

    ticks = processes.start_time(pid)
    signals = Signals(FORWARDED)
    poll = select.poll()
    poll.register(signals.reader, select.POLLIN)
    poll.register(connection.socket.fileno(), select.POLLIN)
    impatience = 0
    try:
        while True:
            ready = dict(poll.poll())
            if signals.reader in ready:
                for number in signals.read():
                    impatience += number in (INT, TERM)
                    processes.kill_pid(pid, ticks, 9 if impatience >= PATIENCE else number)
            if connection.socket.fileno() in ready:
                answer, _ = connection.receive()
                if answer is None:
                    raise PyrunError("the supervisor ended; how the command ended is not known")
                if "exit" in answer:
                    return int(answer["exit"])
    finally:
        signals.close()
