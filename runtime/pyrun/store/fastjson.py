"""JSON without importing `json` (8 ms, mostly `re` and `enum`): the C halves of it are enough.

Same text as `json.dumps(value, indent=None, sort_keys=True)`. Nothing here is our own parser:
`_json` is CPython's. Where it is missing (another Python), `json` does the work.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

try:
    import _json as _found

    _json: Any = _found
except ImportError:  # not CPython
    _json = None


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


if _json is None:

    def loads(text: str) -> Any:
        import json

        return json.loads(text)

    def dumps(value: Any) -> str:
        import json

        return json.dumps(value, sort_keys=True)

else:
    _scan = _json.make_scanner(_Context)
    _escape = _json.encode_basestring_ascii
    _make_encoder = _json.make_encoder

    def loads(text: str) -> Any:
        """Parse one JSON value. Raises ValueError where the text is not exactly one value."""
        stripped = text.strip(" \t\r\n")
        try:
            value, end = _scan(stripped, 0)
        except StopIteration as stop:
            raise ValueError(f"no JSON value at character {stop.value}") from None
        except SystemError:  # up to Python 3.12 the scanner cannot raise what nobody has imported
            import json

            return json.loads(stripped)  # says where the fault is
        if end != len(stripped):
            raise ValueError(f"text after the JSON value at character {end}")
        return value

    def dumps(value: Any) -> str:
        """One line, keys sorted. Raises TypeError for what JSON cannot say."""
        encode = _make_encoder({}, _refuse, _escape, None, ": ", ", ", True, False, False)
        return "".join(encode(value, 0))
