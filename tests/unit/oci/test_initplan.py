"""The order of the init plan is a matter of safety, so it is tested step by step, without root."""

from __future__ import annotations

from typing import Any

import pytest

from pyrun.errors import BadInput, Unsupported
from pyrun.explain.steps import Step
from pyrun.kernel import caps, const
from pyrun.oci import spec
from pyrun.oci.init import Init
from pyrun.oci.initplan import Overlay, check_sysctl, exec_plan, init_plan, mount_options


def config(**process: Any) -> dict[str, Any]:
    made = spec.skeleton()
    made["process"] |= {"args": ["sh"], **process}
    return made


def plan_of(made: dict[str, Any], **given: Any) -> list[Step]:
    arguments: dict[str, Any] = {
        "rootfs": "/rootfs",
        "overlay": Overlay(["/top", "/bottom"], "/upper", "/work"),
        "cgroup_files": ["/sys/fs/cgroup/memory/x/tasks"],
        **given,
    }
    return init_plan(made, **arguments)[1]


def ops(plan: list[Step]) -> list[str]:
    return [step.op for step in plan]


def before(plan: list[Step], first: str, second: str) -> bool:
    names = ops(plan)
    return max(i for i, op in enumerate(names) if op == first) < names.index(second)


def test_every_step_is_a_method_of_init_with_a_reason() -> None:
    made = config(terminal=True, oomScoreAdj=5, noNewPrivileges=True)
    made["root"]["readonly"] = True
    made["linux"]["sysctl"] = {"net.ipv4.ip_forward": "1"}
    made["linux"]["namespaces"] += [{"type": "network"}, {"type": "uts", "path": "/ns/uts"}]
    for step in plan_of(made, seccomp_program="/cache/filter", init=True):
        assert callable(getattr(Init, step.op)), step.op
        assert step.why, step.op


def test_cgroups_are_joined_before_everything() -> None:
    """Before a limit holds, nothing else may run; and later the host's files are out of sight."""
    assert ops(plan_of(config()))[0] == "join_cgroup"


def test_propagation_is_cut_before_the_first_mount() -> None:
    plan = plan_of(config())
    for mounting in ("mount_overlay", "mount", "bind", "pivot_root"):
        if mounting in ops(plan):
            assert before(plan, "propagation", mounting)


def test_mounts_and_devices_come_before_pivot_root_and_closed_doors_after() -> None:
    plan = plan_of(config())
    for early in ("mount_overlay", "mount", "mknod", "symlink"):
        assert before(plan, early, "pivot_root")
    for late in ("read_only", "mask"):
        assert before(plan, "pivot_root", late)


def test_sysctls_are_written_before_proc_sys_is_closed() -> None:
    made = config()
    made["linux"]["namespaces"].append({"type": "network"})
    made["linux"]["sysctl"] = {"net.ipv4.ip_forward": "1"}
    assert before(plan_of(made), "sysctl", "read_only")


@pytest.mark.parametrize("no_new_privs", [True, False])
def test_the_filter_comes_as_late_as_it_can(no_new_privs: bool) -> None:
    """With no_new_privs right before execve; without, while CAP_SYS_ADMIN is still there."""
    plan = plan_of(config(noNewPrivileges=no_new_privs), seccomp_program="/cache/filter")
    names = ops(plan)
    if no_new_privs:
        assert names[-3:] == ["no_new_privs", "seccomp", "execute"]
    else:
        assert before(plan, "seccomp", "user") and before(plan, "user", "capabilities")
    assert before(plan, "load_filter", "pivot_root")


def test_rights_are_given_up_in_the_order_that_lets_each_step_work() -> None:
    plan = plan_of(config(user={"uid": 5, "gid": 6}))
    assert before(plan, "own_stdio", "user")  # fchown needs root
    assert before(plan, "drop_bounding", "user")  # CAP_SETPCAP
    assert before(plan, "user", "chdir")  # the directory may be only this user's to enter
    assert before(plan, "chdir", "capabilities")
    assert ops(plan)[-1] == "execute"


