"""The pages tell the truth: their commands run and print what they say, their links lead somewhere.

A block marked `console` is a transcript. A line that begins with `$ ` is typed into one shell for
the whole page, `> ` continues it; what follows is what it prints. `…` stands for anything within
a line, and alone on a line for any number of lines. Blanks count as one.
"""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from docs.world import CHECKOUT, run_in_world
from pyrun.cli.main import root

LISTED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
    cwd=CHECKOUT, check=True, capture_output=True, text=True,
).stdout.split()  # fmt: skip
PAGES = sorted(CHECKOUT / name for name in LISTED)


def name_of(path: Path) -> str:
    return str(path.relative_to(CHECKOUT))


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


class Command(NamedTuple):
    typed: str
    printed: list[str]


def transcript(path: Path) -> list[Command]:
    found: list[Command] = []
    for block in blocks(path.read_text(), "console"):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append(Command(line[2:], []))
            elif line.startswith("> ") and not found[-1].printed:
                found[-1] = Command(f"{found[-1].typed}\n{line[2:]}", [])
            else:
                found[-1].printed.append(line)
    return found


TOLD = [path for path in PAGES if transcript(path)]
MARK = "=== command {} ends with {} ==="


def play(commands: list[Command]) -> list[tuple[int, list[str]]]:
    """Type the commands into one shell. Returns the exit code of each and what it printed."""
    # `eval`, so that a command's own syntax error does not end the shell.
    lines = ["status() { return $1; }", "last=0"]
    for number, command in enumerate(commands):
        quoted = "'" + command.typed.replace("'", "'\\''") + "'"
        lines += [f"status $last; eval {quoted} 2>&1; last=$?"]
        lines += [f"echo; echo {MARK.format(number, '$last')!r}".replace("'", '"')]
    _, printed = run_in_world("\n".join(lines))
    answers = []
    rest = printed
    for number in range(len(commands)):
        pattern = re.compile(MARK.format(number, r"(\d+)"))
        at, match = next(
            ((at, match) for at, line in enumerate(rest) if (match := pattern.fullmatch(line))),
            (-1, None),
        )
        assert match, "\n".join(rest)
        own = rest[:at]
        answers.append((int(match[1]), own[:-1] if own and own[-1] == "" else own))
        rest = rest[at + 1 :]
    return answers


def squeezed(line: str) -> str:
    return " ".join(line.split())


def agrees(told: list[str], printed: list[str]) -> bool:
    parts = []
    for line in told:
        if line.strip() == "…":
            parts.append(r"(?:[^\n]*\n)*")
        else:
            wild = r"[^\n]*".join(map(re.escape, squeezed(line).split("…")))
            # Nothing at all may stand where … is, and then the blank before it is gone as well.
            parts.append(wild.replace(r"\ [^\n]*", r"(?:\ [^\n]*)?") + "\n")
    text = "".join(f"{squeezed(line)}\n" for line in printed)
    return re.fullmatch("".join(parts), text) is not None


@pytest.mark.parametrize("path", TOLD, ids=name_of)
def test_what_a_page_shows_is_what_happens(path: Path) -> None:
    commands = transcript(path)
    wrong = []
    for number, (code, printed) in enumerate(play(commands)):
        typed, told = commands[number]
        if not agrees(told, printed):
            wrong.append(
                "\n".join([f"$ {typed}", *told, f"--- but it prints (exit code {code}):", *printed])
            )
        elif code and not told and [c.typed for c in commands[number + 1 :][:1]] != ["echo $?"]:
            wrong.append(f"$ {typed}\n--- exit code {code}, of which the page says nothing")
    assert not wrong, "\n\n".join(wrong)


def test_the_pages_that_teach_have_transcripts() -> None:
    told = {name_of(path) for path in TOLD}
    assert {"README.md", "docs/tutorial/01-first-pod.md", "docs/howto/pod-file.md"} <= told


# links


def headings(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S)
    found = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        if not there.exists() or (anchor and anchor not in headings(there)):
            wrong.append(target)
    assert not wrong


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_no_page_names_a_path_of_the_machine_it_was_written_on(path: Path) -> None:
    text = path.read_text()
    homes = [str(CHECKOUT), "/home/", "/root/.pyenv"]
    assert not [home for home in homes if home in text]


