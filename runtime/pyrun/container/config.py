"""Options and an image become the OCI config.json of a container. Pure.

Everything that depends on the host is handed in as `Host`, so the same input gives the same text.
The rules are docker's, where Kubernetes and the specification are silent.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from pyrun.container.options import Options, Security, Volume, parse_security
from pyrun.container.user import Identity
from pyrun.errors import BadInput
from pyrun.kernel import caps
from pyrun.oci import initplan, spec

MOST_FILES = 524288
"""Hard limit of open files, as systemd gives it to services; the soft one is 1024."""
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Host(NamedTuple):
    """Facts of the host that a config depends on.

    bounding   capabilities this process could give away at most, as bits
    rlimits    this process's own limits by RLIMIT_ name: (soft, hard)
    cpus       how many processors there are
    can_raise  whether hard limits may be raised (CAP_SYS_RESOURCE)
    """

    bounding: int
    rlimits: dict[str, tuple[int, int]]
    cpus: int
    can_raise: bool


class Place(NamedTuple):
    """Where a container will live: paths that its sandbox has or will have.

    namespaces  kind → path of the pinned namespace to join ("" makes a new one)
    files       path in the container → host file bound there (/etc/hosts and its like)
    shm         host directory bound at /dev/shm, or "" for a tmpfs of the container's own
    """

    namespaces: dict[str, str]
    hostname: str
    files: dict[str, str]
    shm: str
    cgroup: str


def command(options: Options, image: dict[str, Any]) -> list[str]:
    """Docker's rule: ENTRYPOINT then CMD; arguments replace CMD; an own entry point drops CMD.

    Raises BadInput when nothing is left to run.
    """
    own = image.get("config") or {}
    if options.entrypoint is not None:
        args = [*filter(None, options.entrypoint), *options.args]
    else:
        args = [*(own.get("Entrypoint") or []), *(options.args or own.get("Cmd") or [])]
    if not args:
        raise BadInput(
            f"image {options.image} names no command",
            hint="say what to run: `pyrun run IMAGE COMMAND`",
        )
    return args


def environment(options: Options, image: dict[str, Any], hostname: str, home: str) -> list[str]:
    """Defaults, then the image's, then the user's; a later value wins, the order is kept."""
    own = image.get("config") or {}
    merged: dict[str, str] = {"PATH": DEFAULT_PATH}
    if options.tty:
        merged["TERM"] = "xterm"
    merged["HOSTNAME"] = hostname
    for entry in (*(own.get("Env") or []), *options.env):
        key, _, value = entry.partition("=")
        merged[key] = value
    merged.setdefault("HOME", home)
    return [f"{key}={value}" for key, value in merged.items()]


def capabilities(options: Options, bounding: int) -> list[str]:
    """The default set plus --cap-add less --cap-drop, within what pyrun itself has."""
    wanted = set(caps.NUMBERS) if options.privileged else set(caps.DEFAULT)
    if "ALL" in options.cap_add:
        wanted = set(caps.NUMBERS)
    if "ALL" in options.cap_drop:
        wanted = set()
    wanted |= set(options.cap_add) - {"ALL"}
    wanted -= set(options.cap_drop)
    missing = [
        name for name in options.cap_add if name != "ALL" and not caps.mask([name]) & bounding
    ]
    if missing:
        raise BadInput(
            f"--cap-add {missing[0]}: this process does not have it itself",
            hint="`grep CapBnd /proc/self/status` shows what can be given",
        )
    return caps.names(caps.mask(wanted) & bounding)


def resources(options: Options, cpus: int) -> dict[str, Any]:
    """The runtime specification's linux.resources. Raises BadInput for impossible limits."""
    memory: dict[str, int] = {}
    if options.memory is not None:
        if options.memory < 512 << 10:
            raise BadInput(
                f"--memory: {options.memory} bytes are too few for any process",
                hint="give at least 6m",
            )
        memory["limit"] = options.memory
        # Docker's default: as much swap again. An explicit equal value turns swap off.
    if options.memory_swap is not None:
        if options.memory is None and options.memory_swap != -1:
            raise BadInput("--memory-swap needs --memory: it is the sum of both")
        memory["swap"] = options.memory_swap
    if options.memory_reservation is not None:
        memory["reservation"] = options.memory_reservation
    cpu: dict[str, Any] = {}
    if options.cpus is not None:
        if not 0.01 <= options.cpus <= cpus:
            raise BadInput(
                f"--cpus: {options.cpus:g} is out of range",
                hint=f"this machine has {cpus} processors: 0.01 to {cpus}",
            )
        cpu["period"] = 100_000
        cpu["quota"] = round(options.cpus * 100_000)
    if options.cpu_shares is not None:
        if not 2 <= options.cpu_shares <= 262144:
            raise BadInput(f"--cpu-shares: {options.cpu_shares} is not between 2 and 262144")
        cpu["shares"] = options.cpu_shares
    if options.cpuset_cpus:
        cpu["cpus"] = options.cpuset_cpus
    if options.cpuset_mems:
        cpu["mems"] = options.cpuset_mems
    result: dict[str, Any] = {}
    if memory:
        result["memory"] = memory
    if cpu:
        result["cpu"] = cpu
    if options.pids_limit is not None:
        result["pids"] = {"limit": options.pids_limit if options.pids_limit > 0 else -1}
    return result


