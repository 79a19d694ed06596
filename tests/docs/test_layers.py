"""The shape of the house, read from the source: who imports whom, and what steps name.

docs/architecture.md promises that imports point downward and that a step's `op` is the dotted
name of the function that acts. A string is followed by no type checker, so this test does it.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "runtime" / "pyrun"

ROWS = (
    ("errors",),
    ("kernel",),
    ("cgroup", "store", "explain"),
    ("oci", "image", "network"),
    ("container",),
    ("pod",),
    ("cli", "cri"),
)
LEVEL = {room: level for level, row in enumerate(ROWS) for room in row}
STRANGERS = frozenset(("oci", "image", "network"))
"""Neighbours that never import each other; `container` joins them."""

TOP = ("", "__main__")
"""The package itself (its version) and the entry, which may reach everything."""

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)
PLAIN = [path for path in MODULES if path.name != "__init__.py"]


def dotted(path: Path) -> str:
    """`…/pyrun/network/link.py` → `network.link`, the way a step names it."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(name: str) -> str:
    return name.partition(".")[0]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name below `pyrun` of everything a module imports, inside functions as well."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("pyrun."):
                yield node.lineno, name.removeprefix("pyrun.")


def may_reach(user: str, used: str) -> bool:
    """Whether the room `user` may import from the room `used`."""
    if user == used or user in TOP or used == "__version__":
        return True
    if {user, used} <= STRANGERS:
        return False
    return LEVEL[used] <= LEVEL[user]


def test_every_room_has_its_place() -> None:
    rooms = {room(dotted(path)) for path in MODULES} - set(TOP)
    assert rooms <= LEVEL.keys()


def test_the_rows_are_those_of_the_architecture_page() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    drawn = page.partition("## Layers")[2].partition("\n## ")[0]
    lines = [line.partition("(")[0].split() for line in drawn.splitlines() if line[:4] == "    "]
    here = [[name for name in row if name != "cri" or "cri" in drawn] for row in reversed(ROWS)]
    assert [sorted(line) for line in lines] == [sorted(row) for row in here]


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_imports_point_downward(path: Path) -> None:
    user = room(dotted(path))
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {user} imports {name}"
        for line, name in imported(path)
        if not may_reach(user, room(name))
    ]
    assert not wrong


@pytest.mark.parametrize("path", PLAIN, ids=dotted)
def test_every_module_says_what_it_is_about(path: Path) -> None:
    assert ast.get_docstring(tree(path))


def test_init_files_are_empty() -> None:
    """An import of one module must not load its neighbours."""
    inits = [path for path in MODULES if path.name == "__init__.py" and path.parent != PACKAGE]
    assert not [str(path.relative_to(ROOT)) for path in inits if path.read_text().strip()]


# What steps name


class Named(NamedTuple):
    """A function named by a string: where, from which room, and with how many arguments
    (None where that cannot be seen)."""

    place: str
    user: str
    op: str
    given: int | None


@cache
def functions(module: str) -> dict[str, ast.FunctionDef]:
    """The functions a module defines at its top, by name; empty where there is no such module."""
    path = PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
    return defined(tree(path).body) if path.is_file() else {}


@cache
def init_methods() -> dict[str, ast.FunctionDef]:
    """What the second executor can do: the methods of `oci/init.py`'s Init."""
    body = tree(PACKAGE / "oci" / "init.py").body
    found = [node for node in body if isinstance(node, ast.ClassDef) and node.name == "Init"]
    return defined(found[0].body)


def defined(body: list[ast.stmt]) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in body if isinstance(node, ast.FunctionDef)}


