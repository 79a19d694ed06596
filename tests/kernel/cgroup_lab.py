"""What the cgroup tests share: a throw-away cgroup, and a process born in one."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pyrun.cgroup import api, files
from pyrun.explain import steps


@contextmanager
def inside(layout: api.Layout, path: str, work: Callable[[], int]) -> Iterator[int]:
    """A child process that joins cgroup `path` as a container's init does, then does `work`.

    Yields its pid; kills and reaps it at the end unless it was reaped before.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.close(reading)
            for file in api.join_files(layout, path, unified=True):
                files.write(file, "0")
            os.write(writing, b"joined")
            os.close(writing)
            code = work()
        except BaseException as error:
            print(f"in the child: {error!r}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    os.close(writing)
    try:
        assert os.read(reading, 10) == b"joined"
        yield pid
    finally:
        os.close(reading)
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def result(layout: api.Layout, path: str, work: Callable[[], int]) -> int:
    """The wait status, as an exit code, of a child that does `work` in cgroup `path`."""
    with inside(layout, path, work) as pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def wait_forever() -> int:
    signal.pause()
    return 0


def value(layout: api.Layout, path: str, controller: str, name: str) -> str:
    """The text of a cgroup file, as the kernel has it."""
    return files.read(f"{layout.controllers[controller].directory(path)}/{name}").strip()


def left_behind(layout: api.Layout, path: str) -> list[str]:
    return [d for d in api.directories(layout, path) if os.path.exists(d)]


def remove(layout: api.Layout, path: str) -> None:
    steps.run(api.plan_remove(layout, path))
