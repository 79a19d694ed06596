"""config.json → the init plan: what the new process does, in order, until execve. Pure code.

Every step's `op` is the name of a method of `oci/init.py`'s Init. The order is the lesson:

 1. cgroup first, while the host's file system is still in sight and before anything can run away
 2. join the sandbox's namespaces, then make the private ones
 3. the mount namespace: cut propagation, rootfs, mounts, devices, pivot_root, then close doors
    (masked and read-only paths come last: until then the steps themselves need to write there)
 4. the process: limits, user, capabilities, seccomp, execve; each takes away a right that the
    steps before it still needed
"""

from __future__ import annotations

from pyrun.errors import BadInput, Unsupported
from pyrun.explain.steps import Step
from pyrun.kernel import caps, const
from pyrun.oci.spec import DEVICES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyrun.explain.steps import Plan

NAMESPACE_FLAGS = {
    "mount": const.CLONE_NEWNS,
    "pid": const.CLONE_NEWPID,
    "network": const.CLONE_NEWNET,
    "uts": const.CLONE_NEWUTS,
    "ipc": const.CLONE_NEWIPC,
    "cgroup": const.CLONE_NEWCGROUP,
    "user": const.CLONE_NEWUSER,
    "time": const.CLONE_NEWTIME,
}

MOUNT_FLAGS = {
    "ro": const.MS_RDONLY, "nosuid": const.MS_NOSUID, "nodev": const.MS_NODEV,
    "noexec": const.MS_NOEXEC, "sync": const.MS_SYNCHRONOUS, "mand": const.MS_MANDLOCK,
    "dirsync": const.MS_DIRSYNC, "noatime": const.MS_NOATIME, "nodiratime": const.MS_NODIRATIME,
    "relatime": const.MS_RELATIME, "strictatime": const.MS_STRICTATIME,
    "lazytime": const.MS_LAZYTIME, "nosymfollow": const.MS_NOSYMFOLLOW,
    "bind": const.MS_BIND, "rbind": const.MS_BIND | const.MS_REC,
}  # fmt: skip
CLEARED_FLAGS = {
    "rw": const.MS_RDONLY, "suid": const.MS_NOSUID, "dev": const.MS_NODEV,
    "exec": const.MS_NOEXEC, "async": const.MS_SYNCHRONOUS, "atime": const.MS_NOATIME,
    "diratime": const.MS_NODIRATIME, "symfollow": const.MS_NOSYMFOLLOW, "defaults": 0,
}  # fmt: skip
PROPAGATION = {
    "private": const.MS_PRIVATE,
    "slave": const.MS_SLAVE,
    "shared": const.MS_SHARED,
    "unbindable": const.MS_UNBINDABLE,
}
PROPAGATION |= {f"r{name}": flag | const.MS_REC for name, flag in PROPAGATION.items()}

SYMLINKS = (
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
)


class Overlay:
    """The rootfs as overlay: read-only layers (top first) and the container's own upper.

    volatile  nothing of the upper directory need ever reach the disk (`--rm`)
    """

    __slots__ = ("lowerdirs", "upperdir", "volatile", "workdir")

    def __init__(
        self, lowerdirs: list[str], upperdir: str, workdir: str, volatile: bool = False
    ) -> None:
        self.lowerdirs = lowerdirs
        self.upperdir = upperdir
        self.workdir = workdir
        self.volatile = volatile


