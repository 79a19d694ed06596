"""`pyrun run` and `pyrun create`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from pyrun.cli.flags import container_flags, to_options
from pyrun.cli.named import IMAGE
from pyrun.cli.output import tell
from pyrun.container import verbs
from pyrun.container.attach import launch_attached
from pyrun.container.record import container as container_record
from pyrun.errors import BadInput
from pyrun.store.paths import Paths

SETTINGS = {"ignore_unknown_options": False, "allow_interspersed_args": False,
            "help_option_names": ["--help"]}  # fmt: skip


@click.command(
    context_settings=SETTINGS, epilog="Example: pyrun run --rm --memory 64m busybox echo hello"
)
@click.option("-d", "--detach", is_flag=True, help="Leave it in the background; print its id.")
@click.option("--rm", is_flag=True, help="Remove it when it ends.")
@container_flags
@click.argument("image", type=IMAGE)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def run(paths: Paths, /, image: str, args: tuple[str, ...], detach: bool, **given: Any) -> None:
    """Make a container from IMAGE and run it; ARGS replace the image's command."""
    options = to_options(image, args, given)
    if detach:
        done = verbs.run(paths, options)
        tell(done.notes)
        print(container_record(paths, done.name)["id"])
        return
    if options.tty and not sys.stdin.isatty() and options.stdin:
        raise BadInput(
            "--tty with --interactive needs a terminal, and standard input is none",
            hint="leave -t out to use a pipe",
        )

    def attach(sandbox: str, name: str, then: Callable[[], None]) -> int:
        return launch_attached(paths, sandbox, name, then, tty=options.tty, stdin=options.stdin)

    done = verbs.run(paths, options, attach)
    tell(done.notes)
    sys.exit(done.code)


@click.command(
    context_settings=SETTINGS, epilog="Example: pyrun create --name one busybox sleep 60"
)
@click.option("--rm", is_flag=True, help="Remove it when it ends.")
@container_flags
@click.argument("image", type=IMAGE)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def create(paths: Paths, /, image: str, args: tuple[str, ...], **given: Any) -> None:
    """Make a container from IMAGE without starting it; print its id."""
    name, notes = verbs.create(paths, to_options(image, args, given))
    tell(notes)
    print(container_record(paths, name)["id"])
