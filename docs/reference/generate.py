"""Write docs/reference/cli.md from the help of every command: `script/docs`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from pyrun.cli.main import root

PAGE = Path(__file__).with_name("cli.md")
HEAD = """\
# Commands

What `--help` says, for every command. `script/docs` writes this page; change the help in
`runtime/pyrun/cli/`, not here.
"""


def commands(command: click.Command, words: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(`pyrun pod create`, its help) for a command and all below it."""
    parent: click.Context | None = None
    for word in words[:-1]:
        parent = click.Context(click.Command(word), info_name=word, parent=parent)
    context = click.Context(
        command, info_name=words[-1], parent=parent, terminal_width=96, max_content_width=96,
        help_option_names=["-h", "--help"],
    )  # fmt: skip
    context.help_option_names = command.context_settings.get(
        "help_option_names", context.help_option_names
    )
    yield " ".join(words), command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from commands(below, (*words, name))


def page() -> str:
    found = list(commands(root, ("pyrun",)))
    contents = [f"- [{name}](#{name.replace(' ', '-')})" for name, _ in found]
    sections = [f"## {name}\n\n```text\n{text}\n```" for name, text in found]
    return "\n".join([HEAD, *contents, ""]) + "\n" + "\n\n".join(sections) + "\n"


def main() -> int:
    if sys.argv[1:] == ["--check"]:
        return 0 if PAGE.read_text() == page() else 1
    PAGE.write_text(page())
    print(f"docs: wrote {PAGE.relative_to(Path.cwd())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
