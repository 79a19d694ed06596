"""Starting and ending supervisors.

A new one is forked by one that runs already, where there is one: it shares that one's memory
(1 MB of its own instead of 6) and needs no start of an interpreter. The first is executed afresh,
from a read-only clone of the interpreter's file: see `mounts.read_only_clone`.
"""

from __future__ import annotations

import _socket
import os
import sys

from pyrun.container import record as records_of
from pyrun.container.client import SEQPACKET, Connection, wait_for_end, with_short_path
from pyrun.errors import KernelError, PyrunError
from pyrun.kernel import mounts, process
from pyrun.store import records
from pyrun.store.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CODE = (
    "import sys; n = int(sys.argv[1]); sys.path[:0] = sys.argv[2:2+n]; "
    "from pyrun.container.supervisor import main; main(sys.argv[2+n:])"
)
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
MOST_TRIES = 2
"""Asking costs a millisecond, and after an update every one of hundreds would refuse."""
MOST_SOCKETS = 200
"""unix(7): one message carries at most 253 descriptors."""


def spawn_supervisor(
    root: str,
    run_root: str,
    name: str,
    kind: str,
    cgroup_files: list[str],
    sockets: list[int],
    ips: list[str],
    published: list[list[Any]],
) -> None:
    """Start the supervisor of sandbox `name`, detached; it answers from now on.

    kind is "lone" or "pod"; cgroup_files are those it joins; sockets hold the published ports for
    as long as it lives, and are closed here.
    """
    paths = Paths(root, run_root)
    run = paths.sandbox_run(name)
    listener = _socket.socket(1, SEQPACKET)
    try:
        with_short_path(f"{run}/socket", listener.bind)
        listener.listen(128)
        arguments = [root, run_root, name, kind, *cgroup_files]
        fds = [listener.fileno(), *sockets]
        pid = fork_from_another(paths, name, arguments, fds) or execute(run, arguments, fds)
    finally:
        listener.close()
        for fd in sockets:
            os.close(fd)
        sockets.clear()
    records.write(
        f"{run}/state.json",
        {
            "boot": records.boot_id(),
            "supervisor": [pid, process.start_time(pid)],
            "ips": ips,
            "ports": published,
        },
        durable=False,
    )


def fork_from_another(paths: Paths, name: str, arguments: list[str], fds: list[int]) -> int:
    """Ask a living supervisor to fork the new one. Returns its pid, or 0 where none could.

    Only one in our own namespaces that runs our own code will do.
    """
    if len(fds) > MOST_SOCKETS:
        return 0
    tries = 0
    for other in records_of.names(f"{paths.run_root}/sandboxes"):
        pid, ticks = records_of.sandbox_state(paths, other).get("supervisor", (0, 0))
        if other == name or not process.is_alive(pid, ticks) or not same_namespaces(pid):
            continue
        tries += 1
        if tries > MOST_TRIES:
            break
        try:
            with Connection(paths, other) as connection:
                connection.socket.settimeout(1.0)
                answer = connection.ask(
                    {"do": "sibling", "arguments": arguments, "code": code_version()}, tuple(fds)
                )
        except (OSError, PyrunError):
            continue  # it is just ending
        if "pid" in answer:
            return int(answer["pid"])
    return 0


def code_version() -> int:
    """Changes when pyrun is updated: a supervisor of yesterday's code makes none for today's."""
    return os.stat(__file__.rpartition("/")[0] + "/supervisor.py").st_mtime_ns


def same_namespaces(pid: int) -> bool:
    try:
        return all(
            os.readlink(f"/proc/{pid}/ns/{kind}") == os.readlink(f"/proc/self/ns/{kind}")
            for kind in NAMESPACES
        ) and os.path.samestat(os.stat(f"/proc/{pid}/root"), os.stat("/"))
    except OSError:
        return False


def execute(run: str, arguments: list[str], fds: list[int]) -> int:
    """Execute a supervisor afresh. Returns its pid."""
    interpreter = os.path.realpath(sys.executable or "/usr/bin/python3")
    try:
        image = mounts.read_only_clone(interpreter)
    except KernelError as error:
        if error.errno != 38:
            raise
        image = os.open(interpreter, os.O_RDONLY | os.O_CLOEXEC)  # before Linux 5.12
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    errors = os.open(f"{run}/supervisor.log", flags, 0o600)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        for fd in fds:
            os.set_inheritable(fd, True)
        where = [path for path in sys.path if path and os.path.isdir(path)]
        return os.posix_spawn(
            f"/proc/self/fd/{image}",
            [
                sys.executable or interpreter, "-IS", "-c", CODE,
                str(len(where)), *where, ",".join(map(str, fds)), *arguments,
            ],
            {"LANG": "C.UTF-8", "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, null, 0),
                (os.POSIX_SPAWN_DUP2, null, 1),
                (os.POSIX_SPAWN_DUP2, errors, 2),
            ],
            setsid=True,
            setsigmask=[],
        )  # fmt: skip
    finally:
        for fd in (image, errors, null):
            os.close(fd)


def end_supervisor(root: str, run_root: str, name: str) -> None:
    """Ask the supervisor to go and wait until it has; kill it where it does not listen."""
    paths = Paths(root, run_root)
    pid, ticks = records_of.sandbox_state(paths, name).get("supervisor", (0, 0))
    try:
        # Ask even where no pid is known: whoever started it may have been killed before it could
        # write the pid down. Nobody listens any more: the connection is refused.
        with Connection(paths, name) as connection:
            connection.send({"do": "quit"})
            connection.wait_for_end(2.0)
    except (OSError, PyrunError):
        pass
    if process.is_alive(pid, ticks) and not wait_for_end(pid, ticks, 2.0):
        process.kill_pid(pid, ticks, 9)
        wait_for_end(pid, ticks, 5.0)
