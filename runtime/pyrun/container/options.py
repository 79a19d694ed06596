"""What a user asks of a container, from `run`'s flags or a pod file, parsed once at the edge.

`Options` is plain immutable data; the functions below it turn flag texts into that data, as
docker and podman read them. Nothing here looks at the host.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pyrun.errors import BadInput, Unsupported
from pyrun.kernel import caps


class Volume(NamedTuple):
    """Something mounted into a container.

    kind     bind (source is a host path), volume (source is a name, "" for an anonymous one),
             pod (source is where a volume of its pod is, which the pod makes and checks) or tmpfs
    options  mount options in the runtime specification's words: ro, rslave, size=…
    create   make a missing bind source (a directory), as `-v` does and `--mount` does not
    """

    kind: str
    source: str
    target: str
    options: tuple[str, ...] = ()
    create: bool = False


class Device(NamedTuple):
    source: str
    target: str
    access: str = "rwm"


class Options(NamedTuple):
    """Empty values (None, "", ()) leave the choice to the image or to pyrun's defaults."""

    image: str
    args: tuple[str, ...] = ()
    name: str = ""
    entrypoint: tuple[str, ...] | None = None
    env: tuple[str, ...] = ()
    workdir: str = ""
    user: str = ""
    groups: tuple[str, ...] = ()
    hostname: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    # resources
    memory: int | None = None
    memory_swap: int | None = None
    memory_reservation: int | None = None
    cpus: float | None = None
    cpu_shares: int | None = None
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    pids_limit: int | None = None
    shm_size: int = 64 << 20
    oom_score_adj: int | None = None
    # files
    volumes: tuple[Volume, ...] = ()
    read_only: bool = False
    devices: tuple[Device, ...] = ()
    # rights
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    privileged: bool = False
    security_opt: tuple[str, ...] = ()
    ulimits: tuple[tuple[str, int, int], ...] = ()
    sysctls: tuple[tuple[str, str], ...] = ()
    # namespaces
    network: str = "bridge"
    pid: str = ""
    ipc: str = ""
    pod: str = ""
    publish: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    add_hosts: tuple[str, ...] = ()
    # life
    tty: bool = False
    stdin: bool = False
    init: bool = False
    remove: bool = False
    stop_signal: str = ""
    stop_timeout: int = 10
    log_size: int | None = None
    log_files: int | None = None


UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_size(text: str, what: str = "size") -> int:
    """`512m` → bytes; units are powers of 1024, as docker has them. Raises BadInput."""
    number = text.strip().lower().removesuffix("ib").removesuffix("b") or text
    unit = number[-1:] if number[-1:].isalpha() else ""
    digits = number[: len(number) - len(unit)]
    # Plain digits only: float() would also take "nan", "1e9" and "inf".
    if unit not in UNITS or not digits.replace(".", "", 1).isdecimal() or len(digits) > 20:
        raise BadInput(f"{what}: {text!r} is not a size", hint="write it like 64m, 1.5g or 1048576")
    return int(float(digits) * UNITS[unit])


def parse_env(entries: list[str], environ: dict[str, str], where: str = "--env") -> tuple[str, ...]:
    """`KEY=VALUE` as it is; `KEY` alone takes the caller's value, or nothing if it has none."""
    result = []
    for entry in entries:
        key, equals, _ = entry.partition("=")
        if not key or "\0" in entry:
            raise BadInput(f"{where}: {entry!r} is not KEY=VALUE")
        if equals:
            result.append(entry)
        elif key in environ:
            result.append(f"{key}={environ[key]}")
    return tuple(result)


def parse_env_file(text: str, name: str, environ: dict[str, str]) -> tuple[str, ...]:
    """Lines of KEY=VALUE; `#` begins a comment line. Values are taken as they are, unquoted."""
    lines = [line.lstrip() for line in text.splitlines()]
    entries = [line for line in lines if line and not line.startswith("#")]
    for entry in entries:
        if " " in entry.partition("=")[0]:
            raise BadInput(f"{name}: {entry!r}: a variable's name cannot hold blanks")
    return parse_env(entries, environ, name)