def test_joined_namespaces_are_no_clone_flags() -> None:
    made = config()
    made["linux"]["namespaces"] = [
        {"type": "mount"},
        {"type": "pid"},
        {"type": "network", "path": "/run/netns/web"},
        {"type": "ipc"},
    ]
    flags, plan = init_plan(
        made, rootfs="/r", overlay=None, cgroup_files=[], seccomp_program="", init=False
    )
    assert flags == const.CLONE_NEWNS | const.CLONE_NEWPID | const.CLONE_NEWIPC
    [joined] = [step for step in plan if step.op == "join_namespace"]
    assert joined.args == ("/run/netns/web", const.CLONE_NEWNET)


def test_a_cgroup_namespace_is_made_after_the_cgroup_was_joined() -> None:
    assert before(plan_of(config()), "join_cgroup", "unshare")


@pytest.mark.parametrize(
    ("namespaces", "error"),
    [
        ([{"type": "mount"}, {"type": "mount"}], BadInput),
        ([{"type": "mount"}, {"type": "moon"}], BadInput),
        ([{"type": "pid"}], Unsupported),
        ([{"type": "mount"}, {"type": "user"}], Unsupported),
    ],
)
def test_namespaces_that_cannot_be(namespaces: list[dict[str, str]], error: type) -> None:
    made = config()
    made["linux"]["namespaces"] = namespaces
    with pytest.raises(error):
        plan_of(made)


def test_nothing_to_run_is_said() -> None:
    with pytest.raises(BadInput, match=r"process\.args"):
        plan_of(config(args=[]))


def test_unknown_capability_is_said() -> None:
    with pytest.raises(BadInput, match="CAP_FLY"):
        plan_of(config(capabilities={"bounding": ["CAP_FLY"]}))


@pytest.mark.parametrize(
    ("options", "flags", "propagation", "data"),
    [
        (["ro", "nosuid"], const.MS_RDONLY | const.MS_NOSUID, [], ""),
        (["ro", "rw"], 0, [], ""),
        (["rbind", "rslave"], const.MS_BIND | const.MS_REC, [const.MS_SLAVE | const.MS_REC], ""),
        (["size=64k", "noexec", "mode=755"], const.MS_NOEXEC, [], "size=64k,mode=755"),
    ],
)
def test_mount_options(options: list[str], flags: int, propagation: list[int], data: str) -> None:
    assert mount_options(options) == (flags, propagation, data)


@pytest.mark.parametrize(
    "key",
    [
        "kernel.panic",
        "vm.swappiness",
        "fs.file-max",
        "kernel.hostname",
        "net",
        "dev.x",
        "net..x",
        "net.ipv4/../../kernel/panic",
        "net/../kernel/panic",
        "/net/x",
    ],
)
def test_sysctls_of_the_host_are_refused(key: str) -> None:
    with pytest.raises(BadInput):
        check_sysctl(key, {"network", "ipc", "uts"})


def test_namespaced_sysctls_need_the_namespace() -> None:
    check_sysctl("net.core.somaxconn", {"network"})
    check_sysctl("net/ipv4/conf/eth0.1/forwarding", {"network"})
    check_sysctl("fs.mqueue.msg_max", {"ipc"})
    check_sysctl("kernel.shmmax", {"ipc"})
    for key in ("net.core.somaxconn", "kernel.shmmax"):
        with pytest.raises(BadInput):
            check_sysctl(key, {"uts"})


def test_exec_joins_the_mount_namespace_last() -> None:
    """After it the host's paths are gone, and the cgroup and filter files with them."""
    plan = exec_plan(
        config()["process"], cgroup_files=["/cg/tasks"], seccomp_program="/cache/filter"
    )
    kinds = [step.args[0] for step in plan if step.op == "join_target"]
    assert kinds[-1] == "mount"
    assert before(plan, "join_cgroup", "join_target") and before(plan, "load_filter", "join_target")
    assert ops(plan)[-1] == "execute"


def test_same_input_same_plan() -> None:
    assert plan_of(config()) == plan_of(config())


def test_default_capabilities_are_dockers() -> None:
    assert caps.mask(caps.DEFAULT) == 0xA80425FB
