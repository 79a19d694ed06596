"""Connecting a terminal or a pipe to a container: output from its log, input to its supervisor.

Output is always read from the log, woken by the supervisor, so that any number of clients can
watch, none can slow the container down, and no byte is lost between "running" and "attached".
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import termios

from pyrun.container import record as records_of
from pyrun.container.client import Connection, await_launch, write_all
from pyrun.container.log import LogReader
from pyrun.errors import PyrunError
from pyrun.kernel import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pyrun.store.paths import Paths

DETACH = b"\x10\x11"
"""Ctrl-P Ctrl-Q: leave the container running, as docker and podman have it."""


class Raw:
    """The caller's terminal in raw mode for a `with` block; always put back, whatever happens."""

    def __init__(self, fd: int = 0) -> None:
        self.fd = fd
        self.saved: list[Any] | None = None

    def __enter__(self) -> Raw:
        if os.isatty(self.fd):
            import tty

            self.saved = termios.tcgetattr(self.fd)
            tty.setraw(self.fd, termios.TCSANOW)  # what was typed ahead is kept
        return self

    def __exit__(self, *_: object) -> None:
        if self.saved is not None:
            termios.tcsetattr(self.fd, termios.TCSADRAIN, self.saved)


class Signals:
    """Signals as a descriptor to poll: each handler writes the signal's number into a pipe."""

    def __init__(self, numbers: tuple[int, ...]) -> None:
        import signal

        self.reader, self.writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.previous = {
            number: signal.signal(number, lambda got, _: os.write(self.writer, bytes([got])))
            for number in numbers
        }

    def read(self) -> bytes:
        """The numbers of what has arrived, in order."""
        return os.read(self.reader, 64)

    def close(self) -> None:
        import signal

        for number, handler in self.previous.items():
            signal.signal(number, handler)
        os.close(self.reader)
        os.close(self.writer)


HUP, INT, QUIT, USR1, USR2, TERM, WINCH = 1, 2, 3, 10, 12, 15, 28
FORWARDED = (HUP, INT, QUIT, USR1, USR2, TERM)
PATIENCE = 3
"""So many SIGINT or SIGTERM end a container that ignores them: pid 1 of a namespace does, unless
it has a handler."""


def window_size(fd: int = 0) -> bytes:
    """Rows and columns of a terminal as TIOCSWINSZ wants them (8 bytes), or b"" for none."""
    try:
        return fcntl.ioctl(fd, termios.TIOCGWINSZ, b"\0" * 8)
    except OSError:
        return b""


def launch_attached(
    paths: Paths, sandbox: str, name: str, then: Callable[[], None], *, tty: bool, stdin: bool
) -> int:
    """Have the supervisor launch `name` with this process attached from the first byte.

    `then` is called when it executes. Returns the container's exit code.
    Raises PyrunError where it could not be launched.
    """
    reader = LogReader(paths.container(name), at_end=True)
    connection = Connection(paths, sandbox)
    with connection:
        connection.send({"do": "start", "name": name, "attach": True})
        await_launch(paths, name, connection)
        then()
        return Session(connection, reader, signaller(paths, name), tty=tty, stdin=stdin).run()


def signaller(paths: Paths, name: str) -> Callable[[int], object]:
    """A function that sends a signal to the container's first process, and only to it."""
    status = records_of.status(paths, name)
    return lambda number: process.kill_pid(status.pid, status.ticks, number)


def attach(paths: Paths, name: str, *, stdin: bool) -> int:
    """Attach to a running container. Returns its exit code, or 0 after Ctrl-P Ctrl-Q."""
    record = records_of.container(paths, name)
    records_of.require_running(paths, name)
    reader = LogReader(paths.container(name), at_end=True)
    with Connection(paths, record["sandbox"]) as connection:
        connection.send({"do": "attach", "name": name, "patient": True})
        return Session(
            connection, reader, signaller(paths, name), tty=record["tty"], stdin=stdin
        ).run()