def parse_volume(text: str) -> Volume:
    """`-v SOURCE:TARGET[:OPTIONS]`, `-v TARGET`. Raises BadInput."""
    parts = text.split(":")
    if len(parts) == 1:
        source, target, words = "", parts[0], ""
    elif len(parts) in (2, 3):
        source, target, words = [*parts, ""][:3]
        if not source:
            raise BadInput(f"--volume: {text!r} has no source", hint="SOURCE:TARGET[:OPTIONS]")
    else:
        raise BadInput(f"--volume: {text!r} has too many colons", hint="SOURCE:TARGET[:OPTIONS]")
    check_target(target, f"--volume {text!r}")
    options = []
    for word in filter(None, words.split(",")):
        if word in ("z", "Z"):
            continue  # SELinux labels: nothing to do where there is no SELinux
        if word not in VOLUME_OPTIONS:
            raise BadInput(
                f"--volume: {word!r} is not a volume option",
                hint="known: " + ", ".join(VOLUME_OPTIONS),
            )
        options.append(word)
    if source.startswith(("/", ".")):
        return Volume("bind", source, target, tuple(options), create=True)
    if source and not _is_volume_name(source):
        raise BadInput(
            f"--volume: {source!r} is neither an absolute path nor a volume name",
            hint="a path begins with / or ./",
        )
    return Volume("volume", source, target, tuple(options))


VOLUME_OPTIONS = (
    "ro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "rbind", "bind", "private",
    "rprivate", "slave", "rslave", "shared", "rshared",
)  # fmt: skip


def _is_volume_name(name: str) -> bool:
    return name[0].isalnum() and all(c.isalnum() or c in "_.-" for c in name)


def check_target(target: str, where: str) -> None:
    if not target.startswith("/"):
        raise BadInput(f"{where}: the place in the container must be an absolute path")
    if ".." in target.split("/"):
        raise BadInput(f"{where}: the place in the container must not contain '..'")
    if not target.strip("/"):
        raise BadInput(f"{where}: nothing can be mounted over the container's /")


def parse_mount(text: str) -> Volume:
    """`--mount type=bind|volume|tmpfs,source=…,target=…[,readonly]…`. Raises BadInput."""
    given: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        given[MOUNT_KEYS.get(key, key)] = value if equals else "true"
    kind = given.pop("type", "volume")
    target = given.pop("target", "")
    source = given.pop("source", "")
    if kind not in ("bind", "volume", "tmpfs"):
        raise BadInput(f"--mount: type {kind!r} is not one of bind, volume, tmpfs")
    check_target(target, f"--mount {text!r}")
    options = []
    if given.pop("readonly", "false") in ("true", "1"):
        options.append("ro")
    if kind == "bind":
        if not source.startswith("/"):
            raise BadInput(f"--mount: a bind's source must be an absolute path, not {source!r}")
        if "bind-propagation" in given:
            options.append(given.pop("bind-propagation"))
    if kind == "tmpfs":
        if "tmpfs-size" in given:
            options.append(f"size={parse_size(given.pop('tmpfs-size'), 'tmpfs-size')}")
        if "tmpfs-mode" in given:
            options.append(f"mode={given.pop('tmpfs-mode')}")
    if given:
        raise BadInput(
            f"--mount: {next(iter(given))!r} is not an option of type {kind}",
            hint="type, source, target, readonly, bind-propagation, tmpfs-size, tmpfs-mode",
        )
    return Volume(kind, source, target, tuple(options))


MOUNT_KEYS = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}


def parse_tmpfs(text: str) -> Volume:
    """`--tmpfs TARGET[:OPTIONS]`."""
    target, _, options = text.partition(":")
    check_target(target, f"--tmpfs {text!r}")
    return Volume("tmpfs", "", target, tuple(filter(None, options.split(","))))


