"""`pyrun run` and `pyrun create`."""

from __future__ import annotations

import sys
from typing import Any

import click

from pyrun.cli.flags import container_flags, to_options
from pyrun.container import verbs
from pyrun.container.attach import launch_attached
from pyrun.container.record import container as container_record
from pyrun.errors import BadInput
from pyrun.store.paths import Paths

SETTINGS = {"ignore_unknown_options": False, "allow_interspersed_args": False,
            "help_option_names": ["--help"]}  # fmt: skip


def tell(notes: list[str]) -> None:
    for note in notes:
        print(f"pyrun: {note}", file=sys.stderr)


@click.command(
    context_settings=SETTINGS, epilog="Example: pyrun run --rm --memory 64m busybox echo hello"
)
@click.option("-d", "--detach", is_flag=True, help="Leave it in the background; print its id.")
@click.option("--rm", is_flag=True, help="Remove it when it ends.")
@container_flags
@click.argument("image")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def run(paths: Paths, /, image: str, args: tuple[str, ...], detach: bool, **given: Any) -> None:
    """Make a container from IMAGE and run it; ARGS replace the image's command."""
    options = to_options(image, args, given)
    if detach:
        name, _, notes = verbs.run(paths, options)
        tell(notes)
        print(container_record(paths, name)["id"])
        return
    if options.tty and not sys.stdin.isatty() and options.stdin:
        raise BadInput(
            "--tty with --interactive needs a terminal, and standard input is none",
            hint="leave -t out to use a pipe",
        )

    def attach(sandbox: str, name: str) -> int:
        return launch_attached(paths, sandbox, name, tty=options.tty, stdin=options.stdin)

    _, code, notes = verbs.run(paths, options, attach)
    tell(notes)
    sys.exit(code)


@click.command(
    context_settings=SETTINGS, epilog="Example: pyrun create --name one busybox sleep 60"
)
@click.option("--rm", is_flag=True, help="Remove it when it ends.")
@container_flags
@click.argument("image")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def create(paths: Paths, /, image: str, args: tuple[str, ...], **given: Any) -> None:
    """Make a container from IMAGE without starting it; print its id."""
    name, notes = verbs.create(paths, to_options(image, args, given))
    tell(notes)
    print(container_record(paths, name)["id"])
