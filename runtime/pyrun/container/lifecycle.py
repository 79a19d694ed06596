"""Creating, starting, stopping and removing a container: the plans, all of them pure.

`verbs.py` gathers what they need and runs them.
"""

from __future__ import annotations

from pyrun.cgroup import api as cgroup
from pyrun.container import sandbox
from pyrun.explain import steps
from pyrun.explain.steps import Step
from pyrun.oci import initplan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyrun.explain.steps import Plan
    from pyrun.store.paths import Paths


def plan_create_sandbox(paths: Paths, record: dict[str, Any]) -> Plan:
    return [
        *claiming(paths, paths.sandboxes, "pod", record),
        saving(paths.sandbox(record["name"]), record),
    ]


def claiming(paths: Paths, directory: str, what: str, record: dict[str, Any]) -> Plan:
    """Take the name of an object and give it its id."""
    name, id_ = record["name"], record["id"]
    target = f"{directory.rpartition('/')[2]}/{name}"
    return [
        Step(
            "container.record.claim",
            directory,
            name,
            what,
            why=f"take the name {name}: only one mkdir can make the directory",
            undo=("kernel.files.remove_tree", (f"{directory}/{name}",)),
            shell=f"mkdir {directory}/{name}",
            man="mkdir(2)",
        ),
        Step(
            "container.record.link_id",
            paths.ids,
            id_,
            target,
            why="make it findable by its id",
            undo=("kernel.files.unlink", (f"{paths.ids}/{id_}",)),
            shell=f"ln -s {target} {paths.ids}/{id_}",
        ),
    ]


def saving(directory: str, record: dict[str, Any]) -> Step:
    return Step(
        "container.record.save",
        directory,
        record,
        why="write down what was asked for",
        shell=f"cat > {directory}/record.json",
    )


def plan_create(
    paths: Paths,
    record: dict[str, Any],
    config: dict[str, Any],
    root_mode: list[int],
    volume_directories: list[tuple[str, str]],
) -> Plan:
    """The files of a new container.

    root_mode           mode, uid and gid of the image's own `/`
    volume_directories  those to make, each with the lowest directory above it that exists already
    """
    name = record["name"]
    directory = paths.container(name)
    return [
        Step(
            "container.record.add_member",
            paths.sandbox(record["sandbox"]),
            name,
            why=f"count it among the members of {record['sandbox']}",
            undo=("container.record.drop_member", (paths.sandbox(record["sandbox"]), name)),
        ),
        *claiming(paths, paths.containers, "container", record),
        Step(
            "container.files.make_upper",
            directory,
            *root_mode,
            why="make the directory that takes this container's own changes",
            shell=f"mkdir {directory}/upper {directory}/work",
            man="https://docs.kernel.org/filesystems/overlayfs.html",
        ),
        *(
            Step(
                "kernel.files.mkdir",
                path,
                why="make the directory of a volume",
                undo=("container.files.unmake", (path, above)),
                shell=f"mkdir -p {path}",
            )
            for path, above in volume_directories
        ),
        Step(
            "container.files.write_config",
            directory,
            config,
            why="write the OCI config.json: everything the container will be",
            shell=f"cat > {directory}/config.json",
            man="https://github.com/opencontainers/runtime-spec/blob/main/config.md",
        ),
        saving(directory, record),
        Step(
            "image.store.require",
            paths.root,
            paths.run_root,
            record["image"],
            why="see that nobody has removed the image meanwhile; from now on it is in use",
        ),
    ]


def plan_sync(paths: Paths, sandbox_name: str, records: list[dict[str, Any]]) -> Plan:
    """Make new containers' files durable, once they run; one that `--rm` removes needs none."""
    directories = [paths.container(r["name"]) for r in records if not r["remove"]]
    if records and not directories:
        return []
    directories.append(paths.sandbox(sandbox_name))
    return [
        Step(
            "container.record.sync",
            *directories,
            why="make what was written durable, now that nobody waits for it",
            shell="sync " + " ".join(directories),
            man="fsync(2)",
        )
    ]


