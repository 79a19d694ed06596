"""The process that outlives the CLI: one for each sandbox that is up.

It clones the members' processes (and those of `exec`) on request, reaps them, keeps their exit
codes, moves their output into their logs and their input out of the attached clients. It plans
nothing: what a member's process does is in init.json, written by the CLI. Standard library only,
one thread, one epoll; it is executed from a read-only clone of the interpreter's file, so that no
container can write to the host's python through /proc/self/exe.

Requests come over a SOCK_SEQPACKET socket, one JSON object a packet; descriptors ride along.

    {"do": "start", "name": N}          → {"pid": P} or {"error": …, "errno": …, "step": …}
    {"do": "exec", "name": N} + 4 fds   → {"pid": P} (+ terminal fd), later {"exit": C}
    {"do": "attach", "name": N}         → b"W" when output was logged, {"ended": C}, {"exit": C}
    {"do": "wait", "name": N}           → {"exit": C}
    {"do": "forget", "name": N}         → {}         {"do": "quit"} → {}
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import sys
import termios
import time

import _socket

from pyrun.container.log import MAX_FILES, MAX_SIZE, LogWriter
from pyrun.errors import KernelError
from pyrun.kernel import const, process
from pyrun.kernel.libc import prctl
from pyrun.oci import launch
from pyrun.store import records
from pyrun.store.fastjson import dumps, loads
from pyrun.store.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
CHUNK = 1 << 16
AGAIN = (11, 4)  # EAGAIN, EINTR


class Client:
    """A connection. Packets that do not fit the socket wait; a wake-up that does not is dropped."""

    def __init__(self, supervisor: Supervisor, socket: _socket.socket) -> None:
        self.supervisor = supervisor
        self.socket = socket
        self.queue: list[bytes] = []
        self.member: Member | None = None  # attached to
        self.drained = True
        supervisor.watch(socket.fileno(), self.readable, self.writable)

    def send(self, value: Any, fd: int = -1) -> None:
        rights = [(1, 1, struct.pack("i", fd))] if fd >= 0 else []
        data = value if isinstance(value, bytes) else dumps(value).encode()
        try:
            if self.queue:
                raise BlockingIOError(11, "")
            self.socket.sendmsg([data], rights)
        except BlockingIOError:
            if data != b"W":
                self.queue.append(data)
                self.supervisor.events(self.socket.fileno(), READ | WRITE)
        except OSError:
            self.close()

    def writable(self) -> None:
        waiting, self.queue = self.queue, []
        self.supervisor.events(self.socket.fileno(), READ)
        for data in waiting:
            self.send(data)

    def readable(self) -> None:
        try:
            data, ancillary, _, _ = self.socket.recvmsg(1 << 17, 256, 0x40000000)
        except OSError as error:
            if error.errno not in AGAIN:
                self.close()
            return
        fds: list[int] = []
        for _, _, blob in ancillary:
            fds += struct.unpack(f"{len(blob) // 4}i", blob[: len(blob) // 4 * 4])
        if not data:
            self.close()
        elif data[:1] == b"{":
            self.supervisor.request(self, loads(data.decode()), fds)
        elif self.member is not None:
            self.member.from_client(self, data[:1], data[1:])

    def close(self) -> None:
        if self.socket.fileno() < 0:
            return
        self.supervisor.forget_fd(self.socket.fileno())
        self.socket.close()
        for member in self.supervisor.members.values():
            member.attached.discard(self)
            member.waiting.discard(self)
        self.drained = True
        self.supervisor.settle()


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
        self.attached: set[Client] = set()
        self.waiting: set[Client] = set()
        self.starter: Client | None = None
        self.launched: launch.Launched | None = None
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
        self.supervisor.watch(self.launched.channel.fileno(), self.heard)

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
            reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            ends.append(os.open(path, os.O_RDWR | os.O_CLOEXEC))
            self.streams[reader] = stream.encode()
            self.supervisor.watch(reader, lambda fd=reader: self.read(fd))  # type: ignore[misc]
        if self.order["stdin"]:
            os.close(null)
            null, self.stdin = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(self.stdin, False)
        return null, ends[0], ends[1]

    def watch_process(self) -> None:
        assert self.launched is not None
        self.supervisor.watch(self.launched.pidfd, self.ended)

    def heard(self) -> None:
        """The child said something over the channel, or closed it: then execve worked."""
        assert self.launched is not None
        message = launch.read_message(self.launched.channel)
        if message.kind == launch.STEP and self.starter is not None:
            self.starter.send({"step": message.step, "at": time.monotonic_ns()})
        elif message.kind == launch.TERMINAL:
            self.terminal = message.fd
            os.set_blocking(self.terminal, False)
            self.streams[self.terminal] = b"stdout"
            self.supervisor.watch(self.terminal, lambda: self.read(self.terminal), self.write_input)
        elif message.kind == launch.ERROR:
            self.answer_start(
                {"error": message.text, "errno": message.errno, "step": message.step}
            )
        elif message.kind == b"":
            self.supervisor.forget_fd(self.launched.channel.fileno())
            self.launched.channel.close()
            if self.starter is not None and process.start_time(self.launched.pid) == 0:
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

    def answer_start(self, answer: dict[str, Any]) -> None:
        if self.starter is not None:
            self.starter.send(answer)
            self.starter = None

    # output and input

    def read(self, fd: int) -> bool:
        """Move one chunk into the log. False when the stream has ended or has nothing now."""
        try:
            data = os.read(fd, CHUNK)
        except OSError as error:
            if error.errno in AGAIN:
                return False
            data = b""  # EIO: the last process has closed the terminal
        if not data:
            self.close_stream(fd)
            return False
        if not self.log.append(self.streams[fd], data):
            self.supervisor.hold(self)
        for client in tuple(self.attached):
            client.send(b"W")
        return True

    def close_stream(self, fd: int) -> None:
        if self.streams.pop(fd, None) is not None:
            self.supervisor.forget_fd(fd)
            os.close(fd)
            if fd == self.terminal:
                self.terminal = -1

    def from_client(self, client: Client, kind: bytes, data: bytes) -> None:
        """b"I": input; b"E": its end; b"R": a new window size; b"D": output was drained."""
        if kind == b"I":
            self.input += data
            self.write_input()
        elif kind == b"E":
            self.input_ended = True
            self.write_input()
        elif kind == b"R" and self.terminal >= 0:
            fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, data[:4] + b"\0\0\0\0")
        elif kind == b"D":
            client.drained = True
            self.supervisor.settle()

    def write_input(self) -> None:
        fd = self.terminal if self.terminal >= 0 else self.stdin
        if fd < 0:
            self.input.clear()
            return
        while self.input:
            try:
                del self.input[: os.write(fd, self.input[:4096])]
            except OSError as error:
                if error.errno in AGAIN:
                    self.supervisor.watch_for_write(fd, self.write_input)
                    return
                self.input.clear()  # EPIPE: nobody reads it any more
        self.supervisor.no_write(fd)
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
        self.supervisor.forget_fd(self.launched.pidfd)
        os.close(self.launched.pidfd)

    def ended(self) -> None:
        if self.launched is not None and not self.executing and self.starter is not None:
            self.heard()  # what it said last comes before its end
            if not self.executing and self.starter is not None:
                return
        self.reap()
        # Everything it wrote is in the pipes by now; take it all, for nobody writes more.
        for fd in tuple(self.streams):
            while self.read(fd):
                pass
            self.close_stream(fd)
        if self.stdin >= 0:
            self.supervisor.no_write(self.stdin)
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
        try:
            records.write(f"{self.dir}/exit.json", facts)
        except OSError:  # a full disk: the run root is memory
            records.write(f"{self.run_dir}/exit.json", facts, durable=False)

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
        supervisor.watch(self.launched.channel.fileno(), self.heard)
        supervisor.watch(self.launched.pidfd, self.ended)
        self.answered = False

    def heard(self) -> None:
        message = launch.read_message(self.launched.channel)
        if message.kind == launch.TERMINAL:
            self.client.send({"terminal": True}, message.fd)
            os.close(message.fd)
        elif message.kind == launch.ERROR:
            self.answer({"error": message.text, "errno": message.errno, "step": message.step})
        elif message.kind == b"":
            self.supervisor.forget_fd(self.launched.channel.fileno())
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
            self.supervisor.forget_fd(self.launched.channel.fileno())
            self.launched.channel.close()
        _, status = os.waitpid(self.launched.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        self.supervisor.forget_fd(self.launched.pidfd)
        os.close(self.launched.pidfd)
        self.client.send({"exit": code if code >= 0 else 128 - code})


class Supervisor:
    def __init__(self, paths: Paths, name: str, listener: int, lone: bool) -> None:
        self.paths = paths
        self.name = name
        self.lone = lone
        self.epoll = select.epoll()
        self.readers: dict[int, Callable[[], object]] = {}
        self.writers: dict[int, Callable[[], object]] = {}
        self.members: dict[str, Member] = {}
        self.held: list[Member] = []
        self.quitting = False
        self.listener = _socket.socket(fileno=listener)
        self.listener.setblocking(False)
        self.watch(listener, self.accept)

    # epoll

    def watch(
        self, fd: int, readable: Callable[[], object], writable: Callable[[], object] | None = None
    ) -> None:
        self.readers[fd] = readable
        if writable is not None:
            self.writers[fd] = writable
        self.epoll.register(fd, READ)

    def events(self, fd: int, events: int) -> None:
        self.epoll.modify(fd, events)

    def watch_for_write(self, fd: int, writable: Callable[[], object]) -> None:
        self.writers[fd] = writable
        if fd in self.readers:
            self.epoll.modify(fd, READ | WRITE)
        else:
            try:
                self.epoll.register(fd, WRITE)
            except FileExistsError:
                self.epoll.modify(fd, WRITE)

    def no_write(self, fd: int) -> None:
        if fd in self.readers:
            self.epoll.modify(fd, READ)
        elif self.writers.pop(fd, None) is not None:
            self.epoll.unregister(fd)

    def forget_fd(self, fd: int) -> None:
        if self.readers.pop(fd, None) is not None:
            self.writers.pop(fd, None)
            self.epoll.unregister(fd)

    def run(self) -> None:
        while not self.quitting:
            for fd, event in self.epoll.poll(1.0 if self.held else -1):
                if event & WRITE and fd in self.writers:
                    self.writers[fd]()
                if event & ~WRITE and fd in self.readers:
                    self.readers[fd]()
            for member in tuple(self.held):
                if member.log.flush():
                    self.held.remove(member)
                    for stream in member.streams:
                        self.events(stream, READ)

    def hold(self, member: Member) -> None:
        """The disk is full: read no more from this member until its log could be written."""
        if member not in self.held:
            self.held.append(member)
        for stream in member.streams:
            self.events(stream, 0)

    # requests

    def accept(self) -> None:
        fd, _ = self.listener._accept()
        client = _socket.socket(fileno=fd)
        client.setblocking(False)
        Client(self, client)

    def request(self, client: Client, asked: dict[str, Any], fds: list[int]) -> None:
        try:
            getattr(self, f"do_{asked['do']}")(client, asked, fds)
        except (OSError, ValueError, KeyError) as error:
            number = error.errno if isinstance(error, OSError) else 0
            client.send({"error": str(error), "errno": number or 0, "step": -1})
        finally:
            for fd in fds:
                os.close(fd)

    def do_start(self, client: Client, asked: dict[str, Any], fds: list[int]) -> None:
        name = asked["name"]
        old = self.members.get(name)
        if old is not None and not old.over:
            raise KernelError(16, f"start of {name}, which runs already")
        if old is not None:
            old.log.close()
        with open(f"{self.paths.container_run(name)}/init.json", encoding="utf-8") as file:
            order = loads(file.read())
        member = Member(self, name, order)
        self.members[name] = member
        if asked.get("attach"):
            self.attach(client, member)
        try:
            member.start(client)
        except BaseException:
            member.starter = None
            member.over = True
            member.code = 127
            raise

    def attach(self, client: Client, member: Member) -> None:
        client.member = member
        member.attached.add(client)

    def do_attach(self, client: Client, asked: dict[str, Any], fds: list[int]) -> None:
        member = self.members[asked["name"]]
        if member.over:
            client.send({"exit": member.code})
            return
        self.attach(client, member)
        client.send({})

    def do_wait(self, client: Client, asked: dict[str, Any], fds: list[int]) -> None:
        member = self.members[asked["name"]]
        if member.over:
            client.send({"exit": member.code})
        else:
            member.waiting.add(client)

    def do_exec(self, client: Client, asked: dict[str, Any], fds: list[int]) -> None:
        if len(fds) != 4:
            raise ValueError("exec needs its order and three streams")
        with open(os.dup(fds[0]), encoding="utf-8") as file:
            order = loads(file.read())
        Exec(self, client, order, fds[1:])

    def do_forget(self, client: Client, asked: dict[str, Any], fds: list[int]) -> None:
        member = self.members.pop(asked["name"], None)
        if member is not None:
            member.log.close()
        client.send({})

    def do_quit(self, client: Client, asked: dict[str, Any], fds: list[int]) -> None:
        client.send({})
        self.quitting = True

    # the end

    def settle(self) -> None:
        """Answer for members that are over, once those attached have read all of the output.

        A lone container's sandbox has no purpose without it: take it down, then answer, so that
        whoever waited finds the host as it was.
        """
        over = [m for m in self.members.values() if m.over and (m.attached or m.waiting)]
        done = [m for m in self.members.values() if m.over]
        if any(not client.drained for member in over for client in member.attached):
            return
        if (
            self.lone
            and done
            and len(done) == len(self.members)
            and all(m.executing for m in done)
            and not self.quitting
        ):
            self.quitting = True
            self.take_down()
        for member in over:
            member.answer_waiting()

    def take_down(self) -> None:
        from pyrun.container import sandbox

        try:
            sandbox.after_exit(self.paths, self.name)
        except Exception as error:  # `rm` and `start` tidy up what is left
            print(f"taking the sandbox down: {error!r}", file=sys.stderr)


def main(argv: list[str]) -> None:
    """root, run root, sandbox, listener's fd, "lone" or "pod", cgroup.procs files to join."""
    root, run_root, name, listener, kind, *cgroup_files = argv
    for path in cgroup_files:
        with open(path, "w", encoding="ascii") as file:
            file.write("0")
    prctl(const.PR_SET_NAME, _name_pointer(f"pyrun:{name}"))
    prctl(const.PR_SET_DUMPABLE, 0)
    import gc

    gc.collect()
    gc.freeze()
    Supervisor(Paths(root, run_root), name, int(listener), kind == "lone").run()


def _name_pointer(name: str) -> int:
    from pyrun.kernel.libc import ctypes

    _keep.append(ctypes.create_string_buffer(name.encode()[:15]))
    return ctypes.addressof(_keep[-1])


_keep: list[Any] = []
