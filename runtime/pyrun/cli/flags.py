"""The flags that `run`, `create` and `pod create --container` share, and their way to Options."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from typing import Any

import click

from pyrun.container import options as parse
from pyrun.container.options import Options
from pyrun.errors import BadInput, errno_text

Command = Callable[..., Any]

FLAGS = (
    click.option("--name", default="", help="A name; without one pyrun makes one up."),
    click.option("-e", "--env", multiple=True, metavar="KEY[=VALUE]", help="Set a variable."),
    click.option("--env-file", multiple=True, metavar="FILE", help="Read variables from a file."),
    click.option("-w", "--workdir", default="", metavar="DIR", help="The working directory."),
    click.option("-u", "--user", default="", metavar="USER[:GROUP]", help="Names or numbers."),
    click.option("--group-add", multiple=True, metavar="GROUP", help="One more group."),
    click.option("-h", "--hostname", default="", help="The hostname."),
    click.option("-l", "--label", multiple=True, metavar="KEY=VALUE", help="A label."),
    click.option("-m", "--memory", default="", metavar="SIZE", help="Memory limit, like 64m."),
    click.option("--memory-swap", default="", metavar="SIZE", help="Memory plus swap; -1: no end."),
    click.option("--memory-reservation", default="", metavar="SIZE", help="Soft memory limit."),
    click.option("--cpus", type=float, help="Processors' worth of time, like 1.5."),
    click.option("-c", "--cpu-shares", type=int, help="Relative weight (1024 is usual)."),
    click.option("--cpuset-cpus", default="", metavar="LIST", help="Processors, like 0-2,4."),
    click.option("--cpuset-mems", default="", metavar="LIST", help="Memory nodes."),
    click.option("--pids-limit", type=int, help="The most processes; -1: no limit."),
    click.option("--shm-size", default="64m", metavar="SIZE", help="Size of /dev/shm."),
    click.option("--oom-score-adj", type=click.IntRange(-1000, 1000), help="Kill me first: 1000."),
    click.option("-v", "--volume", multiple=True, metavar="SOURCE:TARGET[:ro]", help="A volume."),
    click.option("--mount", multiple=True, metavar="type=…,source=…,target=…", help="A mount."),
    click.option("--tmpfs", multiple=True, metavar="TARGET[:OPTIONS]", help="A tmpfs."),
    click.option("--read-only", is_flag=True, help="A read-only rootfs."),
    click.option("--device", multiple=True, metavar="PATH[:PATH][:rwm]", help="A host device."),
    click.option("--cap-add", multiple=True, metavar="CAP", help="Add a capability, or ALL."),
    click.option("--cap-drop", multiple=True, metavar="CAP", help="Drop a capability, or ALL."),
    click.option("--privileged", is_flag=True, help="All capabilities, all devices, no filter."),
    click.option("--security-opt", multiple=True, metavar="OPTION", help="no-new-privileges, …"),
    click.option("--ulimit", multiple=True, metavar="NAME=SOFT[:HARD]", help="A resource limit."),
    click.option("--sysctl", multiple=True, metavar="KEY=VALUE", help="A namespaced sysctl."),
    click.option("--network", "--net", default="bridge", metavar="MODE",
                 help="bridge, none, host or container:NAME."),
    click.option("--pid", default="", metavar="MODE", help="private, host or container:NAME."),
    click.option("--ipc", default="", metavar="MODE", help="private, host or container:NAME."),
    click.option("--pod", default="", metavar="POD", help="Join a pod."),
    click.option("-p", "--publish", multiple=True, metavar="[IP:]HOST:CONTAINER[/udp]",
                 help="Publish a port."),
    click.option("--dns", multiple=True, metavar="ADDRESS", help="A name server."),
    click.option("--add-host", multiple=True, metavar="NAME:ADDRESS", help="A line in /etc/hosts."),
    click.option("-t", "--tty", is_flag=True, help="Give it a terminal."),
    click.option("-i", "--interactive", is_flag=True, help="Keep its standard input open."),
    click.option("--init", is_flag=True, help="A small init as pid 1 that reaps and forwards."),
    click.option("--entrypoint", default=None, metavar="COMMAND", help="Replace the entry point."),
    click.option("--stop-signal", default="", metavar="SIGNAL", help="What `stop` sends first."),
    click.option("--stop-timeout", type=int, default=10, help="Seconds before `stop` kills."),
    click.option("--log-opt", multiple=True, metavar="max-size=…|max-file=…", help="Log bounds."),
)  # fmt: skip


def container_flags(command: Command) -> Command:
    for flag in reversed(FLAGS):
        command = flag(command)
    return command


def to_options(image: str, args: tuple[str, ...], given: dict[str, Any]) -> Options:
    """Flag values as click gives them → Options. Raises BadInput, Unsupported."""
    environ = dict(os.environ)
    env: list[str] = []
    for path in given["env_file"]:
        try:
            with open(path, encoding="utf-8") as file:
                env += parse.parse_env_file(file.read(), f"--env-file {path}", environ)
        except OSError as error:
            raise BadInput(f"--env-file {path}: {errno_text(error.errno or 0)}") from None
        except UnicodeDecodeError:
            raise BadInput(f"--env-file {path}: not UTF-8 text") from None
    env += parse.parse_env(list(given["env"]), environ)
    volumes = [
        *map(parse.parse_volume, given["volume"]),
        *map(parse.parse_mount, given["mount"]),
        *map(parse.parse_tmpfs, given["tmpfs"]),
    ]
    entrypoint = given["entrypoint"]
    if given["stop_signal"]:
        parse.parse_signal(given["stop_signal"])
    log = dict(parse.parse_pair(pair, "--log-opt") for pair in given["log_opt"])
    unknown = set(log) - {"max-size", "max-file"}
    if unknown:
        raise BadInput(f"--log-opt: {unknown.pop()!r} is not max-size or max-file")
    return Options(
        image=image,
        args=args,
        name=given["name"],
        entrypoint=None if entrypoint is None else words(entrypoint),
        env=tuple(env),
        workdir=given["workdir"],
        user=given["user"],
        groups=given["group_add"],
        hostname=given["hostname"],
        labels=tuple(parse.parse_pair(label, "--label") for label in given["label"]),
        memory=size(given["memory"], "--memory"),
        memory_swap=-1 if given["memory_swap"] == "-1" else size(
            given["memory_swap"], "--memory-swap"
        ),
        memory_reservation=size(given["memory_reservation"], "--memory-reservation"),
        cpus=given["cpus"],
        cpu_shares=given["cpu_shares"],
        cpuset_cpus=given["cpuset_cpus"],
        cpuset_mems=given["cpuset_mems"],
        pids_limit=given["pids_limit"],
        shm_size=parse.parse_size(given["shm_size"], "--shm-size"),
        oom_score_adj=given["oom_score_adj"],
        volumes=tuple(
            volume._replace(source=os.path.abspath(volume.source))
            if volume.kind == "bind" else volume
            for volume in volumes
        ),
        read_only=given["read_only"],
        devices=tuple(map(parse.parse_device, given["device"])),
        cap_add=tuple(parse.parse_capability(c, "--cap-add") for c in given["cap_add"]),
        cap_drop=tuple(parse.parse_capability(c, "--cap-drop") for c in given["cap_drop"]),
        privileged=given["privileged"],
        security_opt=given["security_opt"],
        ulimits=tuple(map(parse.parse_ulimit, given["ulimit"])),
        sysctls=tuple(parse.parse_pair(pair, "--sysctl") for pair in given["sysctl"]),
        network=given["network"],
        pid=given["pid"],
        ipc=given["ipc"],
        pod=given["pod"],
        publish=given["publish"],
        dns=given["dns"],
        add_hosts=given["add_host"],
        tty=given["tty"],
        stdin=given["interactive"],
        init=given["init"],
        remove=given.get("rm", False),
        stop_signal=given["stop_signal"],
        stop_timeout=given["stop_timeout"],
        log_size=size(log.get("max-size", ""), "max-size"),
        log_files=number(log.get("max-file", ""), "max-file"),
    )  # fmt: skip


def words(text: str) -> tuple[str, ...]:
    """`--entrypoint`: words as a shell splits them, or a JSON list as in a Dockerfile."""
    if text.startswith("["):
        import json

        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
            raise BadInput(f"--entrypoint: {text!r} is not a JSON list of strings")
        return tuple(found)
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise BadInput(f"--entrypoint: {text!r}: {error}") from None


def size(text: str, flag: str) -> int | None:
    return parse.parse_size(text, flag) if text else None


def number(text: str, flag: str) -> int | None:
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise BadInput(f"{flag}: {text!r} is not a number above 0")
    return int(text)
