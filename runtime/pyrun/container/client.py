"""The CLI's side of the supervisor: starting it, asking it, ending it.

The protocol is described in `supervisor.py`.
"""

from __future__ import annotations

import _socket
import os
import struct

from pyrun.container import record as records_of
from pyrun.errors import EXIT_CANNOT_INVOKE, EXIT_NOT_FOUND, KernelError, PyrunError, errno_text
from pyrun.explain import steps
from pyrun.kernel import process
from pyrun.store import records
from pyrun.store.fastjson import dumps, loads
from pyrun.store.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SEQPACKET = 5 | 0o2000000  # SOCK_SEQPACKET | SOCK_CLOEXEC


class Connection:
    """One connection to a sandbox's supervisor."""

    def __init__(self, paths: Paths, sandbox: str) -> None:
        """Raises PyrunError where no supervisor answers."""
        self.socket = _socket.socket(1, SEQPACKET)
        try:
            with_short_path(f"{paths.sandbox_run(sandbox)}/socket", self.socket.connect)
        except OSError as error:
            self.socket.close()
            raise PyrunError(
                f"the supervisor of {sandbox} does not answer: {steps.describe(error)}",
                hint=f"`pyrun pod start {sandbox}` gives a pod a new one; a container needs "
                f"`pyrun restart {sandbox}`",
            ) from error

    def send(self, value: Any, fds: tuple[int, ...] = ()) -> None:
        data = value if isinstance(value, bytes) else dumps(value).encode()
        rights = [(1, 1, struct.pack(f"{len(fds)}i", *fds))] if fds else []
        self.socket.sendmsg([data], rights)

    def receive(self) -> tuple[Any, int]:
        """(JSON value or b"W", descriptor or -1). (None, -1) when the supervisor is gone."""
        for _ in range(2):
            try:
                data, ancillary, _, _ = self.socket.recvmsg(1 << 17, 64, 0x40000000)
                break
            except ConnectionResetError:
                # It went without reading all we had sent. The kernel tells that before it hands
                # out what came last, which is often the answer.
                continue
        else:
            return None, -1
        fd = struct.unpack("i", ancillary[0][2][:4])[0] if ancillary else -1
        if not data:
            return None, fd
        return (loads(data.decode()) if data[:1] == b"{" else data), fd

    def ask(self, value: Any, fds: tuple[int, ...] = ()) -> dict[str, Any]:
        """Send a request and return its answer. Raises PyrunError where there is none."""
        self.send(value, fds)
        while True:
            answer, _ = self.receive()
            if answer is None:
                raise PyrunError(
                    "the supervisor ended in the middle of a request",
                    hint="supervisor.log beside its socket may say why",
                )
            if isinstance(answer, dict):
                return answer

    def wait_for_end(self, seconds: float) -> None:
        """Wait until the supervisor has ended, which closes its end of the connection."""
        self.socket.settimeout(seconds)
        while self.receive()[0] is not None:
            pass

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def with_short_path(path: str, use: Any) -> None:
    """A UNIX socket's path may have 107 bytes; through a directory descriptor any is short."""
    directory, _, name = path.rpartition("/")
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        use(f"/proc/self/fd/{fd}/{name}")
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes) -> None:
    """write(2) until everything is written, also to a descriptor that does not block."""
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            import select

            select.select([], [fd], [])


# steps


def wait_for_end(pid: int, ticks: int, seconds: float) -> bool:
    """Whether that very process ended within `seconds`."""
    import select

    try:
        fd = process.pidfd_open(pid)
    except KernelError:
        return True
    try:
        if not process.is_alive(pid, ticks):
            return True
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    finally:
        os.close(fd)


def end_within(seconds: float, ends: list[list[Any]]) -> None:
    """Wait until processes have ended; after `seconds` kill what is left in their cgroups.

    ends  pid, start time, and what `cgroup.files.kill_all` takes, of each
    """
    import time

    from pyrun.cgroup import files as cgroup_files

    deadline = time.monotonic() + seconds
    for pid, ticks, *group in ends:
        if not wait_for_end(pid, ticks, max(0.0, deadline - time.monotonic())):
            cgroup_files.kill_all(*group)
            process.kill_pid(pid, ticks, 9)
            wait_for_end(pid, ticks, 10.0)


