"""Saying where an error was met: each level of the reading adds what it knows.

`cannot load web.tar: layer 2/3 sha256:…: entry 'etc/passwd': a hard link to …`
"""

from __future__ import annotations

from pyrun.errors import NotFound, PyrunError
from pyrun.explain.steps import describe, likely_cause


def prefix(error: PyrunError, text: str) -> None:
    """Put `text` before the error's message."""
    error.message = f"{text}: {error.message}"
    error.args = (error.message,)


class Blame:
    """Errors that leave this `with` block begin with `text`; an OSError becomes a PyrunError."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, PyrunError):
            if not isinstance(error, NotFound):  # says itself what is not there
                prefix(error, self.text)
        elif isinstance(error, OSError):
            hint = likely_cause(error)
            raise PyrunError(f"{self.text}: {describe(error)}", hint=hint) from error