def rlimits(options: Options, host: Host) -> tuple[list[dict[str, Any]], list[str]]:
    """process.rlimits, lowered to what this host lets us set, and a note for each lowered one."""
    result, notes = [], []
    if not any(kind == "RLIMIT_NOFILE" for kind, _, _ in options.ulimits):
        # Not the caller's, which differ between shells and services.
        ceiling = (
            MOST_FILES if host.can_raise else min(MOST_FILES, host.rlimits["RLIMIT_NOFILE"][1])
        )
        result.append({"type": "RLIMIT_NOFILE", "soft": min(1024, ceiling), "hard": ceiling})
    for kind, soft, hard in options.ulimits:
        _, ceiling = host.rlimits[kind]
        if hard > ceiling and not host.can_raise:
            notes.append(
                f"--ulimit {kind[7:].lower()}: lowered to {ceiling}, the most this host allows"
            )
            soft, hard = min(soft, ceiling), ceiling
        result.append({"type": kind, "soft": soft, "hard": hard})
    return result, notes


def device_nodes(options: Options) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """linux.devices and the device rules for --device. Looks at the host's devices."""
    import stat

    devices, rules = [], []
    for device in options.devices:
        try:
            found = os.stat(device.source)
        except FileNotFoundError:
            raise BadInput(f"--device: there is no {device.source} on this host") from None
        if stat.S_ISCHR(found.st_mode):
            kind = "c"
        elif stat.S_ISBLK(found.st_mode):
            kind = "b"
        else:
            raise BadInput(f"--device: {device.source} is not a device")
        major, minor = os.major(found.st_rdev), os.minor(found.st_rdev)
        devices.append(
            {
                "path": device.target,
                "type": kind,
                "major": major,
                "minor": minor,
                "fileMode": stat.S_IMODE(found.st_mode),
                "uid": found.st_uid,
                "gid": found.st_gid,
            }
        )
        rules.append(
            {"allow": True, "type": kind, "major": major, "minor": minor, "access": device.access}
        )
    return devices, rules


def mount_of(volume: Volume, sources: dict[str, str]) -> dict[str, Any]:
    """One entry of config.json's mounts. `sources` has the host directory of each volume."""
    if volume.kind == "tmpfs":
        options = ["nosuid", "nodev", *volume.options]
        if not any(option in ("exec", "noexec") for option in options):
            options.append("noexec")
        return {
            "destination": volume.target,
            "type": "tmpfs",
            "source": "tmpfs",
            "options": options,
        }
    source = sources[volume.target] if volume.kind == "volume" else volume.source
    options = ["rbind" if "bind" not in volume.options else "bind"]
    options += [option for option in volume.options if option not in ("bind", "rbind", "rw")]
    return {"destination": volume.target, "type": "bind", "source": source, "options": options}


def masks(security: Security, options: Options, linux: dict[str, Any]) -> None:
    if options.privileged or security.unmasked:
        linux["maskedPaths"] = []
        linux["readonlyPaths"] = []