def init_plan(
    config: dict[str, Any],
    *,
    rootfs: str,
    overlay: Overlay | None,
    cgroup_files: list[str],
    seccomp_program: str = "",
    init: bool = False,
) -> tuple[int, Plan]:
    """The clone3(2) flags for the new process, and the steps it runs.

    rootfs        absolute path: where the overlay is mounted, or the bundle's root
    cgroup_files  cgroup.procs files the process writes itself into
    seccomp_program  path of a compiled filter; "" for none
    init          keep a small init as pid 1 that forwards signals and reaps
    Raises BadInput for what the specification forbids, Unsupported for what pyrun cannot do.
    """
    flags, namespaces = _namespaces(config)
    plan = [
        *(
            Step(
                "join_cgroup",
                path,
                why=f"move into {path.rpartition('/')[0]}: its limits hold from now on",
                shell=f"echo $$ > {path}",
                man="cgroups(7)",
            )
            for path in cgroup_files
        ),
        *namespaces,
        Step(
            "new_keyring",
            why="leave the caller's keys: a session keyring of its own",
            shell="keyctl new_session",
            man="keyctl(2)",
        ),
        *_rootfs(config, rootfs, overlay, seccomp_program),
        *_mounts(config),
        *_devices(config),
        *_terminal(config),
        Step(
            "pivot_root",
            why="make the rootfs the `/` of this mount namespace, and unmount the host's tree",
            shell="pivot_root . . && umount -l .",
            man="pivot_root(2)",
        ),
        *_sysctls(config),
        *_closed_doors(config),
        *_process(config["process"], bool(seccomp_program), init),
    ]
    return flags, plan


def _namespaces(config: dict[str, Any]) -> tuple[int, Plan]:
    flags = 0
    plan: Plan = []
    late: Plan = []
    seen: set[str] = set()
    for entry in config.get("linux", {}).get("namespaces", []):
        kind, path = entry.get("type"), entry.get("path", "")
        if kind not in NAMESPACE_FLAGS:
            raise BadInput(f"linux.namespaces: {kind!r} is not a namespace type")
        if kind in seen:
            raise BadInput(f"linux.namespaces: {kind} is listed twice")
        if kind in ("user", "time"):
            raise Unsupported(f"linux.namespaces: {kind} namespaces come with a later version")
        seen.add(kind)
        flag = NAMESPACE_FLAGS[kind]
        if path and kind != "pid":  # the parent joins a pid namespace before it clones
            plan.append(
                Step(
                    "join_namespace",
                    path,
                    flag,
                    why=f"join the {kind} namespace pinned at {path}",
                    shell=f"nsenter --{'net' if kind == 'network' else kind}={path}",
                    man=f"{kind}_namespaces(7)",
                )
            )
        elif kind == "cgroup":
            # After the move into the cgroup: what the process is in now becomes the new root.
            late.append(
                Step(
                    "unshare",
                    flag,
                    why="make its own cgroup look like the root of the hierarchy",
                    shell="unshare --cgroup",
                    man="cgroup_namespaces(7)",
                )
            )
        elif not path:
            flags |= flag
    if "mount" not in seen:
        raise Unsupported("linux.namespaces: a container without its own mount namespace")
    if "uts" in seen and flags & const.CLONE_NEWUTS and config.get("hostname"):
        late.append(
            Step(
                "sethostname",
                config["hostname"],
                why="give the new UTS namespace its hostname",
                shell=f"hostname {config['hostname']}",
                man="sethostname(2)",
            )
        )
    return flags, plan + late


def _rootfs(
    config: dict[str, Any], rootfs: str, overlay: Overlay | None, seccomp_program: str
) -> Plan:
    propagation = config.get("linux", {}).get("rootfsPropagation", "") or "rslave"
    plan = [
        Step(
            "propagation",
            "/",
            # Slave, not private, so that a volume with slave propagation can see later host mounts.
            const.MS_REC | (const.MS_PRIVATE if propagation == "rprivate" else const.MS_SLAVE),
            why="cut the way back: no mount made here may travel to the host",
            shell="mount --make-rslave /",
            man="mount_namespaces(7)",
        )
    ]
    if seccomp_program:
        plan.append(
            Step(
                "load_filter",
                seccomp_program,
                why="read the compiled system call filter while the host's files are in sight",
            )
        )
    if overlay is not None:
        layers = ":".join(overlay.lowerdirs)
        plan.append(
            Step(
                "mount_overlay",
                rootfs,
                overlay.lowerdirs,
                overlay.upperdir,
                overlay.workdir,
                overlay.volatile,
                why=f"mount the rootfs: {_layers(len(overlay.lowerdirs))} under this container's "
                "own upper directory",
                shell=f"mount -t overlay overlay -o lowerdir={layers},"
                f"upperdir={overlay.upperdir},workdir={overlay.workdir}"
                f"{',volatile' if overlay.volatile else ''} {rootfs}",
                man="https://docs.kernel.org/filesystems/overlayfs.html",
            )
        )
    else:
        plan.append(
            Step(
                "bind_rootfs",
                rootfs,
                why="bind the rootfs onto itself: pivot_root wants a mount point",
                shell=f"mount --rbind {rootfs} {rootfs}",
                man="pivot_root(2)",
            )
        )
    return plan


