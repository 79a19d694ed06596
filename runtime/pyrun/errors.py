"""Every error pyrun raises on purpose, and what each one tells the reader.

    PyrunError                 a sentence, a hint, an exit code
    ├── NotFound               no such container, pod, image …
    ├── Conflict               a name, an address or a port is taken; an object is in use
    ├── BadInput               the user's file, flag or archive is wrong
    ├── Unsupported            the host or this version cannot honour a request
    └── StepFailed             one step of a plan failed; what was done has been undone
    KernelError (an OSError)   a system call failed: its name, its arguments, its errno

Library code raises; only `cli` turns an error into text and an exit code.
"""

import errno  # at the top: init tells of its failures where nothing can be imported
import os

EXIT_ERROR = 125
"""Exit code of every failure of pyrun itself, as docker and podman use it."""
EXIT_CANNOT_INVOKE = 126
EXIT_NOT_FOUND = 127


class PyrunError(Exception):
    """What was attempted and what came of it, with a hint that shows a way forward."""

    def __init__(self, message: str, *, hint: str = "", exit_code: int = EXIT_ERROR) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code


class NotFound(PyrunError):
    pass


class Conflict(PyrunError):
    pass


class BadInput(PyrunError):
    pass


class Unsupported(PyrunError):
    pass


class StepFailed(PyrunError):
    """Step `step` of a plan failed; the steps before it have been undone.

    `left` names what could not be undone (normally empty).
    """

    def __init__(
        self,
        message: str,
        *,
        step: str,
        hint: str = "",
        exit_code: int = EXIT_ERROR,
        left: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message, hint=hint, exit_code=exit_code)
        self.step = step
        self.left = left


class KernelError(OSError):
    """A system call's refusal. `str()` reads: `mount(overlay, /x): EINVAL (Invalid argument)`."""

    def __init__(self, number: int, call: str) -> None:
        super().__init__(number, os.strerror(number))
        self.call = call

    def __str__(self) -> str:
        return f"{self.call}: {errno_text(self.errno or 0)}"


def errno_text(number: int) -> str:
    """`22` → `EINVAL (Invalid argument)`."""
    return f"{errno.errorcode.get(number, number)} ({os.strerror(number)})"
