"""The one idea of the house: a verb computes a plan of steps, an executor runs it.

A step is plain data. `op` is the dotted name, below `pyrun`, of the function that acts, and
`args` are its arguments: plain JSON values, so a plan can be printed, saved, compared and run
elsewhere. `network.link.add_veth` is `runtime/pyrun/network/link.py`, `def add_veth`: a reader
goes there in one jump. `undo` is the same pair for the way back.

Planning is pure: it needs no root and touches nothing. Running is the only place where the host
changes. What happens inside a new container is also a list of steps, with a second executor:
`oci/init.py`.
"""

from __future__ import annotations

import os
import sys
import time

from pyrun.errors import Conflict, KernelError, PyrunError, StepFailed, errno_text

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` costs 9 ms to import, which the hot paths would feel
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    Call = tuple[str, tuple[Any, ...]]


class Step:
    """One change to the host.

    op, args  the function that acts and its plain arguments
    why       one sentence for the reader
    undo      the call that takes the change back, or None where nothing is left to undo
    shell     the same thing as a line of shell, where there is one
    man       where it is documented: `mount(2)`, `veth(4)`, `cgroup-v2: memory.max`
    """

    __slots__ = ("args", "man", "op", "shell", "undo", "why")

    def __init__(
        self,
        op: str,
        *args: Any,
        why: str = "",
        undo: Call | None = None,
        shell: str = "",
        man: str = "",
    ) -> None:
        self.op = op
        self.args = args
        self.why = why
        self.undo = undo
        self.shell = shell
        self.man = man

    def __repr__(self) -> str:
        return f"{self.op}({', '.join(map(short, self.args))})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Step) and self.as_dict() == other.as_dict()

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("op", "args", "why", "undo", "shell", "man")}


if TYPE_CHECKING:
    Plan = list[Step]


class Narrator:
    """Is told of every step as it runs. This one says nothing; `cli/output.py` has one that does.

    `nanoseconds` is the time the step took.
    """

    def done(self, step: Step, nanoseconds: int) -> None:
        pass

    def undone(self, step: Step) -> None:
        pass

    wants_inside = False
    """Whether the steps inside new containers are to be reported as well; that costs time."""

    def inside(self, name: str, plan: Plan) -> None:
        """`plan` is what the new process of container `name` will do before it executes."""

    def inside_done(self, name: str, index: int, nanoseconds: int) -> None:
        """Step `index` of that plan was done."""


narrator = Narrator()
"""The narrator of this process; `pyrun --explain` replaces it."""


def short(value: Any, limit: int = 120) -> str:
    """A value as it is shown in messages: quoted only when it must be, cut when it is long."""
    text = value if isinstance(value, str) and value and " " not in value else repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def resolve(op: str) -> Callable[..., Any]:
    """The function a step names. Modules are imported here, so a verb loads only what it uses."""
    module, _, name = op.rpartition(".")
    __import__(f"pyrun.{module}")
    function: Callable[..., Any] = getattr(sys.modules[f"pyrun.{module}"], name)
    return function


def run(plan: Iterable[Step]) -> None:
    """Run a plan; where a step fails (or Ctrl-C arrives) undo what was done, last first.

    Raises StepFailed, naming the failing step and the kernel's answer. A PyrunError raised by a
    step keeps its type, and so does KeyboardInterrupt: both say more than a wrapper could.
    A step that raises Conflict has found somebody else's thing in its place and changed nothing;
    it alone is not undone, for its undo would remove what is not ours.
    """
    done: Plan = []
    try:
        for step in plan:
            function = resolve(step.op)
            start = time.monotonic_ns()
            # Before the call, not after: when Ctrl-C lands inside a step its undo must run too,
            # so every undo tolerates that there is nothing to undo.
            done.append(step)
            function(*step.args)
            narrator.done(step, time.monotonic_ns() - start)
    except OSError as error:
        left = undo(done)
        raise StepFailed(
            f"cannot {done[-1].why or done[-1].op}: {describe(error)}",
            step=repr(done[-1]),
            hint=likely_cause(error),
            left=left,
        ) from error
    except BaseException as error:
        left = undo(done[:-1] if isinstance(error, Conflict) else done)
        if left and isinstance(error, PyrunError):
            error.hint = "\n".join(filter(None, (error.hint, "left behind: " + ", ".join(left))))
        raise


def undo(done: Sequence[Step]) -> tuple[str, ...]:
    """Run the undo calls in reverse. Returns what resisted, as sentences; never raises OSError."""
    import signal

    left = []
    # A second Ctrl-C must not stop the tidying up half way.
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = [signal.signal(number, signal.SIG_IGN) for number in signals]
    try:
        for step in reversed(done):
            if step.undo is None:
                continue
            op, args = step.undo
            try:
                resolve(op)(*args)
                narrator.undone(step)
            except (OSError, PyrunError) as error:
                left.append(f"{op}({', '.join(map(short, args))}): {error}")
    finally:
        for number, handler in zip(signals, previous, strict=True):
            signal.signal(number, handler)
    return tuple(left)


def describe(error: OSError) -> str:
    """`mount(…): EINVAL (Invalid argument)` for system calls, `path: ENOENT (…)` for the rest."""
    if isinstance(error, KernelError):
        return str(error)
    where = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
    return f"{where}{errno_text(error.errno or 0)}"


def likely_cause(error: OSError) -> str:
    """A hint for the errnos whose usual cause is known whatever the call."""
    import errno

    return {
        errno.ENOSPC: "the file system is full; `df -h` and `df -i` show which",
        errno.EROFS: "the file system is mounted read-only",
        errno.EPERM: "pyrun needs root with CAP_SYS_ADMIN and CAP_NET_ADMIN",
        errno.EACCES: "a file mode or a security module forbids it",
        errno.EMFILE: "this process has too many open files; `ulimit -n` shows the limit",
        errno.ENFILE: "the host has too many open files; see /proc/sys/fs/file-max",
        errno.ENOMEM: "the kernel had no memory for it, or a cgroup limit refused it",
        errno.ENOSYS: "this kernel is too old for the call",
    }.get(error.errno or 0, "")
