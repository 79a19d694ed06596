"""`logs`: reading what containers have written, and following it until they end."""

from __future__ import annotations

import os
import select
import time

from pyrun.container import record as records_of
from pyrun.container.client import Connection, write_all
from pyrun.container.log import Entry, LogReader
from pyrun.errors import BadInput, PyrunError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyrun.store.paths import Paths

COLOURS = (36, 33, 32, 35, 34, 31)


def since_text(text: str) -> str:
    """RFC 3339, or a duration before now (`90s`, `5m`, `2h`, `1d`), as a comparable time."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    if text and text[-1] in units and text[:-1].replace(".", "", 1).isdecimal():
        moment = time.time() - float(text[:-1]) * units[text[-1]]
    elif text:
        from datetime import datetime

        try:
            moment = datetime.fromisoformat(text).timestamp()
        except ValueError:
            raise BadInput(
                f"--since: {text!r} is not a time", hint="2026-01-31T12:00:00Z, or 5m"
            ) from None
    else:
        return ""
    clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(int(moment)))
    return f"{clock}.{int(moment % 1 * 1e9):09}Z"


def show(
    paths: Paths,
    names: list[str],
    *,
    follow: bool,
    tail: int,
    timestamps: bool,
    since: str,
    prefix: bool,
) -> None:
    """Print the logs of containers, each entry to the stream it came from."""
    after = since_text(since)
    readers = {name: LogReader(paths.container(name)) for name in names}
    width = max((len(name) for name in names), default=0)
    heads = {}
    for number, name in enumerate(names):
        head = f"{name:{width}} | " if prefix else ""
        if head and os.isatty(1):
            head = f"\033[{COLOURS[number % len(COLOURS)]}m{head}\033[0m"
        heads[name] = head

    broken: dict[tuple[str, str], bool] = {}

    def emit(name: str, entry: Entry) -> None:
        fd = 2 if entry.stream == "stderr" and not prefix else 1
        head = heads[name] + (f"{entry.time} " if timestamps else "")
        key = (name, entry.stream)
        start = "" if broken.get(key) else head
        # With a prefix each line must end, or the next container's would begin behind it.
        broken[key] = not entry.whole and not prefix
        tail_ = b"\n" if prefix and not entry.whole else b""
        write_all(fd, start.encode() + entry.data + tail_)

    waiting = [
        (entry.time, number, name, entry)
        for number, name in enumerate(names)
        for entry in readers[name].entries()
        if entry.time >= after
    ]
    waiting.sort(key=lambda row: (row[0], row[1]))
    for _, _, name, entry in last_lines(waiting, tail):
        emit(name, entry)
    if follow:
        follow_all(paths, names, readers, emit)


def last_lines(
    rows: list[tuple[str, int, str, Entry]], tail: int
) -> list[tuple[str, int, str, Entry]]:
    """The rows of the last `tail` lines; a line in pieces counts once. -1 is all."""
    if tail < 0:
        return rows
    count = 0
    for position in range(len(rows) - 1, -1, -1):
        if rows[position][3].whole or position == len(rows) - 1:
            count += 1
        if count > tail:
            return rows[position + 1 :]
    return rows


def follow_all(paths: Paths, names: list[str], readers: dict[str, LogReader], emit: object) -> None:
    """Be woken by the supervisors for new output until every container has ended."""
    poll = select.poll()
    connections: dict[int, tuple[str, Connection]] = {}
    for name in names:
        record = records_of.container(paths, name)
        try:
            connection = Connection(paths, record["sandbox"])
        except PyrunError:
            continue  # not running: all there is has been read
        connection.send({"do": "attach", "name": name})
        connections[connection.socket.fileno()] = (name, connection)
        poll.register(connection.socket.fileno(), select.POLLIN)

    def drain(name: str) -> None:
        for entry in readers[name].entries():
            emit(name, entry)  # type: ignore[operator]

    for name in names:
        drain(name)
    while connections:
        for fd, _ in poll.poll():
            name, connection = connections[fd]
            answer, _ = connection.receive()
            drain(name)
            if answer is None or (
                isinstance(answer, dict) and ("exit" in answer or "error" in answer)
            ):
                poll.unregister(fd)
                del connections[fd]
                connection.close()
            elif isinstance(answer, dict) and "ended" in answer:
                connection.send(b"D")