class Session:
    """One attachment: pump until the container has ended or the user detaches."""

    def __init__(
        self,
        connection: Connection,
        reader: LogReader,
        send_signal: Callable[[int], object],
        *,
        tty: bool,
        stdin: bool,
    ) -> None:
        self.send_signal = send_signal
        self.impatience = 0
        self.connection = connection
        self.reader = reader
        self.tty = tty and os.isatty(0)
        self.stdin = stdin
        self.held = b""

    def run(self) -> int:
        poll = select.poll()
        poll.register(self.connection.socket.fileno(), select.POLLIN)
        signals = Signals((WINCH, *FORWARDED))
        poll.register(signals.reader, select.POLLIN)
        self.resize()
        if self.stdin:
            poll.register(0, select.POLLIN)
        try:
            with Raw() if self.tty else _Nothing():
                while True:
                    ready = dict(poll.poll())
                    if signals.reader in ready:
                        for number in signals.read():
                            self.signal(number)
                    if 0 in ready and self.stdin and not self.input(poll):
                        return 0
                    if self.connection.socket.fileno() in ready:
                        code = self.told(poll)
                        if code is not None:
                            return code
        finally:
            self.reader.close()
            signals.close()

    def signal(self, number: int) -> None:
        """The terminal's resize goes to the container's; other signals go to its first process."""
        if number == WINCH:
            self.resize()
            return
        if number in (INT, TERM):
            self.impatience += 1
        self.send_signal(9 if self.impatience >= PATIENCE else number)

    def tell(self, message: bytes) -> None:
        try:
            self.connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has gone, and its last answer waits to be read

    def told(self, poll: select.poll) -> int | None:
        """What the supervisor says: more output, the end, or the end of everything."""
        answer, _ = self.connection.receive()
        if answer is None:
            self.drain()
            raise PyrunError("the supervisor ended; the container's exit code is not known")
        self.drain()
        if answer == b"M" and self.stdin:
            poll.register(0, select.POLLIN)
        if isinstance(answer, dict):
            if "rotation" in answer:
                self.tell(b"A")
            elif "ended" in answer:
                self.tell(b"D")
            elif "exit" in answer:
                return int(answer["exit"])
        return None

    def drain(self) -> None:
        for entry in self.reader.entries():
            write_all(2 if entry.stream == "stderr" else 1, entry.data)

    def resize(self) -> None:
        if not self.tty:
            return
        if size := window_size():
            self.tell(b"R" + size[:4])

    def input(self, poll: select.poll) -> bool:
        """Pass input on. False when the user typed the detach keys."""
        data = os.read(0, 1 << 15)
        if not data:
            poll.unregister(0)
            self.stdin = False
            self.tell(b"E")
            return True
        if self.tty:
            data = self.held + data
            self.held = b""
            before, keys, _ = data.partition(DETACH)
            if keys:
                if before:
                    self.tell(b"I" + before)
                return False
            if data.endswith(DETACH[:1]):
                data, self.held = data[:-1], DETACH[:1]
        if data:
            self.tell(b"I" + data)
            poll.unregister(0)  # until the supervisor says b"M": more
        return True


class _Nothing:
    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def pump_terminal(master: int, connection: Connection, *, stdin: bool) -> int:
    """`exec -t`: between the caller's terminal and the pty of the new process, until its exit."""
    signals = Signals((WINCH,))
    poll = select.poll()
    for fd in (master, signals.reader, connection.socket.fileno()):
        poll.register(fd, select.POLLIN)
    if stdin:
        poll.register(0, select.POLLIN)

    def resize() -> None:
        if size := window_size():
            fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", *struct.unpack("4H", size)))

    resize()
    code = 0
    try:
        with Raw():
            while True:
                ready = dict(poll.poll())
                if signals.reader in ready:
                    signals.read()
                    resize()
                if 0 in ready:
                    data = os.read(0, 4096)
                    if data:
                        write_all(master, data)
                    else:
                        poll.unregister(0)
                        write_all(master, b"\x04")  # Ctrl-D: the terminal's end of file
                if master in ready and not _copy(master):
                    poll.unregister(master)
                if connection.socket.fileno() in ready:
                    answer, _ = connection.receive()
                    if answer is None or "exit" in answer:
                        os.set_blocking(master, False)
                        while _copy(master):
                            pass
                        return code if answer is None else int(answer["exit"])
    finally:
        signals.close()
        os.close(master)


def _copy(master: int) -> bool:
    try:
        data = os.read(master, 65536)
    except OSError:  # EIO: nobody holds the other end any more
        return False
    write_all(1, data)
    return bool(data)