def parse_device(text: str) -> Device:
    """`--device /dev/x[:/dev/y][:rwm]`."""
    source, *rest = text.split(":")
    access = rest.pop() if rest and set(rest[-1]) <= set("rwm") and rest[-1] else "rwm"
    target = rest.pop() if rest else source
    if rest or not source.startswith("/") or not target.startswith("/"):
        raise BadInput(
            f"--device: {text!r} is not a device", hint="/dev/on/host[:/dev/in/container][:rwm]"
        )
    return Device(source, target, access)


def parse_ulimit(text: str) -> tuple[str, int, int]:
    """`nofile=SOFT[:HARD]` → (RLIMIT_NOFILE, soft, hard); -1 or unlimited is no limit."""
    import resource

    name, equals, values = text.partition("=")
    kind = f"RLIMIT_{name.upper()}"
    if not equals or not hasattr(resource, kind):
        raise BadInput(f"--ulimit: {text!r} is not NAME=SOFT[:HARD]", hint="like nofile=1024:2048")
    soft, _, hard = values.partition(":")
    try:
        pair = [
            UNLIMITED if value in ("-1", "unlimited") else int(value)
            for value in (soft, hard or soft)
        ]
    except ValueError:
        raise BadInput(f"--ulimit: {text!r}: limits are numbers or `unlimited`") from None
    if pair[0] > pair[1]:
        raise BadInput(f"--ulimit: {text!r}: the soft limit is above the hard one")
    return kind, pair[0], pair[1]


UNLIMITED = (1 << 64) - 1
"""RLIM_INFINITY as config.json has it."""


def parse_pair(text: str, flag: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or (not equals and flag != "--label"):
        raise BadInput(f"{flag}: {text!r} is not KEY=VALUE")
    return key, value


def parse_capability(text: str, flag: str) -> str:
    """`net_admin`, `CAP_NET_ADMIN`, `ALL` → CAP_NET_ADMIN or ALL. Raises BadInput."""
    name = text.upper().removeprefix("CAP_")
    if name == "ALL":
        return name
    if f"CAP_{name}" not in caps.NUMBERS:
        import difflib

        near = difflib.get_close_matches(name, caps.NAMES, 1)
        raise BadInput(
            f"{flag}: {text!r} is not a capability",
            hint=f"did you mean {near[0]}?" if near else "capabilities(7) lists them",
        )
    return f"CAP_{name}"


def parse_signal(text: str) -> int:
    """`TERM`, `SIGTERM`, `15`, `RTMIN+3` → number. Raises BadInput."""
    import signal

    name = text.upper().removeprefix("SIG")
    if name.isdecimal() and 0 < int(name) < 65:
        return int(name)
    base, plus, offset = name.partition("+")
    found = getattr(signal, f"SIG{base}", None)
    if isinstance(found, signal.Signals) and (not plus or offset.isdecimal()):
        return int(found) + int(offset or 0)
    raise BadInput(f"{text!r} is not a signal", hint="`kill -l` lists their names")


class Security(NamedTuple):
    """`--security-opt`, sorted out."""

    no_new_privs: bool = False
    seccomp: str = ""  # "", unconfined, or the path of a profile
    unmasked: bool = False


def parse_security(options: tuple[str, ...]) -> Security:
    result: dict[str, Any] = {}
    for option in options:
        key, _, value = option.replace(":", "=", 1).partition("=")
        if key == "no-new-privileges":
            result["no_new_privs"] = value in ("", "true")
        elif key == "seccomp" and value:
            result["seccomp"] = value
        elif key == "systempaths" and value == "unconfined":
            result["unmasked"] = True
        elif (key, value) in (("apparmor", "unconfined"), ("label", "disable")):
            continue  # what they turn off is not on
        elif key in ("apparmor", "label"):
            raise Unsupported(f"--security-opt {option}: pyrun sets no {key} confinement yet")
        else:
            raise BadInput(
                f"--security-opt: {option!r} is not known",
                hint="no-new-privileges, seccomp=unconfined|FILE, systempaths=unconfined, "
                "apparmor=unconfined, label=disable",
            )
    return Security(**result)
