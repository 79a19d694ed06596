"""JSON without importing `json` (8 ms, mostly `re` and `enum`): the C halves of it are enough.

Same text as `json.dumps(value, indent=None, sort_keys=True)`. Nothing here is our own parser:
`_json` is CPython's. Where it is missing (another Python), `json` does the work.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

try:
    from _json import encode_basestring_ascii, make_encoder, make_scanner
except ImportError:  # not CPython
    make_scanner = None


class _Context:
    """What `_json.make_scanner` asks its decoder for."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float
    memo: dict[str, str] = {}


def _refuse(value: object) -> Any:
    raise TypeError(f"{type(value).__name__} is not JSON: {value!r}")


if make_scanner is None:
    import json

    loads = json.loads

    def dumps(value: Any) -> str:
        return json.dumps(value, sort_keys=True)

else:
    _scan = make_scanner(_Context)

    def loads(text: str) -> Any:
        """Parse one JSON value. Raises ValueError where the text is not exactly one value."""
        stripped = text.strip(" \t\r\n")
        try:
            value, end = _scan(stripped, 0)
        except StopIteration as stop:
            raise ValueError(f"no JSON value at character {stop.value}") from None
        if end != len(stripped):
            raise ValueError(f"text after the JSON value at character {end}")
        return value

    def dumps(value: Any) -> str:
        """One line, keys sorted. Raises TypeError for what JSON cannot say."""
        encode = make_encoder(
            {}, _refuse, encode_basestring_ascii, None, ": ", ", ", True, False, False
        )
        return "".join(encode(value, 0))