# names of files, functions, commands and options


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_files_that_pages_name_exist(path: Path) -> None:
    """`network/link.py`, `script/demo`, `tests/vm/`: paths in backquotes, from any room."""
    roots = (CHECKOUT, CHECKOUT / "runtime/pyrun", path.parent)
    prose = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S)
    files = {entry.name for top in ("runtime", "images") for entry in (CHECKOUT / top).rglob("*.*")}
    tops = {entry.name for root_ in roots[:2] for entry in root_.iterdir()}
    wrong = []
    for name in re.findall(r"`([\w./-]+)`", prose):
        looks_like_ours = name.endswith((".py", ".sh")) or (
            "/" in name and name.split("/")[0] in tops
        )
        there = name in files or any((root_ / name).exists() for root_ in roots)
        # What is only there when it was made: `bench/results/` and its like.
        made = subprocess.run(["git", "check-ignore", "-q", name], cwd=CHECKOUT).returncode == 0
        if looks_like_ours and not there and not made:
            wrong.append(name)
    assert not wrong


def commands_below(command: click.Command, words: tuple[str, ...]) -> dict[str, click.Command]:
    found = {" ".join(words): command}
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            found |= commands_below(below, (*words, name))
    return found


COMMANDS = commands_below(root, ("pyrun",))


def options_of(command: click.Command) -> set[str]:
    found = {"--help", "-h"}
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            found |= {*parameter.opts, *parameter.secondary_opts}
    return found


def code(path: Path) -> list[str]:
    """The lines of blocks, and what stands in backquotes."""
    text = path.read_text()
    fenced = "\n".join(re.findall(r"^```.*?\n(.*?)^```$", text, re.M | re.S))
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    indented = re.findall(r"^ {4,}(.*)$", prose, re.M)
    return fenced.splitlines() + indented + re.findall(r"`([^`\n]+)`", prose)


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_commands_and_options_that_pages_name_exist(path: Path) -> None:
    if path.name == "cli.md":  # generated
        return
    wrong = []
    for call in (call for line in code(path) for call in CALL.findall(line)):
        words = call.split()
        longest = next((n for n in (2, 1) if " ".join(["pyrun", *words[:n]]) in COMMANDS), None)
        if longest is None:
            wrong.append(f"pyrun {call}: there is no such command")
            continue
        command = COMMANDS[" ".join(["pyrun", *words[:longest]])]
        if command.name in ("run", "create", "exec"):
            continue  # what follows the image is not ours; the transcripts run these
        for word in words[longest:]:
            option = word.split("=")[0]
            if re.fullmatch(r"--[a-z][a-z-]+", option) and option not in options_of(command):
                wrong.append(f"pyrun {call}: there is no {option}")
    assert not wrong


CALL = re.compile(r"(?:^|[$|;&(] ?)(?:sudo )?pyrun (?:--[a-z-]+(?:=\S+| /\S+)? )*([a-z][^|;&)]*)")


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_options_that_stand_alone_belong_to_something(path: Path) -> None:
    """`--memory` in backquotes is an option of some command of ours, or of a script."""
    known = {option for command in COMMANDS.values() for option in options_of(command)}
    scripts = [CHECKOUT / "images/builder.py", CHECKOUT / "tests/vm/uml.py"]
    scripts += [*CHECKOUT.glob("script/*"), *CHECKOUT.glob("bench/*.py")]
    scripts += CHECKOUT.glob("images/*/rootfs/**/*")
    text = "".join(script.read_text() for script in scripts if script.is_file())
    found = re.findall(r"`(--[a-z][a-z-]+)[^`]*`", path.read_text())
    assert not [option for option in found if option not in known and option not in text]


def names_something(dotted: str) -> bool:
    """`network.link.add_veth`, `oci.init.Init.run`: whether there is such a function or class."""
    room, module, *rest = dotted.split(".")
    path = CHECKOUT / "runtime/pyrun" / room / f"{module}.py"
    if not path.is_file():
        return False
    body = ast.parse(path.read_text()).body
    for name in rest:
        found = [
            node
            for node in body
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name
        ]
        if not found:
            return False
        body = found[0].body
    return True


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_functions_that_pages_name_exist(path: Path) -> None:
    rooms = "|".join(entry.name for entry in (CHECKOUT / "runtime/pyrun").iterdir())
    found = re.findall(rf"`((?:{rooms})\.\w+\.[\w.]+)`", path.read_text())
    assert not [dotted for dotted in found if not names_something(dotted)]


def test_the_architecture_page_names_every_method_of_init() -> None:
    page = (CHECKOUT / "docs/architecture.md").read_text()
    table = page.partition("| part | methods of")[2].partition("\n\n")[0]
    named = re.findall(r"`(\w+)`", table)
    assert named
    assert not [name for name in named if not names_something(f"oci.init.Init.{name}")]