def build(
    options: Options,
    image: dict[str, Any],
    place: Place,
    identity: Identity,
    host: Host,
    volume_sources: dict[str, str],
) -> tuple[dict[str, Any], list[str]]:
    """(config.json, notes for the user). Raises BadInput, Unsupported."""
    own = image.get("config") or {}
    security = parse_security(options.security_opt)
    config = spec.skeleton()
    process, linux = config["process"], config["linux"]
    process["terminal"] = options.tty
    process["args"] = command(options, image)
    process["env"] = environment(options, image, place.hostname, identity.home)
    process["cwd"] = options.workdir or own.get("WorkingDir") or "/"
    if not process["cwd"].startswith("/"):
        raise BadInput(f"--workdir: {process['cwd']!r} is not an absolute path")
    process["user"] = {
        "uid": identity.uid,
        "gid": identity.gid,
        "additionalGids": list(identity.groups),
    }
    granted = capabilities(options, host.bounding)
    # No inheritable ones: CVE-2022-29162. A user other than root keeps none over execve.
    process["capabilities"] = {
        "bounding": granted,
        "effective": granted,
        "permitted": granted,
        "inheritable": [],
        "ambient": [],
    }
    process["rlimits"], notes = rlimits(options, host)
    process["noNewPrivileges"] = security.no_new_privs
    if options.oom_score_adj is not None:
        process["oomScoreAdj"] = options.oom_score_adj
    config["hostname"] = place.hostname
    config["root"]["readonly"] = options.read_only
    config["annotations"] = dict(options.labels)
    linux["namespaces"] = [
        {"type": kind, "path": path} if path else {"type": kind}
        for kind, path in place.namespaces.items()
    ]
    linux["cgroupsPath"] = place.cgroup
    linux["sysctl"] = dict(options.sysctls)
    initplan.check_sysctls(config)
    limits = resources(options, host.cpus)
    rules = linux["resources"]["devices"]
    linux["devices"], extra_rules = device_nodes(options)
    if options.privileged:
        rules = [{"allow": True, "access": "rwm"}]
        linux["devices"] += host_devices()
    linux["resources"] = {**limits, "devices": [*rules, *extra_rules]}
    masks(security, options, linux)
    config["mounts"] = mounts(options, place, config["mounts"], volume_sources)
    return config, notes


def mounts(
    options: Options, place: Place, base: list[dict[str, Any]], sources: dict[str, str]
) -> list[dict[str, Any]]:
    result = list(base)
    if options.privileged:
        for mount in result:
            if mount["type"] == "sysfs":
                mount["options"].remove("ro")
    cgroup_mode = "rw" if options.privileged else "ro"
    result.append(
        {
            "destination": "/sys/fs/cgroup",
            "type": "cgroup",
            "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", cgroup_mode],
        }
    )
    if place.shm:
        result.append(
            {"destination": "/dev/shm", "type": "bind", "source": place.shm, "options": ["bind"]}
        )
    else:
        result.append(
            {
                "destination": "/dev/shm",
                "type": "tmpfs",
                "source": "shm",
                "options": ["nosuid", "noexec", "nodev", "mode=1777", f"size={options.shm_size}"],
            }
        )
    result += [
        {
            "destination": target,
            "type": "bind",
            "source": source,
            "options": ["bind", "ro"] if options.read_only else ["bind"],
        }
        for target, source in place.files.items()
    ]
    # What the user mounts wins over what stands at the same place; parents before children.
    own = [mount_of(volume, sources) for volume in options.volumes]
    seen: set[str] = set()
    for mount in own:
        target = "/" + mount["destination"].strip("/")
        if target in seen:
            raise BadInput(f"two volumes are mounted at {target}")
        seen.add(target)
    result = [mount for mount in result if mount["destination"] not in seen]
    own.sort(key=lambda mount: mount["destination"].rstrip("/").count("/"))
    return result + own


def host_devices() -> list[dict[str, Any]]:
    """Every device node of the host's /dev, for --privileged; ptys and shm are the container's."""
    import stat

    skip = {f"/dev/{name}" for name in ("pts", "shm", "mqueue", "console", "ptmx", "fd")}
    skip |= {path for path, _, _ in spec.DEVICES}
    found = []
    waiting = ["/dev"]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.path in skip or entry.is_symlink():
                    continue
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    waiting.append(entry.path)
                elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
                    found.append(
                        {
                            "path": entry.path,
                            "type": "c" if stat.S_ISCHR(status.st_mode) else "b",
                            "major": os.major(status.st_rdev),
                            "minor": os.minor(status.st_rdev),
                            "fileMode": stat.S_IMODE(status.st_mode),
                            "uid": status.st_uid,
                            "gid": status.st_gid,
                        }
                    )
    return sorted(found, key=lambda device: str(device["path"]))


def host_facts() -> Host:
    """Read what `build` needs to know of this host."""
    import resource

    limits = {}
    for name in dir(resource):
        if name.startswith("RLIMIT_"):
            soft, hard = resource.getrlimit(getattr(resource, name))
            limits[name] = (soft & (1 << 64) - 1, hard & (1 << 64) - 1)
    bounding = caps.own_bounding()
    return Host(
        bounding, limits, os.cpu_count() or 1, bool(bounding & caps.mask(["CAP_SYS_RESOURCE"]))
    )