def _layers(count: int) -> str:
    return "one read-only layer" if count == 1 else f"{count} read-only layers"


def mount_options(options: list[str]) -> tuple[int, list[int], str]:
    """Split mount options: (flags, propagation flags, data for the file system)."""
    flags = 0
    propagation = []
    data = []
    for option in options:
        if option in MOUNT_FLAGS:
            flags |= MOUNT_FLAGS[option]
        elif option in CLEARED_FLAGS:
            flags &= ~CLEARED_FLAGS[option]
        elif option in PROPAGATION:
            propagation.append(PROPAGATION[option])
        else:
            data.append(option)
    return flags, propagation, ",".join(data)


def _mounts(config: dict[str, Any]) -> Plan:
    plan = []
    for entry in config.get("mounts", []):
        target, source = entry["destination"], entry.get("source", "")
        flags, propagation, data = mount_options(entry.get("options", []))
        fstype = entry.get("type", "")
        if flags & const.MS_BIND or fstype == "bind":
            plan.append(
                Step(
                    "bind",
                    source,
                    target,
                    flags | const.MS_BIND,
                    propagation or [const.MS_PRIVATE | const.MS_REC],
                    why=f"bind {source} at {target}"
                    + (", read-only" if flags & const.MS_RDONLY else ""),
                    shell=f"mount --{'r' if flags & const.MS_REC else ''}bind {source} "
                    f"$ROOTFS{target}"
                    + (
                        f" && mount -o remount,bind,ro $ROOTFS{target}"
                        if flags & const.MS_RDONLY
                        else ""
                    ),
                    man="mount(2)",
                )
            )
            continue
        if fstype == "cgroup":
            plan.append(
                Step(
                    "mount_cgroups",
                    target,
                    flags,
                    why="show the container its own cgroups, read-only",
                    man="cgroups(7)",
                )
            )
            continue
        plan.append(
            Step(
                "mount",
                source or fstype,
                target,
                fstype,
                flags,
                data,
                why=f"mount {fstype} on {target}",
                shell=f"mount -t {fstype} {source or fstype} $ROOTFS{target}"
                + (f" -o {','.join(entry['options'])}" if entry.get("options") else ""),
                man="mount(2)",
            )
        )
        for flag in propagation:
            plan.append(Step("propagate", target, flag, why=f"set the propagation of {target}"))
    return plan


def _devices(config: dict[str, Any]) -> Plan:
    plan = [
        Step(
            "mknod", path, "c", major, minor, 0o666, 0, 0,
            why=f"make the device {path}",
            shell=f"mknod -m 666 $ROOTFS{path} c {major} {minor}",
            man="mknod(2)",
        )
        for path, major, minor in DEVICES
    ]  # fmt: skip
    for device in config.get("linux", {}).get("devices", []):
        plan.append(
            Step(
                "mknod",
                device["path"],
                device["type"],
                device.get("major", 0),
                device.get("minor", 0),
                device.get("fileMode", 0o666) & 0o7777,
                device.get("uid", 0),
                device.get("gid", 0),
                why=f"make the device {device['path']} the user asked for",
                man="mknod(2)",
            )
        )
    plan += [
        Step(
            "symlink",
            target,
            path,
            why=f"link {path} to {target}",
            shell=f"ln -s {target} $ROOTFS{path}",
        )
        for target, path in SYMLINKS
    ]
    return plan


