"""`pyrun pod …`: pods from flags or from a Kubernetes file."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from typing import Any

import click

from pyrun.cli import output
from pyrun.cli.named import POD
from pyrun.cli.output import tell
from pyrun.container import record as records_of
from pyrun.container import verbs as container_verbs
from pyrun.container.options import parse_pair, parse_signal, parse_size
from pyrun.errors import BadInput, NotFound, PyrunError
from pyrun.pod import verbs
from pyrun.pod.model import ContainerSpec, HostAlias, PodSpec
from pyrun.store.paths import Paths


@click.group(epilog="Example: pyrun pod create --name web --container nginx")
def pod() -> None:
    """Groups of containers that share an address, a hostname, a port space and volumes."""


def each(paths: Paths, wanted: tuple[str, ...], act: Callable[[str], Any]) -> None:
    """Do something to each pod named; go on after a failure, and fail at the end."""
    failed: PyrunError | None = None
    for text in wanted:
        try:
            act(verbs.find(paths, text))
            print(text)
        except PyrunError as error:
            if failed is not None:
                output.print_error(failed)
            failed = error
    if failed is not None:
        raise failed


@pod.command(
    epilog="Examples: pyrun pod create -f pod.yaml · "
    "pyrun pod create --name web -p 8080:80 --container nginx --container 'busybox sleep 1000'"
)
@click.option("-f", "--file", "file", metavar="FILE", help="A Kubernetes Pod; - reads stdin.")
@click.option("--name", default="", help="The pod's name; without one pyrun makes one up.")
@click.option(
    "--container",
    "containers",
    multiple=True,
    metavar="'[NAME=]IMAGE [COMMAND…]'",
    help="A member; may be given several times.",
)
@click.option(
    "-p", "--publish", multiple=True, metavar="[IP:]HOST:CONTAINER[/udp]", help="Publish a port."
)
@click.option("--hostname", default="", help="The hostname all members share.")
@click.option("-l", "--label", multiple=True, metavar="KEY=VALUE", help="A label.")
@click.option("--network", default="bridge", type=click.Choice(["bridge", "none", "host"]))
@click.option("--dns", multiple=True, metavar="ADDRESS", help="A name server.")
@click.option("--add-host", multiple=True, metavar="NAME:ADDRESS", help="A line in /etc/hosts.")
@click.option("--shm-size", default="64m", metavar="SIZE", help="Size of the shared /dev/shm.")
@click.pass_obj
def create(paths: Paths, /, file: str | None, **given: Any) -> None:  # fmt: skip
    """Make a pod and start its containers; print its name."""
    options = verbs.PodOptions(
        publish=given["publish"],
        network=given["network"],
        dns=given["dns"],
        shm_size=parse_size(given["shm_size"], "--shm-size"),
    )
    if file is not None:
        clash = [flag for flag in ("name", "containers", "hostname", "label") if given[flag]]
        if clash:
            raise BadInput(f"--{clash[0].rstrip('s')} and --file exclude each other")
        from pyrun.pod import kubeyaml

        spec = kubeyaml.load(file)
    else:
        spec = from_flags(given)
    tell(verbs.create(paths, spec, options))
    print(spec.name)


def from_flags(given: dict[str, Any]) -> PodSpec:
    """The PodSpec that the flags describe. Raises BadInput."""
    members: list[ContainerSpec] = []
    for text in given["containers"]:
        try:
            words = shlex.split(text)
        except ValueError as error:  # an open quotation
            raise BadInput(f"--container: {text!r}: {error}") from None
        if not words or words[0].startswith("="):
            raise BadInput(
                f"--container: {text!r} names no {'member' if words else 'image'}",
                hint="--container 'busybox sleep 1000'",
            )
        name, equals, image = words[0].partition("=")
        if not equals:
            image = words[0]
            name = image.rpartition("/")[2].partition("@")[0].partition(":")[0]
            taken = {member.name for member in members}
            number = 2
            base = name
            while name in taken:
                name, number = f"{base}{number}", number + 1
        elif any(member.name == name for member in members):
            raise BadInput(f"--container: two members are called {name!r}")
        members.append(ContainerSpec(name=name, image=image, args=tuple(words[1:])))
    hosts = [container_verbs.parse_host(entry) for entry in given["add_host"]]
    return PodSpec(
        name=given["name"] or records_of.random_name(),
        hostname=given["hostname"],
        containers=tuple(members),
        labels=tuple(parse_pair(label, "--label") for label in given["label"]),
        host_aliases=tuple(HostAlias(address, (name,)) for address, name in hosts),
        grace_seconds=10,
    )


@pod.command(epilog="Example: pyrun pod start web")
@click.argument("pods", nargs=-1, required=True, type=POD)
@click.pass_obj
def start(paths: Paths, pods: tuple[str, ...]) -> None:
    """Start PODS that are stopped, and members that have ended."""
    each(paths, pods, lambda name: verbs.start(paths, name))


@pod.command(epilog="Example: pyrun pod stop -t 3 web")
@click.option("-t", "--time", "seconds", type=float, help="Seconds before SIGKILL.")
@click.argument("pods", nargs=-1, required=True, type=POD)
@click.pass_obj
def stop(paths: Paths, pods: tuple[str, ...], seconds: float | None) -> None:
    """Stop all members of PODS at once, then give their addresses and ports back."""
    each(paths, pods, lambda name: verbs.stop(paths, name, seconds))


@pod.command(epilog="Example: pyrun pod restart web")
@click.option("-t", "--time", "seconds", type=float, help="Seconds before SIGKILL.")
@click.argument("pods", nargs=-1, required=True, type=POD)
@click.pass_obj
def restart(paths: Paths, pods: tuple[str, ...], seconds: float | None) -> None:
    """Stop PODS and start them again."""

    def act(name: str) -> None:
        verbs.stop(paths, name, seconds)
        verbs.start(paths, name)

    each(paths, pods, act)


@pod.command(epilog="Example: pyrun pod kill -s HUP web")
@click.option("-s", "--signal", "signal_", default="KILL", help="Name or number.")
@click.argument("pods", nargs=-1, required=True, type=POD)
@click.pass_obj
def kill(paths: Paths, pods: tuple[str, ...], signal_: str) -> None:
    """Send a signal to the first process of every member of PODS."""
    number = parse_signal(signal_)
    each(paths, pods, lambda name: verbs.kill(paths, name, number))


@pod.command(epilog="Example: pyrun pod rm -f web")
@click.option("-f", "--force", is_flag=True, help="Also one that runs, or is half made.")
@click.option("-a", "--all", "everything", is_flag=True, help="Every pod.")
@click.argument("pods", nargs=-1, type=POD)
@click.pass_obj
def rm(paths: Paths, pods: tuple[str, ...], force: bool, everything: bool) -> None:
    """Remove PODS with their members and volumes."""
    if everything:
        pods += tuple(record["name"] for record in verbs.pods(paths))
    elif not pods:
        raise click.UsageError("name the pods to remove, or give --all")
    for text in pods:
        try:
            each(paths, (text,), lambda name: verbs.remove(paths, name, force=force))
        except NotFound:
            if not force:  # with it, what is not there is a wish come true
                raise
            container_verbs.sweep(paths, text)


@pod.command(epilog="Example: pyrun pod ps --format json")
@click.option("-q", "--quiet", is_flag=True, help="Only the names.")
@click.option("--format", "format_", type=click.Choice(["table", "json"]), default="table")
@click.pass_obj
def ps(paths: Paths, quiet: bool, format_: str) -> None:
    """List pods."""
    found = [summary(paths, record) for record in verbs.pods(paths)]
    if format_ == "json":
        output.print_json(found)
    elif quiet:
        for row in found:
            print(row["name"])
    else:
        output.table(
            [
                [
                    row["name"],
                    row["status"],
                    f"{row['running']}/{len(row['containers'])}",
                    ", ".join(row["ips"]),
                    ", ".join(row["ports"]),
                    output.ago(row["created"]),
                ]
                for row in found
            ]
            + [[name, "half made", "", "", "", ""] for name in verbs.half_made(paths)],
            ["POD", "STATUS", "RUNNING", "ADDRESSES", "PORTS", "CREATED"],
        )


def summary(paths: Paths, record: dict[str, Any]) -> dict[str, Any]:
    state = records_of.sandbox_state(paths, record["name"])
    members = {name: records_of.status(paths, name) for name in record["members"]}
    return {
        "name": record["name"],
        "id": record["id"],
        "status": verbs.state(paths, record),
        "running": sum(status.running for status in members.values()),
        "containers": [
            {"name": name, "status": status.word, "pid": status.pid, "exit_code": status.code}
            for name, status in members.items()
        ],
        "ips": state.get("ips", []),
        "ports": output.port_texts(state),
        "created": record["created"],
        "labels": record["labels"],
    }


@pod.command(epilog="Example: pyrun pod inspect web")
@click.argument("pods", nargs=-1, required=True, type=POD)
@click.pass_obj
def inspect(paths: Paths, pods: tuple[str, ...]) -> None:
    """Show all there is to know about PODS, as a JSON list."""
    found = []
    for text in pods:
        name = verbs.find(paths, text)
        record = records_of.sandbox(paths, name)
        state = records_of.sandbox_state(paths, name)
        found.append(
            {
                **record,
                **summary(paths, record),
                "supervisor": (state.get("supervisor") or [0])[0],
                "network_namespace": f"{paths.netns}/{name}",
                "directory": paths.sandbox(name),
            }
        )
    output.print_json(found)


@pod.command(epilog="Example: pyrun pod logs -f web")
@click.option("-f", "--follow", is_flag=True, help="Go on until every member has ended.")
@click.option("-n", "--tail", type=int, default=-1, help="Only the last lines.")
@click.option("-t", "--timestamps", is_flag=True, help="With the time of each line.")
@click.option("--since", default="", metavar="TIME", help="RFC 3339, or a duration like 5m.")
@click.option("-c", "--container", default="", metavar="NAME", help="Only this member.")
@click.argument("name", metavar="POD", type=POD)
@click.pass_obj
def logs(
    paths: Paths,
    name: str,
    follow: bool,
    tail: int,
    timestamps: bool,
    since: str,
    container: str,
) -> None:
    """Show what the members of POD have written, in the order of time."""
    from pyrun.container import logs as reading

    record = records_of.sandbox(paths, verbs.find(paths, name))
    members = record["members"]
    if container:
        wanted = {container, verbs.member_name(record["name"], container)}
        members = [member for member in members if member in wanted]
        if not members:
            raise NotFound(
                f"pod {record['name']} has no member {container!r}",
                hint="members: " + ", ".join(record["members"]),
            )
    reading.show(
        paths,
        members,
        follow=follow,
        tail=tail,
        timestamps=timestamps,
        since=since,
        prefix=len(members) > 1,
    )


@pod.command(epilog="Example: pyrun pod top web")
@click.option("--format", "format_", type=click.Choice(["table", "json"]), default="table")
@click.argument("name", metavar="POD", type=POD)
@click.pass_obj
def top(paths: Paths, name: str, format_: str) -> None:
    """Show the processes of POD: their pids outside and inside."""
    rows = verbs.top(paths, verbs.find(paths, name))
    if format_ == "json":
        output.print_json(rows)
        return
    header = ["CONTAINER", "PID", "INNER PID", "PPID", "UID", "COMMAND"]
    output.table([[str(value) for value in row.values()] for row in rows], header)


@pod.command(epilog="Example: pyrun pod exists web && echo yes")
@click.argument("name", metavar="POD", type=POD)
@click.pass_obj
def exists(paths: Paths, name: str) -> None:
    """Exit with 0 where POD exists, with 1 where it does not."""
    try:
        verbs.find(paths, name)
    except NotFound:
        sys.exit(1)


@pod.command(epilog="Example: pyrun pod prune")
@click.pass_obj
def prune(paths: Paths) -> None:
    """Remove every pod that has no running member; print their names."""
    for name in verbs.prune(paths):
        print(name)
