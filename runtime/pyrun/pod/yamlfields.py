"""Reading typed fields out of a YAML tree, and collecting every fault on the way.

`Fields` is one mapping of a Pod file. Each reader method takes one field, checks its type and
remembers that the field was asked for; `close` then complains about the fields nobody asked for.
So the code that reads a Pod is at the same time the list of what is supported. A fault never
raises: it is noted with its path and line and a harmless value is returned, so that one run shows
all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyrun.errors import BadInput
from pyrun.pod.kubefields import FALSE_IS_NOTHING, KNOWN, why_unknown
from pyrun.pod.yamltree import FALSE, TRUE, Node, shown, to_integer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_SHOWN = 40

_A_KIND = {
    "string": "a string",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "null": "nothing",
    "list": "a list",
    "map": "a mapping",
}


class Problems:
    """The faults of one file, told together, in the order of its lines."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.found: list[tuple[int, int, str]] = []

    def note(self, path: str, node: Node, text: str) -> None:
        where = f"(line {node.line}, column {node.column})"
        self.found.append((node.line, node.column, f"{path} {where}: {text}".lstrip()))

    def raise_if_any(self) -> None:
        """Raises BadInput with everything noted so far."""
        if not self.found:
            return
        lines = list(dict.fromkeys(text for _, _, text in sorted(self.found, key=_place)))
        if len(lines) == 1:
            raise BadInput(f"{self.source}: {lines[0]}")
        left = len(lines) - MAX_SHOWN
        more = [f"… and {left} more"] if left > 0 else []
        head = f"{self.source}: {len(lines)} problems"
        raise BadInput("\n  ".join([head, *lines[:MAX_SHOWN], *more]))