def _terminal(config: dict[str, Any]) -> Plan:
    process = config["process"]
    if not process.get("terminal"):
        return []
    size = process.get("consoleSize") or {}
    return [
        Step(
            "open_terminal",
            size.get("height", 0),
            size.get("width", 0),
            process["user"].get("uid", 0),
            why="open a pseudo-terminal of the container's own devpts, send its master out",
            man="pty(7)",
        )
    ]


IPC_SYSCTLS = frozenset(
    "kernel.msgmax kernel.msgmnb kernel.msgmni kernel.sem kernel.shmall kernel.shmmax "
    "kernel.shmmni kernel.shm_rmid_forced".split()
)


def sysctl_file(key: str) -> str:
    """The file below /proc/sys: a key with slashes keeps its dots (`net/ipv4/conf/eth0.1/…`)."""
    return key if "/" in key else key.replace(".", "/")


def check_sysctl(key: str, kinds: set[str]) -> None:
    """Only what belongs to a namespace of the container's own may be set; anything else would be
    the host's. Raises BadInput. Source: namespaces(7), and which /proc/sys files are per namespace.

    kinds  the namespaces that are not the host's
    """
    name = key.replace("/", ".")
    if set(sysctl_file(key).split("/")) & {"", ".", ".."}:
        raise BadInput(f"linux.sysctl: {key!r} is not the name of a sysctl")
    if name.startswith("net."):
        needed = "network"
    elif name in IPC_SYSCTLS or name.startswith("fs.mqueue."):
        needed = "ipc"
    elif name == "kernel.domainname":
        needed = "uts"
    elif name == "kernel.hostname":
        raise BadInput("linux.sysctl: kernel.hostname: use the hostname field, --hostname")
    else:
        raise BadInput(
            f"linux.sysctl: {key} is the whole host's: a container must not set it",
            hint="net.*, fs.mqueue.* and the System V IPC limits belong to namespaces",
        )
    if needed not in kinds:
        raise BadInput(f"linux.sysctl: {key} would change the host's {needed} namespace")


def check_sysctls(config: dict[str, Any]) -> None:
    """check_sysctl for all of a config.json."""
    linux = config.get("linux", {})
    kinds = {entry["type"] for entry in linux.get("namespaces", [])}
    for key in linux.get("sysctl") or {}:
        check_sysctl(key, kinds)


def _sysctls(config: dict[str, Any]) -> Plan:
    linux = config.get("linux", {})
    check_sysctls(config)
    return [
        Step(
            "sysctl",
            sysctl_file(key),
            value,
            why=f"set {key} in the container's namespaces",
            shell=f"sysctl -w {key}={value}",
            man="sysctl(8)",
        )
        for key, value in (linux.get("sysctl") or {}).items()
    ]


def _closed_doors(config: dict[str, Any]) -> Plan:
    linux = config.get("linux", {})
    plan = [
        Step(
            "read_only",
            path,
            why=f"make {path} read-only",
            shell=f"mount --bind {path} {path} && mount -o remount,bind,ro {path}",
            man="mount(2)",
        )
        for path in linux.get("readonlyPaths") or []
    ]
    plan += [
        Step("mask", path, why=f"hide {path} behind an empty mount", man="mount(2)")
        for path in linux.get("maskedPaths") or []
    ]
    if config.get("root", {}).get("readonly"):
        plan.append(
            Step(
                "read_only_rootfs",
                why="make the rootfs read-only; volumes keep their own mode",
                shell="mount -o remount,bind,ro /",
                man="mount(2)",
            )
        )
    return plan


