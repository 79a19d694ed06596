"""The verbs on containers that exist: start, stop, rm, ps, logs, inspect and their like."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from pyrun.cli import output
from pyrun.cli.named import CONTAINER
from pyrun.container import record as records_of
from pyrun.container import verbs
from pyrun.container.options import parse_signal
from pyrun.errors import NotFound, PyrunError
from pyrun.store import records
from pyrun.store.paths import Paths


def each(paths: Paths, wanted: tuple[str, ...], act: Callable[[str], Any], *, say: bool) -> None:
    """Do something to each container named; go on after a failure, and fail at the end."""
    failed: PyrunError | None = None
    for text in wanted:
        try:
            name = records_of.find(paths, "containers", text)
            act(name)
            if say:
                print(text)
        except PyrunError as error:
            if failed is not None:
                output.print_error(failed)
            failed = error
    if failed is not None:
        raise failed


@click.command(epilog="Example: pyrun start -a web")
@click.option("-a", "--attach", "attached", is_flag=True, help="Show its output; wait for it.")
@click.option("-i", "--interactive", is_flag=True, help="Pass standard input on.")
@click.argument("containers", nargs=-1, required=True, type=CONTAINER)
@click.pass_obj
def start(paths: Paths, containers: tuple[str, ...], attached: bool, interactive: bool) -> None:
    """Start CONTAINERS."""
    if attached or interactive:
        from pyrun.container.attach import launch_attached

        if len(containers) != 1:
            raise PyrunError("--attach and --interactive take one container")
        name = records_of.find(paths, "containers", containers[0])
        tty = records_of.container(paths, name)["tty"]
        code = verbs.start(
            paths,
            name,
            lambda sandbox, member, then: launch_attached(
                paths, sandbox, member, then, tty=tty, stdin=interactive
            ),
        )
        sys.exit(code or 0)
    each(paths, containers, lambda name: verbs.start(paths, name), say=True)


@click.command(epilog="Example: pyrun stop -t 3 web")
@click.option("-t", "--time", "seconds", type=float, help="Seconds before SIGKILL.")
@click.argument("containers", nargs=-1, required=True, type=CONTAINER)
@click.pass_obj
def stop(paths: Paths, containers: tuple[str, ...], seconds: float | None) -> None:
    """Stop CONTAINERS: the stop signal, the grace period, SIGKILL."""
    each(paths, containers, lambda name: verbs.stop(paths, name, seconds), say=True)


@click.command(epilog="Example: pyrun restart web")
@click.option("-t", "--time", "seconds", type=float, help="Seconds before SIGKILL.")
@click.argument("containers", nargs=-1, required=True, type=CONTAINER)
@click.pass_obj
def restart(paths: Paths, containers: tuple[str, ...], seconds: float | None) -> None:
    """Stop CONTAINERS and start them again."""

    def act(name: str) -> None:
        verbs.stop(paths, name, seconds)
        verbs.start(paths, name)

    each(paths, containers, act, say=True)


@click.command(epilog="Example: pyrun kill -s HUP web")
@click.option("-s", "--signal", "signal_", default="KILL", help="Name or number.")
@click.argument("containers", nargs=-1, required=True, type=CONTAINER)
@click.pass_obj
def kill(paths: Paths, containers: tuple[str, ...], signal_: str) -> None:
    """Send a signal to the first process of CONTAINERS."""
    number = parse_signal(signal_)
    each(paths, containers, lambda name: verbs.kill(paths, name, number), say=True)


@click.command(epilog="Example: pyrun pause web")
@click.argument("containers", nargs=-1, required=True, type=CONTAINER)
@click.pass_obj
def pause(paths: Paths, containers: tuple[str, ...]) -> None:
    """Freeze every process of CONTAINERS."""
    each(paths, containers, lambda name: verbs.pause(paths, name, True), say=True)


@click.command(epilog="Example: pyrun unpause web")
@click.argument("containers", nargs=-1, required=True, type=CONTAINER)
@click.pass_obj
def unpause(paths: Paths, containers: tuple[str, ...]) -> None:
    """Let the processes of CONTAINERS go on."""
    each(paths, containers, lambda name: verbs.pause(paths, name, False), say=True)


@click.command(epilog="Example: pyrun wait web")
@click.argument("containers", nargs=-1, required=True, type=CONTAINER)
@click.pass_obj
def wait(paths: Paths, containers: tuple[str, ...]) -> None:
    """Wait until CONTAINERS have ended; print their exit codes."""
    each(paths, containers, lambda name: print(verbs.wait(paths, name)), say=False)


@click.command(epilog="Example: pyrun rm -f web")
@click.option("-f", "--force", is_flag=True, help="Also one that runs, or is half made.")
@click.option("-a", "--all", "everything", is_flag=True, help="Every container in no pod.")
@click.argument("containers", nargs=-1, type=CONTAINER)
@click.pass_obj
def rm(paths: Paths, containers: tuple[str, ...], force: bool, everything: bool) -> None:
    """Remove CONTAINERS with their changes and logs."""
    if everything:
        containers += tuple(r["name"] for r in records_of.containers(paths) if not r["pod"])
    elif not containers:
        raise click.UsageError("name the containers to remove, or give --all")

    def act(name: str) -> None:
        verbs.remove(paths, name, force=force)

    if not force:
        each(paths, containers, act, say=True)
        return
    # `rm -f` of what is not there is no failure: the wish has come true.
    for text in containers:
        try:
            each(paths, (text,), act, say=True)
        except NotFound:
            verbs.sweep(paths, text)


@click.command(epilog="Example: pyrun ps -a --format json")
@click.option("-a", "--all", "everything", is_flag=True, help="Also those that do not run.")
@click.option("-q", "--quiet", is_flag=True, help="Only the ids.")
@click.option("--no-trunc", is_flag=True, help="Whole ids and commands.")
@click.option("--format", "format_", type=click.Choice(["table", "json"]), default="table")
@click.pass_obj
def ps(paths: Paths, everything: bool, quiet: bool, no_trunc: bool, format_: str) -> None:
    """List containers."""
    rows = []
    for record in records_of.containers(paths):
        status = records_of.status(paths, record["name"])
        if everything or status.running:
            rows.append((record, status))
    if everything:
        known = {record["name"] for record, _ in rows}
        broken = [name for name in records_of.names(paths.containers) if name not in known]
    else:
        broken = []
    if format_ == "json":
        output.print_json([summary(paths, record, status) for record, status in rows])
        return
    if quiet:
        for record, _ in rows:
            print(record["id"] if no_trunc else record["id"][:12])
        return
    output.table(
        [
            [
                record["id"] if no_trunc else record["id"][:12],
                record["image_name"],
                " ".join(record["command"])
                if no_trunc
                else records_of.command_text(record["command"]),
                output.ago(record["created"]),
                status_text(status),
                ", ".join(output.port_texts(records_of.sandbox_state(paths, record["sandbox"]))),
                record["pod"],
                record["name"],
            ]
            for record, status in rows
        ]
        + [["", "", "", "", "half made", "", "", name] for name in broken],
        ["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "POD", "NAME"],
    )


def status_text(status: records_of.Status) -> str:
    if status.running:
        since = output.ago(status.started).removesuffix(" ago")
        return f"Up {since}{' (paused)' if status.word == 'paused' else ''}"
    if status.word == "exited":
        reason = ", out of memory" if status.oom else ""
        when = f" {output.ago(status.finished)}" if status.finished else ""
        return f"Exited ({status.code}{reason}){when}"
    return status.word.capitalize()


def summary(paths: Paths, record: dict[str, Any], status: records_of.Status) -> dict[str, Any]:
    state = records_of.sandbox_state(paths, record["sandbox"])
    return {
        "id": record["id"],
        "name": record["name"],
        "image": record["image_name"],
        "image_id": record["image"],
        "command": record["command"],
        "created": record["created"],
        "status": status.word,
        "pid": status.pid,
        "exit_code": status.code,
        "pod": record["pod"],
        "ips": state.get("ips", []),
        "ports": output.port_texts(state),
        "labels": record["labels"],
    }


@click.command(epilog="Example: pyrun inspect web")
@click.argument("containers", nargs=-1, required=True, type=CONTAINER)
@click.pass_obj
def inspect(paths: Paths, containers: tuple[str, ...]) -> None:
    """Show all there is to know about CONTAINERS, as a JSON list."""
    found: list[dict[str, Any]] = []
    each(paths, containers, lambda name: found.append(details(paths, name)), say=False)
    output.print_json(found)


def details(paths: Paths, name: str) -> dict[str, Any]:
    record = records_of.container(paths, name)
    status = records_of.status(paths, name)
    state = records_of.sandbox_state(paths, record["sandbox"])
    return {
        **record,
        "state": {
            "status": status.word,
            "pid": status.pid,
            "exit_code": status.code,
            "oom_killed": status.oom,
            "started": status.started,
            "finished": status.finished,
        },
        "network": {"ips": state.get("ips", []), "ports": state.get("ports", [])},
        "directory": paths.container(name),
        "upperdir": f"{paths.container(name)}/upper",
        "config": records.read(f"{paths.container(name)}/config.json"),
    }


@click.command(epilog="Example: pyrun logs -f --tail 10 web")
@click.option("-f", "--follow", is_flag=True, help="Go on until the container has ended.")
@click.option("-n", "--tail", type=int, default=-1, help="Only the last lines.")
@click.option("-t", "--timestamps", is_flag=True, help="With the time of each line.")
@click.option("--since", default="", metavar="TIME", help="RFC 3339, or a duration like 5m.")
@click.argument("container", type=CONTAINER)
@click.pass_obj
def logs(
    paths: Paths, container: str, follow: bool, tail: int, timestamps: bool, since: str
) -> None:
    """Show what CONTAINER has written; its stderr goes to stderr."""
    from pyrun.container import logs as reading

    name = records_of.find(paths, "containers", container)
    records_of.container(paths, name)
    reading.show(
        paths, [name], follow=follow, tail=tail, timestamps=timestamps, since=since, prefix=False
    )