class Fields:
    """One mapping: `kind` is its name in the Kubernetes API, `path` where it stands."""

    __slots__ = ("asked", "kind", "node", "path", "problems")

    def __init__(self, node: Node, kind: str, path: str, problems: Problems) -> None:
        self.node = node
        self.kind = kind
        self.path = path
        self.problems = problems
        self.asked: set[str] = set()

    def problem(self, name: str, text: str) -> None:
        """Note a fault of the field `name`, or of the whole mapping where it has no such field."""
        found = self.node.fields.get(name)
        self.problems.note(self.path_of(name), found[1] if found else self.node, text)

    def path_of(self, name: str) -> str:
        return _join(self.path, name)

    def take(self, name: str, *kinds: str) -> Node | None:
        """The value of a field, if it is there and of one of `kinds`. null counts as absent."""
        self.asked.add(name)
        found = self.node.fields.get(name)
        if found is None or found[1].kind == "null":
            return None
        return self._checked(found[1], self.path_of(name), kinds)

    def unique(self, name: str, value: str, seen: set[str], text: str) -> None:
        """Note the fault `text` where `value` is in `seen` already, and put it there."""
        if value and value in seen:
            self.problem(name, f"{text}: {shown(value)}")
        seen.add(value)

    def has(self, name: str) -> bool:
        found = self.node.fields.get(name)
        return found is not None and found[1].kind != "null"

    def string(self, name: str, wrong: Callable[[str], str] | None = None) -> str:
        """A string, "" where absent. `wrong` says what is wrong with a present one, if anything."""
        node = self.take(name, "string")
        return self._text(node, self.path_of(name), wrong) if node else ""

    def required(self, name: str, wrong: Callable[[str], str] | None = None) -> str:
        """A string that must be there and not empty."""
        if not self.has(name):
            self.asked.add(name)
            self.problem(name, "missing; this field is required")
            return ""
        text = self.string(name, wrong)
        found = self.node.fields[name][1]
        if found.kind == "string" and not found.text and not (wrong and wrong("")):
            self.problem(name, "must not be empty")
        return text

    def choice(self, name: str, choices: tuple[str, ...], default: str = "") -> str:
        text = self.string(name)
        if not self.has(name) or text in choices:
            return text or default
        names = ", ".join(choice or '""' for choice in choices)
        self.problem(name, f"must be one of {names}; got {shown(text)}")
        return default

    def boolean(self, name: str) -> bool:
        node = self.take(name, "boolean")
        return node is not None and node.text in TRUE

    def integer(self, name: str, low: int, high: int) -> int | None:
        node = self.take(name, "integer")
        if node is None:
            return None
        value = to_integer(node.text)
        if low <= value <= high:
            return value
        self.problem(name, f"must be between {low} and {high}; got {shown(node.text)}")
        return None

    def child(self, name: str, kind: str) -> Fields | None:
        node = self.take(name, "map")
        return Fields(node, kind, self.path_of(name), self.problems) if node else None

    def children(self, name: str, kind: str) -> Iterator[Fields]:
        """The mappings in a list of objects."""
        node = self.take(name, "list")
        for index, item in enumerate(node.items if node else ()):
            path = f"{self.path_of(name)}[{index}]"
            if self._checked(item, path, ("map",)):
                yield Fields(item, kind, path, self.problems)

    def strings(self, name: str, wrong: Callable[[str], str] | None = None) -> tuple[str, ...]:
        node = self.take(name, "list")
        texts = []
        for index, item in enumerate(node.items if node else ()):
            path = f"{self.path_of(name)}[{index}]"
            if self._checked(item, path, ("string",)):
                texts.append(self._text(item, path, wrong))
        return tuple(texts)

    def pairs(
        self, name: str, wrong_key: Callable[[str], str], wrong: Callable[[str], str] | None = None
    ) -> tuple[tuple[str, str], ...]:
        """A mapping whose keys are free, such as labels."""
        node = self.take(name, "map")
        pairs = []
        for key, (key_node, value) in node.fields.items() if node else ():
            path = _join(self.path_of(name), key)
            if fault := wrong_key(key):
                self.problems.note(path, key_node, f"the key {fault}")
            if self._checked(value, path, ("string",)):
                pairs.append((key, self._text(value, path, wrong)))
        return tuple(pairs)

    def close(self) -> None:
        """Note every field that nobody asked for."""
        for name, (key, value) in self.node.fields.items():
            if name in self.asked or (name in KNOWN[self.kind] and self._is_nothing(name, value)):
                continue
            known = name in KNOWN[self.kind]
            text = (
                "Kubernetes has this field, but pyrun does not support it yet"
                if known
                else why_unknown(self.kind, name)
            )
            self.problems.note(self.path_of(name), key, text)

    def _is_nothing(self, name: str, value: Node) -> bool:
        """Whether an unsupported field is written without asking for anything, as generated
        files do: `resources: {}`, `status: {}`, `hostNetwork: false`."""
        if value.kind == "null":
            return True
        if self.kind == "Volume":  # there `configMap: {}` does ask for a kind of volume
            return False
        if value.kind == "boolean":
            return value.text in FALSE and name in FALSE_IS_NOTHING
        return not value.text and not value.items and not value.fields

    def _checked(self, node: Node, path: str, kinds: tuple[str, ...]) -> Node | None:
        if node.kind in kinds:
            return node
        expected = " or ".join(_A_KIND[kind] for kind in kinds)
        got = _A_KIND[node.kind]
        hint = ""
        if node.kind in ("integer", "number", "boolean"):
            got = f"the {node.kind} {shown(node.text)}"
            if kinds == ("string",):
                hint = "; put it in quotes"
        elif node.kind == "string":
            got = f"the string {shown(node.text)}"
        self.problems.note(path, node, f"expected {expected}, got {got}{hint}")
        return None

    def _text(self, node: Node, path: str, wrong: Callable[[str], str] | None) -> str:
        """A string the kernel can take, after the check `wrong`."""
        fault = wrong(node.text) if wrong else ""
        if fault:
            self.problems.note(path, node, f"{fault}; got {shown(node.text)}")
        elif "\0" in node.text:
            self.problems.note(path, node, "must not contain a NUL character")
        elif any("\ud800" <= letter <= "\udfff" for letter in node.text):
            self.problems.note(path, node, "holds half of a surrogate pair, which is no character")
        return node.text


def _join(path: str, name: str) -> str:
    """`spec` and `hostname` → `spec.hostname`; names with dots stand in brackets."""
    word = shown(name)
    if not path:
        return word
    return f"{path}.{word}" if word.replace("_", "").isalnum() else f"{path}[{word}]"


def _place(found: tuple[int, int, str]) -> tuple[int, int]:
    return found[:2]