def _process(process: dict[str, Any], seccomp: bool, init: bool) -> Plan:
    user = process.get("user", {})
    plan: Plan = []
    if "oomScoreAdj" in process:
        plan.append(
            Step(
                "oom_score_adj",
                process["oomScoreAdj"],
                why="say how willingly the kernel ends this process when memory runs out",
                man="proc_pid_oom_score_adj(5)",
            )
        )
    plan += [
        Step(
            "rlimit",
            limit["type"],
            limit["soft"],
            limit["hard"],
            why=f"limit {limit['type']} to {limit['soft']}",
            shell=f"prlimit --pid $$ --{limit['type'][7:].lower()}={limit['soft']}:{limit['hard']}",
            man="getrlimit(2)",
        )
        for limit in process.get("rlimits") or []
    ]
    if init:
        plan.append(
            Step("stay_as_init", why="stay as pid 1: forward signals, reap what is orphaned")
        )
    plan.append(
        Step(
            "own_stdio",
            user.get("uid", 0),
            why="give the standard streams to the container's user",
            man="fchown(2)",
        )
    )
    capabilities = process.get("capabilities") or {}
    sets = {
        name: capability_mask(capabilities.get(name) or [], name)
        for name in ("bounding", "effective", "permitted", "inheritable", "ambient")
    }
    plan.append(
        Step(
            "drop_bounding",
            sets["bounding"],
            why="give up every other capability for good: not even a setuid program gets it back",
            shell="capsh --drop=…",
            man="capabilities(7)",
        )
    )
    filter_ = Step(
        "seccomp",
        why="install the system call filter",
        man="seccomp(2)",
    )
    no_new_privs = bool(process.get("noNewPrivileges"))
    if seccomp and not no_new_privs:
        # Without no_new_privs the kernel wants CAP_SYS_ADMIN for a filter: before the drop.
        plan.append(filter_)
    plan += [
        Step(
            "user",
            user.get("uid", 0),
            user.get("gid", 0),
            user.get("additionalGids") or [],
            user.get("umask", -1),
            why=f"become user {user.get('uid', 0)}, group {user.get('gid', 0)}",
            shell=f"setpriv --reuid={user.get('uid', 0)} --regid={user.get('gid', 0)}",
            man="credentials(7)",
        ),
        # After the change of user: the directory may be one that only this user can enter.
        Step("chdir", process.get("cwd", "/"), why="enter the working directory", man="chdir(2)"),
        Step(
            "capabilities",
            sets["effective"],
            sets["permitted"],
            sets["inheritable"],
            sets["ambient"],
            why="keep only the capabilities that were asked for",
            man="capset(2)",
        ),
    ]
    if no_new_privs:
        plan.append(
            Step(
                "no_new_privs",
                why="refuse new privileges to everything executed from now on",
                shell="setpriv --no-new-privs",
                man="PR_SET_NO_NEW_PRIVS(2const)",
            )
        )
        if seccomp:
            plan.append(filter_)
    args = process.get("args") or []
    if not args:
        raise BadInput("process.args: there is no command to run")
    plan.append(
        Step(
            "execute",
            args,
            process.get("env") or [],
            why=f"execute {args[0]}: the image's program takes over this process",
            shell="exec env -i … " + " ".join(args),
            man="execve(2)",
        )
    )
    return plan


def capability_mask(names: list[str], where: str) -> int:
    unknown = [name for name in names if name not in caps.NUMBERS]
    if unknown:
        raise BadInput(f"process.capabilities.{where}: {unknown[0]} is not a capability")
    return caps.mask(names)


def exec_plan(process: dict[str, Any], *, cgroup_files: list[str], seccomp_program: str) -> Plan:
    """The steps of a process that joins a running container: `exec`.

    The launcher has joined the pid namespace; the others are joined here, mount last, because
    after it the host's paths are out of sight.
    """
    plan = [
        Step("join_cgroup", path, why=f"move into {path.rpartition('/')[0]}", man="cgroups(7)")
        for path in cgroup_files
    ]
    if seccomp_program:
        plan.append(Step("load_filter", seccomp_program, why="read the compiled filter"))
    plan += [
        Step(
            "join_target",
            kind,
            NAMESPACE_FLAGS[kind],
            why=f"join the container's {kind} namespace",
            shell=f"nsenter --target PID --{'net' if kind == 'network' else kind}",
            man="setns(2)",
        )
        for kind in ("cgroup", "ipc", "uts", "network", "mount")
    ]
    return plan + _terminal({"process": process}) + _process(process, bool(seccomp_program), False)
