"""YAML text as a tree of plain nodes that know their line, built from a stream nobody trusts.

PyYAML turns text into events (scalar, start of a mapping, alias …) and this module turns events
into nodes. It stops there: no tag ever constructs an object, and three bounds hold whatever the
text says: its size, its depth, and the number of values after every alias has been followed
(nine lines of YAML can otherwise ask for a billion values).

Plain scalars are read as Kubernetes' own parser reads them: `yes` and `on` are booleans, `12:30`
and dates are strings. What the fields mean is for `kubeyaml`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pyrun.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Callable

    import yaml

MAX_BYTES = 1 << 20
"""etcd, where Kubernetes keeps pods, takes no larger object by default either (1.5 MiB)."""
MAX_DEPTH = 40
MAX_NODES = 20_000

CORE_TAG = "tag:yaml.org,2002:"

NULL = frozenset(("", "~", "null", "Null", "NULL"))
TRUE = frozenset(("true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"))
FALSE = frozenset(("false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"))
INTEGER = re.compile(r"[-+]?(0b[01]+|0o[0-7]+|0x[0-9a-fA-F]+|[0-9]+)", re.ASCII)
NUMBER = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    re.ASCII,
)


class Node:
    """One value. `kind` is string, integer, number, boolean, null, list or map.

    text    a scalar as it was written
    items   the nodes of a list
    fields  the key and value nodes of a map by the key's text; the first of a double key
    size    how many values stand here when every alias is followed
    """

    __slots__ = ("column", "fields", "items", "kind", "line", "size", "text")

    def __init__(self, kind: str, event: yaml.Event, text: str = "") -> None:
        mark = event.start_mark
        self.kind = kind
        self.line = mark.line + 1 if mark else 0
        self.column = mark.column + 1 if mark else 0
        self.text = text
        self.items: list[Node] = []
        self.fields: dict[str, tuple[Node, Node]] = {}
        self.size = 1


class _Collection:
    """A list or map that is still being read."""

    __slots__ = ("anchor", "key", "node")

    def __init__(self, node: Node, anchor: str | None) -> None:
        self.node = node
        self.anchor = anchor
        self.key: Node | None = None


def read_documents(text: str, source: str, report: Callable[[Node, str], None]) -> list[Node]:
    """The documents of `text` that hold anything.

    Faults that leave the rest readable (a double key, a tag) go to `report`. Raises BadInput,
    naming `source` and the line, where the text is not YAML or breaks a bound.
    """
    import yaml

    if len(text) > MAX_BYTES or len(text.encode(errors="replace")) > MAX_BYTES:
        raise BadInput(f"{source}: the document is larger than {MAX_BYTES >> 20} MiB")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    builder = _Builder(source, report)
    try:
        for event in yaml.parse(text, Loader=loader):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, source) from None
    except (yaml.YAMLError, UnicodeError) as error:
        reason = getattr(error, "reason", None) or "it holds characters that YAML forbids"
        raise BadInput(f"{source}: not valid YAML: {reason}") from None
    return [node for node in builder.documents if node.kind != "null"]


def _syntax_error(error: yaml.MarkedYAMLError, source: str) -> BadInput:
    mark = error.problem_mark or error.context_mark
    where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
    problem = error.problem or error.context or "it cannot be read"
    hint = ""
    if mark and "cannot start any token" in problem:
        hint = (
            "YAML indents with spaces, never with tabs; text with special characters needs quotes"
        )
    elif "mapping values are not allowed" in problem:
        hint = "is the line indented too far, or does a text with ': ' need quotes?"
    return BadInput(f"{source}: not valid YAML{where}: {problem}", hint=hint)


class _Builder:
    """Puts nodes together from events, with a stack of its own: no recursion to exhaust."""

    def __init__(self, source: str, report: Callable[[Node, str], None]) -> None:
        self.source = source
        self.report = report
        self.documents: list[Node] = []
        self.stack: list[_Collection] = []
        self.anchors: dict[str, Node] = {}

    def take(self, event: yaml.Event) -> None:
        import yaml

        match event:
            case yaml.ScalarEvent():
                self.add(self.scalar(event), event.anchor)
            case yaml.AliasEvent():
                self.add(self.aliased(event), None)
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                self.open(event)
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                done = self.stack.pop()
                self.add(done.node, done.anchor)
            case yaml.DocumentStartEvent():
                self.anchors.clear()

    def open(self, event: yaml.MappingStartEvent | yaml.SequenceStartEvent) -> None:
        import yaml

        kind = "map" if isinstance(event, yaml.MappingStartEvent) else "list"
        node = Node(kind, event)
        tag = event.tag
        if tag not in (None, "!", CORE_TAG + ("map" if kind == "map" else "seq")):
            self.report(node, _refused_tag(tag))
        if len(self.stack) == MAX_DEPTH:
            raise BadInput(f"{self.source}: nested deeper than {MAX_DEPTH} (line {node.line})")
        if event.anchor:  # an alias to what is still open would make a ring
            self.anchors.pop(event.anchor, None)
        self.stack.append(_Collection(node, event.anchor))

    def scalar(self, event: yaml.ScalarEvent) -> Node:
        tag = event.tag
        if tag is None:
            kind = "string" if event.style else plain_kind(event.value)
        elif tag in ("!", CORE_TAG + "str"):
            kind = "string"
        else:
            kind = plain_kind(event.value)
        node = Node(kind, event, event.value)
        if tag not in (None, "!") and tag.removeprefix(CORE_TAG) not in _TAGS_OF_KIND[kind]:
            self.report(node, _refused_tag(tag))
        return node

    def aliased(self, event: yaml.AliasEvent) -> Node:
        name = event.anchor or ""
        node = self.anchors.get(name)
        if node is None:
            line = Node("null", event).line
            raise BadInput(
                f"{self.source}: the alias *{shown(name)} (line {line}) stands for nothing "
                "that is complete before it"
            )
        return node

    def add(self, node: Node, anchor: str | None) -> None:
        """Put a finished node into its parent."""
        if anchor:
            self.anchors[anchor] = node
        if not self.stack:
            self.documents.append(node)
            return
        parent = self.stack[-1]
        parent.node.size += node.size
        if parent.node.size > MAX_NODES:
            raise BadInput(
                f"{self.source}: more than {MAX_NODES} values, aliases followed "
                f"(line {parent.node.line})"
            )
        if parent.node.kind == "list":
            parent.node.items.append(node)
        elif parent.key is None:
            parent.key = node
        else:
            self.add_field(parent.node, parent.key, node)
            parent.key = None

    def add_field(self, parent: Node, key: Node, value: Node) -> None:
        if key.kind in ("list", "map"):
            self.report(key, f"a field name must be a string, not a {key.kind}")
        elif key.text in parent.fields:
            first = parent.fields[key.text][0].line
            self.report(key, f"the field {shown(key.text)} appears twice; first on line {first}")
        else:
            parent.fields[key.text] = (key, value)


_TAGS_OF_KIND = {
    "string": ("str",),
    "integer": ("int", "float"),
    "number": ("float",),
    "boolean": ("bool",),
    "null": ("null",),
}


def _refused_tag(tag: str | None) -> str:
    return f"the tag {shown(tag or '')} is refused: a Pod file holds plain values only"


def plain_kind(text: str) -> str:
    """What an unquoted scalar is."""
    if text in NULL:
        return "null"
    if text in TRUE or text in FALSE:
        return "boolean"
    if INTEGER.fullmatch(text):
        return "integer"
    return "number" if NUMBER.fullmatch(text) else "string"


def to_integer(text: str) -> int:
    """The value of a scalar of kind integer; a leading 0 means octal, as in C."""
    if len(text) > 64:  # beyond every field's range, and int() itself refuses very long ones
        return -(1 << 64) if text.startswith("-") else 1 << 64
    digits = text.lstrip("+-")
    octal = len(digits) > 1 and digits.isdecimal() and digits[0] == "0"
    if octal and set(digits) <= set("01234567"):
        return int(text, 8)
    return int(text, 10 if octal else 0)


def shown(text: str) -> str:
    """A word of the user's for a message: nothing in it may confuse a terminal."""
    short = text if len(text) <= 60 else text[:59] + "…"
    return short if re.fullmatch(r"[\w./-]+…?", short, re.ASCII) else ascii(short)
