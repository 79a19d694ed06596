"""`pyrun exec` and `pyrun attach`."""

from __future__ import annotations

import sys

import click

from pyrun.cli.named import CONTAINER
from pyrun.container import record as records_of
from pyrun.container.attach import attach as attach_to
from pyrun.container.execute import Request, execute
from pyrun.errors import BadInput
from pyrun.store.paths import Paths


@click.command(
    "exec",
    context_settings={"allow_interspersed_args": False},
    epilog="Example: pyrun exec -it web sh",
)
@click.option("-d", "--detach", is_flag=True, help="Do not wait for it.")
@click.option("-i", "--interactive", is_flag=True, help="Pass standard input on.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option("-e", "--env", multiple=True, metavar="KEY[=VALUE]", help="Set a variable.")
@click.option("-w", "--workdir", default="", metavar="DIR", help="The working directory.")
@click.option("-u", "--user", default="", metavar="USER[:GROUP]", help="Names or numbers.")
@click.option("--privileged", is_flag=True, help="All capabilities, no filter.")
@click.argument("container", type=CONTAINER)
@click.argument("args", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def exec_(
    paths: Paths,
    container: str,
    args: tuple[str, ...],
    detach: bool,
    interactive: bool,
    tty: bool,
    env: tuple[str, ...],
    workdir: str,
    user: str,
    privileged: bool,
) -> None:
    """Run ARGS in CONTAINER; its exit code is the command's own."""
    name = records_of.find(paths, "containers", container)
    if tty and interactive and not sys.stdin.isatty():
        raise BadInput(
            "--tty with --interactive needs a terminal, and standard input is none",
            hint="leave -t out to use a pipe",
        )
    request = Request(
        list(args),
        env=list(env),
        user=user,
        workdir=workdir,
        tty=tty,
        stdin=interactive,
        privileged=privileged,
    )
    sys.exit(execute(paths, name, request, detach=detach))


@click.command(epilog="Example: pyrun attach web   (Ctrl-P Ctrl-Q leaves it running)")
@click.option("--no-stdin", is_flag=True, help="Only watch.")
@click.argument("container", type=CONTAINER)
@click.pass_obj
def attach(paths: Paths, container: str, no_stdin: bool) -> None:
    """Connect this terminal to CONTAINER's streams."""
    name = records_of.find(paths, "containers", container)
    stdin = records_of.container(paths, name)["stdin"] and not no_stdin
    sys.exit(attach_to(paths, name, stdin=stdin))