def order(
    paths: Paths,
    record: dict[str, Any],
    config: dict[str, Any],
    layout: cgroup.Layout,
    lowerdirs: list[str],
    seccomp_program: str,
) -> tuple[dict[str, Any], Plan]:
    """init.json, the supervisor's order to launch this container, and its init plan with words."""
    name = record["name"]
    group = sandbox.cgroup_path(paths, layout, record["sandbox"], name)
    flags, plan = initplan.init_plan(
        config,
        rootfs=paths.rootfs,
        overlay=initplan.Overlay(
            lowerdirs,
            f"{paths.container(name)}/upper",
            f"{paths.container(name)}/work",
            record["remove"],
        ),
        cgroup_files=cgroup.join_files(layout, group),
        seccomp_program=seccomp_program,
        init=record["init"],
    )
    pid_path = next(
        (ns.get("path", "") for ns in config["linux"]["namespaces"] if ns["type"] == "pid"), ""
    )
    value = {
        "flags": flags,
        "plan": [[step.op, *step.args] for step in plan],
        "unified": cgroup.unified_directory(layout, group) or "",
        "pid_namespace": pid_path,
        "cgroups": cgroup_mounts(layout),
        "terminal": config["process"]["terminal"],
        "stdin": record["stdin"],
        "oom_files": oom_files(layout, group),
        "short_lived": record["remove"],
        "tell_steps": steps.narrator.wants_inside,
    }
    for key in ("log_size", "log_files"):
        if record.get(key) is not None:
            value[key] = record[key]
    return value, plan


def cgroup_mounts(layout: cgroup.Layout) -> list[list[str]]:
    """What /sys/fs/cgroup shows: [[directory, options], …]; one nameless entry for pure v2."""
    hierarchies = layout.hierarchies()
    if all(hierarchy.version == 2 for hierarchy in hierarchies):
        return [["", "cgroup2"]]
    named = {hierarchy.mount: name for name, hierarchy in layout.named.items()}
    found = []
    for hierarchy in hierarchies:
        if hierarchy.version == 2:
            options = "cgroup2"
        elif hierarchy.mount in named:
            options = f"none,name={named[hierarchy.mount]}"
        else:
            options = ",".join("blkio" if c == "io" else c for c in hierarchy.controllers)
        found.append([hierarchy.mount.rpartition("/")[2], options])
    return found


def oom_files(layout: cgroup.Layout, group: str) -> list[str]:
    """Where the kernel counts what it killed for want of memory."""
    memory = layout.controllers.get("memory")
    if memory is None:
        return []
    name = "memory.events" if memory.version == 2 else "memory.oom_control"
    return [f"{memory.directory(group)}/{name}"]


def plan_start(
    paths: Paths,
    record: dict[str, Any],
    config: dict[str, Any],
    layout: cgroup.Layout,
    init_order: dict[str, Any],
) -> Plan:
    """The steps before a member of a sandbox can be launched: its cgroup and its orders."""
    name, sandbox_name = record["name"], record["sandbox"]
    run = paths.container_run(name)
    group = sandbox.cgroup_path(paths, layout, sandbox_name, name)
    plan = [
        *cgroup.plan_create(layout, group, config["linux"]["resources"]),
        Step(
            "kernel.files.mkdir",
            paths.rootfs,
            why="have an empty directory to mount the rootfs on; each sees only its own there",
            shell=f"mkdir -p {paths.rootfs}",
        ),
        Step(
            "container.files.write_order",
            run,
            init_order,
            why="write the init plan: what the new process does before it becomes the program",
            undo=("kernel.files.remove_tree", (run,)),
            shell=f"cat > {run}/init.json",
        ),
        Step(
            "container.files.mark_started",
            paths.container(name),
            why="note that it has run, so that a reboot does not make it look new",
            undo=("container.files.unmark_started", (paths.container(name),)),
        ),
    ]
    return plan