def constants(module: ast.Module) -> dict[str, str]:
    """Module constants that hold a string."""
    return {
        target.id: node.value.value
        for node in module.body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def strings(node: ast.expr, names: dict[str, str]) -> Iterator[str]:
    """The strings an expression can be, as far as the source shows them."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.Name) and node.id in names:
        yield names[node.id]
    elif isinstance(node, ast.IfExp):
        yield from strings(node.body, names)
        yield from strings(node.orelse, names)


def length(arguments: list[ast.expr]) -> int | None:
    starred = any(isinstance(argument, ast.Starred) for argument in arguments)
    return None if starred else len(arguments)


def undo_pairs(node: ast.expr) -> Iterator[ast.Tuple]:
    """The `(op, args)` of an `undo=`, through `… if … else None`."""
    if isinstance(node, ast.IfExp):
        yield from undo_pairs(node.body)
        yield from undo_pairs(node.orelse)
    elif isinstance(node, ast.Tuple) and len(node.elts) == 2:
        yield node


def called(function: ast.expr) -> str:
    if isinstance(function, ast.Name):
        return function.id
    return function.attr if isinstance(function, ast.Attribute) else ""


def steps(module: ast.Module, file: str, user: str) -> Iterator[Named]:
    """Every function that a `Step(…)` of this module names, forward and back."""
    names = constants(module)
    for node in ast.walk(module):
        if not (isinstance(node, ast.Call) and called(node.func) == "Step" and node.args):
            continue
        place = f"{file}:{node.lineno}"
        for op in strings(node.args[0], names):
            yield Named(place, user, op, length(node.args[1:]))
        for keyword in node.keywords:
            for pair in undo_pairs(keyword.value) if keyword.arg == "undo" else ():
                op_node, arguments = pair.elts
                given = length(arguments.elts) if isinstance(arguments, ast.Tuple) else None
                for op in strings(op_node, names):
                    yield Named(place, user, op, given)


def fault(named: Named) -> str:
    """What is wrong with a function named by a string, "" where nothing is."""
    place, user, op, given = named
    module, dot, name = op.rpartition(".")
    if not dot and user == "oci":
        function, implied = init_methods().get(name), 1  # self
    else:
        function, implied = functions(module).get(name), 0
    if function is None:
        return f"{place}: there is no function {op}"
    if dot and not may_reach(user, room(op)):
        return f"{place}: {user} may not reach {op}"
    most = len(function.args.posonlyargs) + len(function.args.args) - implied
    least = most - len(function.args.defaults)
    if given is None or (least <= given and (given <= most or function.args.vararg)):
        return ""
    return f"{place}: {op} takes {least} to {most} arguments, and is given {given}"


@pytest.mark.parametrize("path", PLAIN, ids=dotted)
def test_steps_name_functions_that_exist(path: Path) -> None:
    found = steps(tree(path), str(path.relative_to(ROOT)), room(dotted(path)))
    assert not list(filter(None, map(fault, found)))


@pytest.mark.parametrize("path", PLAIN, ids=dotted)
def test_strings_that_name_a_module_of_ours_name_a_function_in_it(path: Path) -> None:
    """Ops that reach a Step by a detour (a table, a variable) are seen here."""
    wrong = []
    for node in ast.walk(tree(path)):
        if not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
            continue
        module, _, name = node.value.rpartition(".")
        # `cgroup.max.depth` is a file of the kernel: only names of modules we have count.
        if module.count(".") and functions(module) and name not in functions(module):
            wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.value}")
    assert not wrong


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ('Step("explain.steps.run", 1)', ""),
        ('Step("explain.steps.run", *rest)', ""),
        ('Step("explain.steps.run")', "takes 1 to 1 arguments, and is given 0"),
        ('Step("explain.steps.gone", 1)', "there is no function explain.steps.gone"),
        ('Step("run", 1)', "there is no function run"),
        ("Step(NAME, 1)", "there is no function no.such"),
        ('Step("explain.steps.run", 1, undo=("store.no.way", ()))', "no function store.no.way"),
        ('Step("explain.steps.run", 1, undo=("a.b", ()) if x else None)', "no function a.b"),
    ],
)
def test_the_reader_of_steps_sees_faults(source: str, message: str) -> None:
    found = steps(ast.parse(f'NAME = "no.such"\n{source}'), "example.py", "container")
    faults = list(filter(None, map(fault, found)))
    assert (message in faults[0]) if message else not faults
