"""The root command. Sub-commands are loaded when they are called, so each pays only for itself."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

import click

from pyrun import __version__
from pyrun.cli import output
from pyrun.errors import EXIT_ERROR, PyrunError
from pyrun.explain import steps
from pyrun.store.paths import Paths
from pyrun.store.records import forget_other_boots

COMMANDS = {
    # name: (module, attribute, one line of help)
    "pod": ("pod", "pod", "Groups of containers that share an address and a hostname."),
    "run": ("run", "run", "Make a container from an image and start it."),
    "create": ("run", "create", "Make a container without starting it."),
    "start": ("container", "start", "Start containers."),
    "stop": ("container", "stop", "Stop containers: signal, grace period, kill."),
    "restart": ("container", "restart", "Stop and start containers."),
    "kill": ("container", "kill", "Send a signal to containers."),
    "pause": ("container", "pause", "Freeze all processes of containers."),
    "unpause": ("container", "unpause", "Let frozen containers go on."),
    "wait": ("container", "wait", "Wait until containers have ended; print their exit codes."),
    "rm": ("container", "rm", "Remove containers."),
    "ps": ("container", "ps", "List containers."),
    "exec": ("exec", "exec_", "Run a command in a running container."),
    "attach": ("exec", "attach", "Connect this terminal to a running container."),
    "logs": ("container", "logs", "Show what containers have written."),
    "inspect": ("container", "inspect", "Show all there is to know about containers, as JSON."),
    "image": ("image", "image", "Images: load, list, inspect, tag, remove, mount."),
    "images": ("image", "ls", "List images (short for `image ls`)."),
    "network": ("network", "network", "The node's pod network."),
    "completion": ("completion", "completion", "Teach a shell to complete pyrun's commands."),
}
"""Every command and where it lives. The help line stands here so that `--help` loads nothing."""


class ReaderGone(Exception):
    """Whoever read our output has gone, as `head` does. Not an error, but not success either."""


class LazyGroup(click.Group):
    """A group that imports a command's module only when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(f"pyrun.cli.{module}"), attribute)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError as error:  # click would make it exit code 1
            raise ReaderGone from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, 1)
            hint = f" Did you mean {near[0]!r}?" if near else " `pyrun --help` lists them."
            ctx.fail(f"there is no command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: pyrun run --rm busybox echo hello",
)
@click.option("--root", default="", metavar="DIR", help="What survives a reboot [/var/lib/pyrun].")
@click.option("--run-root", default="", metavar="DIR", help="What does not [/run/pyrun].")
@click.option(
    "--explain", is_flag=True, help="Show every step as it happens: what, why, how long, how else."
)
@click.version_option(__version__, prog_name="pyrun")
@click.pass_context
def root(ctx: click.Context, root: str, run_root: str, explain: bool) -> None:
    """A container runtime built from Linux primitives, made to be read."""
    ctx.obj = Paths(root, run_root)
    if ctx.invoked_subcommand != "completion" and not {"-h", "--help"} & set(sys.argv[1:]):
        if os.geteuid() != 0:
            raise PyrunError(
                "pyrun works with namespaces, mounts and cgroups of the host: it must run as root",
                hint="sudo pyrun …",
            )
        ctx.obj.make_private()
        forget_other_boots(ctx.obj.run_root)
    if explain:
        steps.narrator = output.Explainer()


def cli(args: list[str] | None = None) -> None:
    """Run the command line and exit: what pyrun did wrong is 125, a container's end its own code.

    Errors are said here and nowhere else.
    """
    import signal

    def terminated(*_: Any) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup(1) has it ignored; that stays
            signal.signal(number, terminated)
    try:
        sys.exit(root.main(args, prog_name="pyrun", standalone_mode=False) or 0)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(EXIT_ERROR)
    except PyrunError as error:
        output.print_error(error)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        print("pyrun: interrupted", file=sys.stderr)
        sys.exit(130)
    except ReaderGone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(141)
    except OSError as error:
        output.print_error(PyrunError(steps.describe(error), hint=steps.likely_cause(error)))
        sys.exit(EXIT_ERROR)
