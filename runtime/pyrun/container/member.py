"""One container's process, and one process of `exec`, as their supervisor sees them.

`Member` owns the streams: output goes from FIFOs or the terminal into the log, input from attached
clients into a pipe or the terminal. `Exec` owns nothing but the process; its streams are the
client's own. Both live inside the supervisor's loop and never block.
"""

from __future__ import annotations

import fcntl
import os
import termios
import time

from pyrun.container import files
from pyrun.container.log import MAX_FILES, MAX_SIZE, LogWriter
from pyrun.container.loop import AGAIN
from pyrun.errors import KernelError
from pyrun.kernel import process
from pyrun.oci import launch
from pyrun.oci.init import ERROR, STEP, TERMINAL
from pyrun.store import records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyrun.container.supervisor import Client, Supervisor

CHUNK = 1 << 16


class Member:
    """One container's process, its streams and who listens to it."""

    def __init__(self, supervisor: Supervisor, name: str, order: dict[str, Any]) -> None:
        self.supervisor = supervisor
        self.name = name
        self.order = order
        self.run_dir = supervisor.paths.container_run(name)
        self.dir = supervisor.paths.container(name)
        self.log = LogWriter(
            self.dir, order.get("log_size", MAX_SIZE), order.get("log_files", MAX_FILES)
        )
        self.streams: dict[int, bytes] = {}  # descriptor → b"stdout" | b"stderr"
        self.terminal = -1
        self.stdin = -1
        self.input = bytearray()
        self.input_ended = False
        self.typists: set[Client] = set()  # they wait for b"M" before they send more input
        self.attached: set[Client] = set()
        self.waiting: set[Client] = set()
        self.starter: Client | None = None
        self.launched: launch.Launched | None = None
        self.rotation_told = False
        self.executing = False
        self.code: int | None = None
        self.over = False
        self.state: dict[str, Any] = {}

    # starting

    def start(self, starter: Client) -> None:
        self.starter = starter
        stdio = self.open_streams()
        try:
            self.launched = launch.launch(self.order, stdio)
        finally:
            for fd in set(stdio):
                os.close(fd)
        self.watch_process()
        self.supervisor.loop.on_readable(self.launched.channel.fileno(), self.heard)

    def open_streams(self) -> tuple[int, int, int]:
        """The container's ends. FIFOs have names in the run directory: they outlive us.

        The container holds them open for reading and writing, so that even when nobody reads any
        more a write waits instead of ending in SIGPIPE.
        """
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        if self.order["terminal"]:
            return null, null, null
        ends = []
        for stream in ("stdout", "stderr"):
            path = f"{self.run_dir}/{stream}"
            try:
                os.mkfifo(path, 0o600)
            except FileExistsError:
                pass
            self.listen_to(stream)
            ends.append(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        if self.order["stdin"]:
            os.close(null)
            null, self.stdin = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(self.stdin, False)
        return null, ends[0], ends[1]

    def listen_to(self, stream: str) -> None:
        reader = os.open(f"{self.run_dir}/{stream}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self.streams[reader] = stream.encode()
        self.supervisor.loop.on_readable(reader, lambda: self.read(reader))

    def watch_process(self) -> None:
        assert self.launched is not None
        self.supervisor.loop.on_readable(self.launched.pidfd, self.ended)

    def heard(self) -> None:
        """The child said something over the channel, or closed it: then execve worked."""
        assert self.launched is not None
        message = launch.read_message(self.launched.channel)
        if message.kind == STEP:
            if self.starter is not None:
                self.starter.send({"step": message.step, "took": message.took})
        elif message.kind == TERMINAL:
            self.terminal = message.fd
            os.set_blocking(self.terminal, False)
            self.streams[self.terminal] = b"stdout"
            self.supervisor.loop.on_readable(self.terminal, lambda: self.read(self.terminal))
        elif message.kind == ERROR:
            self.answer_start({"error": message.text, "errno": message.errno, "step": message.step})
        elif message.kind == b"":
            self.supervisor.loop.forget(self.launched.channel.fileno())
            self.launched.channel.close()
            if self.starter is not None and not launch.has_executed(self.launched):
                # Killed before it could execute anything or say why.
                self.reap()
                self.answer_start(
                    {"error": "the process was killed while it set itself up", "errno": 0,
                     "step": -1}
                )  # fmt: skip
            elif self.starter is not None:
                self.executes()

    def executes(self) -> None:
        assert self.launched is not None
        pid = self.launched.pid
        self.executing = True
        self.state = {
            "pid": pid,
            "ticks": process.start_time(pid),
            "started": time.time(),
        }
        records.write(f"{self.run_dir}/state.json", self.state, durable=False)
        self.answer_start({"pid": pid})
        if self.order["short_lived"] and self.supervisor.lone:
            self.supervisor.load_ending()

    def answer_start(self, answer: dict[str, Any]) -> None:
        if self.starter is not None:
            self.starter.send(answer)
            self.starter = None

    def give_up(self) -> None:
        """Kill a process that still sets itself up: it may be in no cgroup yet that tells whose
        it is, and nobody would find it later."""
        if self.launched is not None and not self.executing and self.code is None:
            process.pidfd_send_signal(self.launched.pidfd, 9)

    # output and input

    def read(self, fd: int, *, last: bool = False) -> bool:
        """Move one chunk into the log. False when the stream has ended or has nothing now."""
        if not (last or self.may_log()):
            self.supervisor.hold(self)
            return False
        try:
            data = os.read(fd, CHUNK)
        except OSError as error:
            if error.errno in AGAIN:
                return False
            data = b""  # EIO: the last process has closed the terminal
        if not data:
            self.close_stream(fd)
            return False
        self.rotation_told = False
        if not self.log.append(self.streams[fd], data, rotate=not last):
            self.supervisor.hold(self)
        for client in tuple(self.attached):
            client.send(b"W")
        return True

    def may_log(self) -> bool:
        """Before the log drops its oldest file, whoever is attached must have read everything.

        So `run | slow-program` gets every byte, as from a pipe: the container has to wait.
        """
        if self.over or not self.log.is_full:
            return True
        patient = [client for client in self.attached if client.patient]
        if not self.rotation_told:
            self.rotation_told = True
            for client in patient:
                client.behind = True
                client.send({"rotation": True})
        return not any(client.behind for client in patient)

    def close_stream(self, fd: int) -> None:
        if self.streams.pop(fd, None) is not None:
            self.supervisor.loop.forget(fd)
            os.close(fd)
            if fd == self.terminal:
                self.terminal = -1

    def from_client(self, client: Client, kind: bytes, data: bytes) -> None:
        """b"I": input; b"E": its end; b"R": a new window size; b"D": output was drained;
        b"A": drained so far, after {"rotation": true}."""
        if kind == b"I":
            self.input += data
            self.typists.add(client)
            self.write_input()
        elif kind == b"E":
            self.input_ended = True
            self.write_input()
        elif kind == b"R" and self.terminal >= 0:
            fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, data[:4] + b"\0\0\0\0")
        elif kind == b"A":
            client.behind = False
        elif kind == b"D":
            client.drained = True
            self.supervisor.settle()

    def ask_for_more(self) -> None:
        """The container has taken all input. One piece at a time, so that one which does not read
        fills nobody's memory, and input in a socket never stands before a client's other words."""
        typists, self.typists = self.typists, set()
        for client in typists:
            client.send(b"M")

    def write_input(self) -> None:
        fd = self.terminal if self.terminal >= 0 else self.stdin
        if fd < 0:
            self.input.clear()
            self.ask_for_more()
            return
        while self.input:
            try:
                del self.input[: os.write(fd, self.input[:4096])]
            except OSError as error:
                if error.errno in AGAIN:
                    self.supervisor.loop.on_writable(fd, self.write_input)
                    return
                self.input.clear()  # EPIPE: nobody reads it any more
        self.ask_for_more()
        self.supervisor.loop.on_writable(fd, None)
        if self.input_ended and fd == self.stdin:
            os.close(self.stdin)
            self.stdin = -1

    # the end

    def reap(self) -> None:
        assert self.launched is not None
        if self.code is not None:
            return
        _, status = os.waitpid(self.launched.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        self.code = code if code >= 0 else 128 - code
        self.supervisor.loop.forget(self.launched.pidfd)
        os.close(self.launched.pidfd)

    def ended(self) -> None:
        if self.launched is not None and not self.executing and self.starter is not None:
            self.heard()  # what it said last comes before its end
            if not self.executing and self.starter is not None:
                return
        self.reap()
        # Everything it wrote is in the pipes by now; take it all, for nobody writes more.
        for fd in tuple(self.streams):
            while self.read(fd, last=True):
                pass
            self.close_stream(fd)
        if self.stdin >= 0:
            self.supervisor.loop.forget(self.stdin)
            os.close(self.stdin)
            self.stdin = -1
        if self.executing:
            self.write_exit()
        for client in tuple(self.attached):
            client.send({"ended": self.code})
            client.drained = False
        self.over = True
        self.supervisor.settle()

    def write_exit(self) -> None:
        assert self.code is not None
        facts = {
            "code": self.code,
            "started": self.state["started"],
            "finished": time.time(),
            "oom": self.oom_killed(),
        }
        files.write_exit(self.dir, self.run_dir, facts)

    def oom_killed(self) -> bool:
        for path in self.order["oom_files"]:
            try:
                with open(path, encoding="ascii") as file:
                    for line in file:
                        if line.startswith("oom_kill ") and int(line.split()[1]) > 0:
                            return True
            except OSError:
                continue
        return False

    def answer_waiting(self) -> None:
        for client in (*self.attached, *self.waiting):
            client.send({"exit": self.code})
        self.attached.clear()
        self.waiting.clear()


class Adopted(Member):
    """A member whose supervisor has died. It is not our child: pid 1 inherited it and reaps it, and
    we learn its exit code another way."""

    def __init__(
        self, supervisor: Supervisor, name: str, order: dict[str, Any], state: dict[str, Any]
    ) -> None:
        super().__init__(supervisor, name, order)
        self.state = state
        self.executing = True
        try:
            self.pidfd = process.pidfd_open(state["pid"])
            if not process.is_alive(state["pid"], state["ticks"]):
                os.close(self.pidfd)
                raise KernelError(3, f"adopting {name}")  # ESRCH: it has just ended
        except KernelError:
            self.log.close()
            raise
        if not order["terminal"]:
            for stream in ("stdout", "stderr"):
                self.listen_to(stream)
        supervisor.loop.on_readable(self.pidfd, self.ended)

    def reap(self) -> None:
        status = process.exit_status(self.pidfd, self.state["pid"], self.state["ticks"])
        code = 255 if status is None else os.waitstatus_to_exitcode(status)
        self.code = code if code >= 0 else 128 - code
        self.supervisor.loop.forget(self.pidfd)
        os.close(self.pidfd)


class Exec:
    """One process of `exec`: the client's own descriptors are its streams."""

    def __init__(
        self, supervisor: Supervisor, client: Client, order: dict[str, Any], fds: list[int]
    ) -> None:
        self.supervisor = supervisor
        self.client = client
        target = process.pidfd_open(order["target"])
        try:
            self.launched = launch.launch(order, (fds[0], fds[1], fds[2]), target)
        finally:
            os.close(target)
        supervisor.loop.on_readable(self.launched.channel.fileno(), self.heard)
        supervisor.loop.on_readable(self.launched.pidfd, self.ended)
        self.answered = False

    def heard(self) -> None:
        message = launch.read_message(self.launched.channel)
        if message.kind == STEP:
            self.client.send({"step": message.step, "took": message.took})
        elif message.kind == TERMINAL:
            self.client.send({"terminal": True}, message.fd)
            os.close(message.fd)
        elif message.kind == ERROR:
            self.answer({"error": message.text, "errno": message.errno, "step": message.step})
        elif message.kind == b"":
            self.supervisor.loop.forget(self.launched.channel.fileno())
            self.launched.channel.close()
            self.answer({"pid": self.launched.pid})

    def answer(self, value: dict[str, Any]) -> None:
        if not self.answered:
            self.answered = True
            self.client.send(value)

    def ended(self) -> None:
        while self.launched.channel.fileno() >= 0 and not self.answered:
            self.heard()
        if self.launched.channel.fileno() >= 0:
            self.supervisor.loop.forget(self.launched.channel.fileno())
            self.launched.channel.close()
        _, status = os.waitpid(self.launched.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        self.supervisor.loop.forget(self.launched.pidfd)
        os.close(self.launched.pidfd)
        self.client.send({"exit": code if code >= 0 else 128 - code})
