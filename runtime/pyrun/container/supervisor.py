"""The process that outlives the CLI: one for each sandbox that is up.

It clones the members' processes (and those of `exec`) on request, reaps them, keeps their exit
codes, moves their output into their logs and their input out of the attached clients. It plans
nothing: what a member's process does is in init.json, written by the CLI. Standard library only,
one thread, one epoll; it is executed from a read-only clone of the interpreter's file, so that no
container can write to the host's python through /proc/self/exe.

Requests come over a SOCK_SEQPACKET socket, one JSON object a packet; descriptors ride along.

    {"do": "start", "name": N}          → {"pid": P} or {"error": …, "errno": …, "step": …}
    {"do": "exec", "name": N} + 4 fds   → {"pid": P} (+ terminal fd), later {"exit": C}
    {"do": "attach", "name": N}         → b"W" when output was logged, {"ended": C}, {"exit": C};
                                          with "patient" {"rotation": true} too: see Member.may_log
    {"do": "wait", "name": N}           → {"exit": C}
    {"do": "forget", "name": N}         → {}         {"do": "quit"} → {}
    {"do": "adopt", "name": N}          → {}: watch a member whose own supervisor has died
    {"do": "sibling", …} + fds          → {"pid": P} from the new supervisor itself
"""

from __future__ import annotations

import _socket
import os
import struct
import sys

from pyrun.container.loop import AGAIN, Loop
from pyrun.container.member import Adopted, Exec, Member
from pyrun.errors import KernelError
from pyrun.kernel import const, process
from pyrun.kernel.libc import prctl
from pyrun.store import records
from pyrun.store.fastjson import dumps, loads
from pyrun.store.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CODE_VERSION = os.stat(__file__).st_mtime_ns
MOST_FDS = os.sysconf("SC_OPEN_MAX")


class Client:
    """A connection. Packets that do not fit the socket wait; a wake-up that does not is dropped."""

    def __init__(self, supervisor: Supervisor, socket: _socket.socket) -> None:
        self.supervisor = supervisor
        self.socket = socket
        self.queue: list[bytes] = []
        self.member: Member | None = None  # attached to
        self.drained = True
        self.patient = False  # must get every byte, however slowly it reads
        self.behind = False  # it has not yet read what is about to be dropped
        supervisor.loop.on_readable(socket.fileno(), self.readable)

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
                self.supervisor.loop.on_writable(self.socket.fileno(), self.writable)
        except OSError:
            self.close()

    def writable(self) -> None:
        waiting, self.queue = self.queue, []
        self.supervisor.loop.on_writable(self.socket.fileno(), None)
        for data in waiting:
            self.send(data)

    def readable(self) -> None:
        try:
            data, ancillary, _, _ = self.socket.recvmsg(1 << 17, 1 << 12, 0x40000000)
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
        self.supervisor.loop.forget(self.socket.fileno())
        self.socket.close()
        for member in self.supervisor.members.values():
            member.attached.discard(self)
            member.waiting.discard(self)
        self.drained = True
        self.supervisor.settle()


