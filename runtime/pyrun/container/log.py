"""A container's output on disk, in the form Kubernetes' CRI gives it.

One line of output is one line of the file: `TIME STREAM TAG TEXT`, where TAG is F for a whole
line and P for a piece of one, so that every byte can be had back. The file is bounded: when it
has grown to `max_size` it is renamed to log.1 (log.1 to log.2, …) and the oldest is dropped.
Format: design-proposals/node/kubelet-cri-logging.md.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_SIZE = 16 << 20
MAX_FILES = 4


class LogWriter:
    """Appends to `directory/log`. Bytes that a full disk refuses are kept and tried again."""

    def __init__(
        self, directory: str, max_size: int = MAX_SIZE, max_files: int = MAX_FILES
    ) -> None:
        self.path = f"{directory}/log"
        self.max_size = max_size
        self.max_files = max_files
        self.fd = self.open()
        self.size = os.fstat(self.fd).st_size
        self.backlog = b""
        self.second = 0
        self.clock = ""

    def open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(self.path, flags, 0o640)

    def close(self) -> None:
        os.close(self.fd)

    def append(self, stream: bytes, data: bytes, *, rotate: bool = True) -> bool:
        """Write `data` of `stream` (b"stdout" or b"stderr"). False where the disk is full.

        Without `rotate` it goes into the present file, however large that has become.
        """
        now = self.now()
        whole, _, rest = data.rpartition(b"\n")
        prefix = now + stream + b" F "
        text = b""
        if len(whole) < len(data) - len(rest):  # there was a newline
            text = prefix + whole.replace(b"\n", b"\n" + prefix) + b"\n"
        if rest:
            text += now + stream + b" P " + rest + b"\n"
        if rotate and self.is_full and not self.backlog:  # no entry is torn between two files
            self.rotate()
        self.backlog += text
        return self.flush()

    @property
    def is_full(self) -> bool:
        """Whether the next `append` begins a new file, and drops the oldest."""
        return 0 < self.max_size <= self.size

    def now(self) -> bytes:
        """The time with nanoseconds in UTC, and a space; the slow part once a second."""
        nanoseconds = time.time_ns()
        second, fraction = divmod(nanoseconds, 1_000_000_000)
        if second != self.second:
            self.second = second
            self.clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self.clock}.{fraction:09}Z ".encode()

    def flush(self) -> bool:
        """Write what waits. False while the disk refuses it; whoever called must try again."""
        while self.backlog:
            try:
                written = os.write(self.fd, self.backlog)
            except OSError:
                return False
            self.backlog = self.backlog[written:]
            self.size += written
        return True

    def rotate(self) -> None:
        try:
            if self.max_files > 1:
                for number in range(self.max_files - 1, 0, -1):
                    older = f"{self.path}.{number}"
                    newer = f"{self.path}.{number - 1}" if number > 1 else self.path
                    if os.path.exists(newer):
                        os.rename(newer, older)
            else:
                os.unlink(self.path)
            fresh = self.open()
        except OSError:
            return  # go on in the old file
        os.close(self.fd)
        self.fd = fresh
        self.size = 0


class Entry:
    """One line of the log. `text` has no newline; `whole` says whether the output had one."""

    __slots__ = ("stream", "text", "time", "whole")

    def __init__(self, line: bytes) -> None:
        time_, stream, tag, text = line.split(b" ", 3)
        self.time = time_.decode()
        self.stream = stream.decode()
        self.whole = tag == b"F"
        self.text = text

    @property
    def data(self) -> bytes:
        return self.text + (b"\n" if self.whole else b"")


class LogReader:
    """Reads a log from the oldest kept byte, or from its end, through rotations.

    The reader holds the file it reads, so a renamed or removed one is read to its end first.
    """

    def __init__(self, directory: str, *, at_end: bool = False) -> None:
        self.path = f"{directory}/log"
        self.fd = -1
        self.rest = b""
        if at_end:
            if self.open(self.path):
                os.lseek(self.fd, 0, os.SEEK_END)
        else:
            self.open_oldest()

    def open(self, path: str) -> bool:
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        return True

    def open_oldest(self) -> None:
        number = 0
        while os.path.exists(f"{self.path}.{number + 1}"):
            number += 1
        self.open(f"{self.path}.{number}" if number else self.path)

    def open_next(self) -> bool:
        """After the end of a file: the one written after it, found by inode among the names."""
        mine = os.fstat(self.fd)
        number = 0
        while True:
            name = f"{self.path}.{number}" if number else self.path
            try:
                same = os.path.samestat(os.stat(name), mine)
            except FileNotFoundError:
                if number == 0:
                    return False  # removed, or just being renamed
                # This file was dropped already: go on with the oldest that is left.
                newer = number - 1
                break
            if same:
                if number == 0:
                    return False
                newer = number - 1
                break
            number += 1
        old = self.fd
        if not self.open(f"{self.path}.{newer}" if newer else self.path):
            return False
        os.close(old)
        return True

    def entries(self) -> Iterator[Entry]:
        """Everything written since the last call."""
        if self.fd < 0 and not self.open(self.path):
            return
        while True:
            data = os.read(self.fd, 1 << 18)
            if not data:
                # Look once more after seeing a newer file: the writer may have appended between.
                if not self.rest and self.is_old() and not (data := os.read(self.fd, 1 << 18)):
                    if self.open_next():
                        continue
                    return
                if not data:
                    return
            lines = (self.rest + data).split(b"\n")
            self.rest = lines.pop()
            for line in lines:
                yield Entry(line)

    def is_old(self) -> bool:
        try:
            return not os.path.samestat(os.stat(self.path), os.fstat(self.fd))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
