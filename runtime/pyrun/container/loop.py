"""One epoll and who waits for what: epoll(7) with level-triggered callbacks, nothing more.

A descriptor must be forgotten before it is closed: the kernel forgets a closed one by itself, but
its number is used again at once, and the old callback would be called for the new file.
"""

from __future__ import annotations

import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
AGAIN = (11, 4)  # EAGAIN, EINTR: nothing now, try again


class Loop:
    __slots__ = ("epoll", "readers", "writers")

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.readers: dict[int, Callable[[], object]] = {}
        self.writers: dict[int, Callable[[], object]] = {}

    def on_readable(self, fd: int, callback: Callable[[], object]) -> None:
        self.readers[fd] = callback
        self._update(fd)

    def on_writable(self, fd: int, callback: Callable[[], object] | None) -> None:
        """Call back when `fd` takes data; None: no longer."""
        if callback is None:
            self.writers.pop(fd, None)
        else:
            self.writers[fd] = callback
        self._update(fd)

    def mute(self, fd: int) -> None:
        """Neither read nor write: a full disk holds its writers back this way."""
        self.epoll.modify(fd, 0)

    def unmute(self, fd: int) -> None:
        self._update(fd)

    def forget(self, fd: int) -> None:
        """Nothing more of this descriptor; one that was never watched is fine."""
        known = self.readers.pop(fd, None), self.writers.pop(fd, None)
        if any(known):
            self.epoll.unregister(fd)

    def _update(self, fd: int) -> None:
        events = (READ if fd in self.readers else 0) | (WRITE if fd in self.writers else 0)
        try:
            if events:
                self.epoll.modify(fd, events)
            else:
                self.epoll.unregister(fd)
        except FileNotFoundError:
            if events:
                self.epoll.register(fd, events)

    def turn(self, timeout: float) -> None:
        """Wait up to `timeout` seconds (-1: for ever) and call back for what is ready."""
        for fd, event in self.epoll.poll(timeout):
            if event & WRITE and fd in self.writers:
                self.writers[fd]()
            # A hang-up or an error is for the reader to find.
            if event & ~WRITE and fd in self.readers:
                self.readers[fd]()