def launch_members(root: str, run_root: str, sandbox: str, names: list[str]) -> None:
    """Ask the supervisor to launch members, all at once, and wait until each executes.

    Raises PyrunError for the first that could not be launched, with docker's exit codes.
    """
    paths = Paths(root, run_root)
    connections = []
    try:
        for name in names:
            connections.append(Connection(paths, sandbox))
            connections[-1].send({"do": "start", "name": name})
        for name, connection in zip(names, connections, strict=True):
            await_launch(paths, name, connection)
    finally:
        for connection in connections:
            connection.close()


def adopt_members(root: str, run_root: str, sandbox: str, names: list[str]) -> None:
    """Put running members into the care of a new supervisor; one that has just ended needs none."""
    for name in names:
        with Connection(Paths(root, run_root), sandbox) as connection:
            connection.ask({"do": "adopt", "name": name})


def await_launch(paths: Paths, name: str, connection: Connection) -> None:
    """Read the supervisor's answers to `start` until the container executes or has failed to."""
    count = 0
    while True:
        answer, _ = connection.receive()
        if answer is None:
            raise PyrunError(f"the supervisor ended while it launched {name}")
        if not isinstance(answer, dict):
            continue  # a wake-up: it has written something already
        if "error" in answer:
            raise start_error(paths, name, answer)
        if "took" in answer:
            count = answer["step"] + 1
            steps.narrator.inside_done(name, answer["step"], answer["took"])
        elif "pid" in answer:
            if steps.narrator.wants_inside:
                steps.narrator.inside_done(name, count, 0)  # execve itself cannot report
            return


def end_members(root: str, run_root: str, names: list[str]) -> None:
    """Kill members and wait until they are gone: undoes `launch_members`."""
    paths = Paths(root, run_root)
    running = [records_of.status(paths, name) for name in names]
    for state in running:
        process.kill_pid(state.pid, state.ticks, 9)
    for state in running:
        if state.running:
            wait_for_end(state.pid, state.ticks, 5.0)


def start_error(paths: Paths, name: str, answer: dict[str, Any]) -> PyrunError:
    """The supervisor's account of a failed start as an error that tells where and why."""
    order = records.read(f"{paths.container_run(name)}/init.json") or {"plan": []}
    index, number = answer["step"], answer["errno"]
    step = order["plan"][index] if 0 <= index < len(order["plan"]) else [""]
    return describe_failure(f"cannot start {name}", step, number, answer["error"])


def describe_failure(what: str, step: list[Any], number: int, text: str) -> PyrunError:
    """One message for a step that failed inside a container."""
    if step[0] == "execute":
        program = step[1][0]
        if number == 2:
            return PyrunError(
                f"{what}: {program!r}: no such command in the image",
                hint="a script's #! line may name an interpreter that the image lacks"
                if "/" in program
                else "it is in no directory of PATH; `pyrun run IMAGE ls /bin` shows what is there",
                exit_code=EXIT_NOT_FOUND,
            )
        if number == 20:
            return PyrunError(
                f"{what}: {program!r}: a part of its path is not a directory",
                exit_code=EXIT_NOT_FOUND,
            )
        hints = {
            13: "it is not executable, is a directory, or lies on a noexec mount",
            8: "it is neither a program for this machine nor a script with a #! line",
        }
        return PyrunError(
            f"{what}: cannot execute {program!r}: {errno_text(number)}",
            hint=hints.get(number, ""),
            exit_code=EXIT_CANNOT_INVOKE,
        )
    place = f"{step[0]}({', '.join(map(steps.short, step[1:]))})" if step[0] else "the launch"
    error = KernelError(number, text)
    return PyrunError(
        f"{what}: {text}" + (f" ({errno_text(number)})" if number and "E" not in text else ""),
        hint="\n".join(filter(None, (f"it failed at the step {place}", steps.likely_cause(error)))),
        exit_code=EXIT_CANNOT_INVOKE if step[0] == "chdir" else 125,
    )