def plan_launch(paths: Paths, sandbox_name: str, names: list[str]) -> Plan:
    """Launch members, all at once. Left out where the caller wants to be attached instead."""
    if not names:
        return []
    return [
        Step(
            "container.client.launch_members",
            paths.root,
            paths.run_root,
            sandbox_name,
            names,
            why=f"launch {', '.join(names)}: clone into new namespaces, then the init plan",
            undo=(
                "container.client.end_members",
                (paths.root, paths.run_root, names),
            ),
            shell="unshare --mount --pid --fork --cgroup …",
            man="clone(2)",
        )
    ]


def plan_stop(
    paths: Paths,
    running: list[tuple[dict[str, Any], Any, int]],
    layout: cgroup.Layout,
    seconds: float,
) -> Plan:
    """Ask members of one sandbox to end, all at once, and kill those that take too long.

    running  record, status and stop signal of each
    """
    plan = [
        Step(
            "kernel.process.kill_pid",
            status.pid,
            status.ticks,
            signal,
            why=f"ask {record['name']} to end: signal {signal} to its first process",
            shell=f"kill -{signal} {status.pid}",
            man="pidfd_send_signal(2)",
        )
        for record, status, signal in running
    ]
    if not running:
        return plan
    groups = [
        cgroup.killing(
            layout, sandbox.cgroup_path(paths, layout, record["sandbox"], record["name"])
        )
        for record, _, _ in running
    ]
    ends = [
        [status.pid, status.ticks, *group]
        for (_, status, _), group in zip(running, groups, strict=True)
    ]
    plan.append(
        Step(
            "container.client.end_within",
            seconds,
            ends,
            why=f"wait up to {seconds:g} s for the end, then kill whatever is in the cgroup",
            shell="\n".join(
                f"timeout {seconds:g} tail --pid={status.pid} -f /dev/null || kill -9 {status.pid}"
                for _, status, _ in running
            ),
            man="pidfd_open(2)",
        )
    )
    return plan


def plan_member_down(paths: Paths, record: dict[str, Any], layout: cgroup.Layout) -> Plan:
    """After a member has ended: its cgroup and its directory below the run root."""
    name = record["name"]
    run = paths.container_run(name)
    return [
        *cgroup.plan_remove(layout, sandbox.cgroup_path(paths, layout, record["sandbox"], name)),
        Step(
            "container.files.keep_exit",
            run,
            paths.container(name),
            why="keep the exit code that a full disk had left in memory",
        ),
        Step(
            "kernel.files.remove_tree",
            run,
            why="remove what lived as long as the process",
            shell=f"rm -r {run}",
        ),
    ]


def plan_forget_container(paths: Paths, record: dict[str, Any]) -> Plan:
    """The last steps of a removal: its files, then its place in its sandbox.

    In this order, because on a full disk there is room for a new record only after the first.
    """
    return [
        *plan_forget_member_files(paths, record),
        Step(
            "container.record.drop_member",
            paths.sandbox(record["sandbox"]),
            record["name"],
            why=f"count it no longer among the members of {record['sandbox']}",
        ),
    ]


def plan_forget_member_files(paths: Paths, record: dict[str, Any]) -> Plan:
    """Its changes, its log, its name; its sandbox is going as well or has forgotten it."""
    name = record["name"]
    directory = paths.container(name)
    run = paths.container_run(name)
    return [
        Step(
            "container.record.unlink_id",
            paths.ids,
            f"containers/{name}",
            record.get("id", ""),
            why="forget the id",
        ),
        Step(
            "kernel.files.remove_tree",
            run,
            why="remove what lived as long as the process",
            shell=f"rm -rf {run}",
        ),
        Step(
            "kernel.files.remove_tree",
            directory,
            why=f"remove the changes and the log of {name}; its name is free again",
            shell=f"rm -r {directory}",
        ),
    ]