class Supervisor:
    def __init__(self, paths: Paths, name: str, listener: int, lone: bool) -> None:
        self.paths = paths
        self.name = name
        self.lone = lone
        self.loop = Loop()
        self.members: dict[str, Member] = {}
        self.held: list[Member] = []
        self.quitting = False
        self.listener = _socket.socket(fileno=listener)
        self.listener.setblocking(False)
        self.loop.on_readable(listener, self.accept)

    def run(self) -> None:
        while not self.quitting:
            self.loop.turn(1.0 if self.held else -1)
            for member in tuple(self.held):
                if member.log.flush() and member.may_log():
                    self.held.remove(member)
                    for stream in member.streams:
                        self.loop.unmute(stream)

    def hold(self, member: Member) -> None:
        """Read no more from this member until its log could be written: the disk is full, or
        somebody attached must read first."""
        if member not in self.held:
            self.held.append(member)
        for stream in member.streams:
            self.loop.mute(stream)

    # requests

    def accept(self) -> None:
        fd, _ = self.listener._accept()  # type: ignore[attr-defined]
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
            self.attach(client, member, patient=True)
        try:
            member.start(client)
        except BaseException:
            member.starter = None
            member.over = True
            member.code = 127
            raise

    def do_adopt(self, client: Client, asked: dict[str, Any], fds: list[int]) -> None:
        name = asked["name"]
        run = self.paths.container_run(name)
        order, state = records.read(f"{run}/init.json"), records.read(f"{run}/state.json")
        self.members[name] = Adopted(self, name, order, state)
        client.send({})

    def attach(self, client: Client, member: Member, *, patient: bool) -> None:
        client.patient = patient
        client.member = member
        member.attached.add(client)

    def do_attach(self, client: Client, asked: dict[str, Any], fds: list[int]) -> None:
        member = self.members[asked["name"]]
        if member.over:
            client.send({"exit": member.code})
            return
        self.attach(client, member, patient=bool(asked.get("patient")))
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
        for member in self.members.values():
            member.give_up()
        client.send({})
        self.quitting = True

    def do_sibling(self, client: Client, asked: dict[str, Any], fds: list[int]) -> None:
        """Fork the supervisor of another sandbox. It answers itself, with its pid."""
        if asked["code"] != CODE_VERSION:
            raise ValueError("this supervisor runs other code")
        middle = os.fork()
        if middle:
            os.waitpid(middle, 0)
            return
        try:
            os.setsid()
            if os.fork() == 0:  # an orphan: its parent is whoever adopts, not us
                self.become_sibling(client, asked["arguments"], fds)
        finally:
            os._exit(0)

    def become_sibling(self, client: Client, arguments: list[str], fds: list[int]) -> None:
        _left_alone.append(self)
        run = Paths(arguments[0], arguments[1]).sandbox_run(arguments[2])
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        errors = os.open(f"{run}/supervisor.log", flags, 0o600)
        os.dup2(errors, 2)
        close_others([*fds, client.socket.fileno()])
        client.socket.setblocking(True)
        client.socket.send(dumps({"pid": os.getpid()}).encode())
        os.close(client.socket.fileno())
        try:
            supervise(fds[0], arguments)
        except BaseException as error:
            print(f"supervisor: {error!r}", file=sys.stderr, flush=True)

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

    def load_ending(self) -> None:
        """Load what `take_down` needs while the container runs, not when somebody waits."""
        from pyrun.container import ending  # noqa: F401

    def take_down(self) -> None:
        from pyrun.container import ending

        try:
            ending.after_exit(self.paths, self.name)
        except Exception as error:  # `rm` and `start` tidy up what is left
            print(f"taking the sandbox down: {error!r}", file=sys.stderr)


def main(argv: list[str]) -> None:
    """Descriptors to keep, the listener's first, joined by commas; then what `supervise` takes."""
    import gc

    keep = [int(fd) for fd in argv[0].split(",")]
    # Whoever called pyrun may have left it a lock or a pipe: it must not be held by us for days.
    close_others(keep)
    prctl(const.PR_SET_DUMPABLE, 0)
    # What is loaded now is shared with the supervisors forked later: the collector shall not
    # touch it, for touching is copying.
    gc.collect()
    gc.freeze()
    supervise(keep[0], argv[1:])


def close_others(keep: list[int]) -> None:
    """Close every descriptor above 2 that is not in `keep`."""
    ordered = sorted(keep)
    for low, high in zip((2, *ordered), (*ordered, MOST_FDS), strict=True):
        os.closerange(low + 1, high)


def supervise(listener: int, arguments: list[str]) -> None:
    """Be a supervisor: root, run root, sandbox, "lone" or "pod", cgroup.procs files to join."""
    root, run_root, name, kind, *cgroup_files = arguments
    for path in cgroup_files:
        with open(path, "w", encoding="ascii") as file:
            file.write("0")
    process.set_name(f"pyrun:{name}")
    Supervisor(Paths(root, run_root), name, listener, kind == "lone").run()


_left_alone: list[object] = []
"""What a forked supervisor has inherited. Kept, because freeing a socket object would close its
descriptor's number, which is another file's by then."""
