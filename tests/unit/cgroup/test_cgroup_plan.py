"""From linux.resources to steps, for v1 and for v2, without touching a cgroup."""

from typing import Any

import pytest

from pyrun.cgroup import api
from pyrun.cgroup.layout import Layout, read_layout
from pyrun.cgroup.v2 import io_weight, weight
from pyrun.errors import BadInput, Unsupported
from pyrun.explain.steps import Step
from unit.cgroup.test_cgroup_layout import V2

MIB = 1 << 20

V1 = "".join(
    f"{number} 31 0:{number} / /cg/{name} rw - cgroup cgroup rw,{name}\n"
    for number, name in enumerate(
        "cpu cpuset memory blkio pids devices freezer hugetlb rdma net_cls net_prio".split(), 40
    )
)


@pytest.fixture
def v1() -> Layout:
    return read_layout(V1, "")


@pytest.fixture
def v2() -> Layout:
    return read_layout(V2, "0::/\n", "cpuset cpu io memory hugetlb pids rdma")


def writes(layout: Layout, **resources: Any) -> list[str]:
    """`file=value` for every limit an update of cgroup `a/b` writes, in order."""
    found: list[str] = []
    for step in api.plan_update(layout, "a/b", resources):
        if step.op == "cgroup.files.set_limit":
            pairs = [step.args[:2]]
        elif step.op == "cgroup.files.set_pair":
            pairs = [step.args[:2], step.args[2:4]]
        elif step.op == "cgroup.files.set_any":
            pairs = step.args[0]
        else:
            continue
        found += [f"{path.rpartition('/')[2]}={value}" for path, value in pairs]
    return found


def ops(plan: list[Step]) -> list[str]:
    return [step.op for step in plan]


@pytest.mark.parametrize(
    ("resources", "expected_v1", "expected_v2"),
    [
        (
            {"memory": {"limit": 64 * MIB, "swap": 96 * MIB}},
            [f"memory.limit_in_bytes={64 * MIB}", f"memory.memsw.limit_in_bytes={96 * MIB}"],
            [f"memory.swap.max={32 * MIB}", f"memory.max={64 * MIB}"],
        ),
        (
            {"memory": {"limit": 64 * MIB, "swap": 64 * MIB}},
            [f"memory.limit_in_bytes={64 * MIB}", f"memory.memsw.limit_in_bytes={64 * MIB}"],
            ["memory.swap.max=0", f"memory.max={64 * MIB}"],
        ),
        (
            {"memory": {"limit": -1}},
            ["memory.limit_in_bytes=-1", "memory.memsw.limit_in_bytes=-1"],
            ["memory.swap.max=max", "memory.max=max"],
        ),
        (
            {"memory": {"limit": 64 * MIB, "reservation": 32 * MIB}},
            [f"memory.limit_in_bytes={64 * MIB}", f"memory.soft_limit_in_bytes={32 * MIB}"],
            [f"memory.max={64 * MIB}", f"memory.low={32 * MIB}"],
        ),
        (
            {"cpu": {"shares": 1024, "quota": 50000, "period": 100000}},
            ["cpu.shares=1024", "cpu.cfs_period_us=100000", "cpu.cfs_quota_us=50000"],
            ["cpu.weight=100", "cpu.max=50000 100000"],
        ),
        ({"cpu": {"quota": -1}}, ["cpu.cfs_quota_us=-1"], ["cpu.max=max"]),
        (
            {"cpu": {"quota": 50000, "burst": 1000}},
            ["cpu.cfs_quota_us=50000", "cpu.cfs_burst_us=1000"],
            ["cpu.max=50000", "cpu.max.burst=1000"],
        ),
        ({"cpu": {"idle": 1, "shares": 5}}, ["cpu.idle=1"], ["cpu.idle=1"]),
        (
            {"cpu": {"cpus": "0-1", "mems": "0"}},
            ["cpuset.cpus=0-1", "cpuset.mems=0"],
            ["cpuset.cpus=0-1", "cpuset.mems=0"],
        ),
        ({"pids": {"limit": 64}}, ["pids.max=64"], ["pids.max=64"]),
        ({"pids": {"limit": -1}}, ["pids.max=max"], ["pids.max=max"]),
        (
            {"blockIO": {"weight": 500}},
            ["blkio.weight=500", "blkio.bfq.weight=500"],
            ["io.bfq.weight=500", "io.weight=4950"],
        ),
        (
            {"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1000}]}},
            ["blkio.throttle.read_bps_device=8:0 1000"],
            ["io.max=8:0 rbps=1000"],
        ),
        (
            {"blockIO": {"throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 0}]}},
            ["blkio.throttle.write_iops_device=8:0 0"],
            ["io.max=8:0 wiops=max"],
        ),
        (
            {"hugepageLimits": [{"pageSize": "2MB", "limit": 4096}]},
            ["hugetlb.2MB.limit_in_bytes=4096"],
            ["hugetlb.2MB.max=4096", "hugetlb.2MB.rsvd.max=4096"],
        ),
        (
            {"rdma": {"mlx5": {"hcaHandles": 3, "hcaObjects": 4}}},
            ["rdma.max=mlx5 hca_handle=3 hca_object=4"],
            ["rdma.max=mlx5 hca_handle=3 hca_object=4"],
        ),
        ({"memory": {}, "cpu": {"shares": 0}, "pids": {}}, [], []),
    ],
)
def test_resources_become_file_values(
    v1: Layout,
    v2: Layout,
    resources: dict[str, Any],
    expected_v1: list[str],
    expected_v2: list[str],
) -> None:
    assert writes(v1, **resources) == expected_v1
    assert writes(v2, **resources) == expected_v2


@pytest.mark.parametrize(
    "resources",
    [
        {"memory": {"swappiness": 10}},
        {"memory": {"disableOOMKiller": True}},
        {"memory": {"kernel": 1}},
        {"memory": {"kernelTCP": 1}},
        {"cpu": {"realtimeRuntime": 1}},
        {"blockIO": {"leafWeight": 10}},
        {"network": {"classID": 1}},
        {"network": {"priorities": [{"name": "eth0", "priority": 1}]}},
        {"unified": {"misc.max": "x 1"}},
    ],
)
def test_what_v2_cannot_do_is_refused_with_a_hint(v2: Layout, resources: dict[str, Any]) -> None:
    with pytest.raises(Unsupported) as caught:
        api.plan_create(v2, "a", resources)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("section", "content"),
    [
        ("memory", {"limit": 1}),
        ("cpu", {"shares": 2}),
        ("cpu", {"cpus": "0"}),
        ("pids", {"limit": 1}),
        ("blockIO", {"weight": 10}),
        ("hugepageLimits", [{"pageSize": "2MB", "limit": 1}]),
        ("rdma", {"x": {"hcaHandles": 1}}),
        ("network", {"classID": 1}),
        ("unified", {"memory.high": "1"}),
        ("devices", [{"allow": False}]),
    ],
)
def test_limit_without_its_controller_is_refused(section: str, content: Any) -> None:
    bare = read_layout("40 31 0:40 / /cg/freezer rw - cgroup cgroup rw,freezer\n", "")
    with pytest.raises(Unsupported, match="this host has no") as caught:
        api.plan_create(bare, "a", {section: content})
    assert "freezer (v1)" in caught.value.hint


@pytest.mark.parametrize("memory", [{"limit": 2 * MIB, "swap": MIB}, {"limit": -1, "swap": MIB}])
def test_swap_below_memory_is_refused(v1: Layout, v2: Layout, memory: dict[str, int]) -> None:
    for layout in (v1, v2):
        with pytest.raises(BadInput):
            api.plan_create(layout, "a", {"memory": memory})


def test_swap_without_memory_limit_is_refused_on_v2(v2: Layout) -> None:
    with pytest.raises(BadInput, match="without a memory limit"):
        api.plan_create(v2, "a", {"memory": {"swap": MIB}})


@pytest.mark.parametrize("path", ["", "/", "a/../b", "a//b", "a/./b"])
def test_path_that_leaves_its_place_is_refused(v2: Layout, path: str) -> None:
    with pytest.raises(BadInput):
        api.plan_create(v2, path, {})
    with pytest.raises(BadInput):
        api.plan_remove(v2, path)


def test_defaults_and_extremes_of_shares_meet_those_of_weight() -> None:
    assert [weight(shares) for shares in (1, 2, 1024, 262144, 1 << 30)] == [1, 1, 100, 10000, 10000]
    values = [weight(shares) for shares in range(2, 262144, 97)]
    assert values == sorted(values)


def test_disk_weight_spans_both_scales() -> None:
    assert [io_weight(value) for value in (10, 500, 1000)] == [1, 4950, 10000]


def test_plan_makes_directories_before_limits(v1: Layout, v2: Layout) -> None:
    resources = {"pids": {"limit": 5}}
    assert ops(api.plan_create(v1, "pyrun/web", resources)) == [
        "cgroup.v1.make",
        "cgroup.v1.inherit_cpuset",
        "cgroup.files.set_limit",
    ]
    assert ops(api.plan_create(v2, "pyrun/web", resources)) == [
        "cgroup.v2.make",
        "cgroup.files.set_limit",
    ]


def test_every_step_explains_itself(v1: Layout, v2: Layout) -> None:
    resources = {
        "memory": {"limit": MIB},
        "cpu": {"period": 5},
        "devices": [{"allow": False}],
        "blockIO": {"weight": 10},
    }
    for layout in (v1, v2):
        plan = api.plan_create(layout, "pyrun/web", resources)
        for step in plan + api.plan_remove(layout, "pyrun/web"):
            assert step.why and step.shell and step.man
            assert step.why[0].islower()
            assert ("cgroup-v1" not in step.man) or layout is v1


def test_common_parent_is_removed_with_the_last_cgroup_only_of_ours(v2: Layout) -> None:
    assert api.plan_remove(v2, "pyrun/web")[-1].args[1] == ["/sys/fs/cgroup/pyrun"]
    assert api.plan_remove(v2, "pyrun/web/nginx")[-1].args[1] == []
    assert api.plan_remove(v2, "other/web")[-1].args[1] == []


def test_systemd_is_asked_first_and_its_levels_are_left_alone() -> None:
    layout = read_layout(V2, "0::/\n", "memory pids", True)
    plan = api.plan_create(layout, f"{layout.base()}/web", {})
    assert ops(plan) == ["cgroup.systemd.delegate", "cgroup.v2.make"]
    assert plan[0].args == ("/sys/fs/cgroup/machine.slice/pyrun.service",)
    assert plan[0].undo is None
    assert plan[1].args[-1] == 2
    assert ops(api.plan_create(layout, "elsewhere/web", {})) == ["cgroup.v2.make"]


def test_init_joins_v1_by_tasks_and_leaves_v2_to_clone(v1: Layout, v2: Layout) -> None:
    assert "/cg/memory/a/tasks" in api.join_files(v1, "a")
    assert api.join_files(v2, "a") == []
    assert api.join_files(v2, "a", unified=True) == ["/sys/fs/cgroup/a/cgroup.procs"]
    assert api.unified_directory(v1, "a") is None


def test_unified_writes_each_line_by_itself(v2: Layout) -> None:
    values = {"io.max": "8:0 rbps=1\n8:16 rbps=2", "memory.high": "100"}
    assert writes(v2, unified=values) == [
        "io.max=8:0 rbps=1",
        "io.max=8:16 rbps=2",
        "memory.high=100",
    ]
    with pytest.raises(BadInput):
        writes(v2, unified={"memory.high/../../x": "1"})


def test_costly_v2_controllers_are_enabled_only_when_asked_for(v2: Layout) -> None:
    assert api.plan_create(v2, "a", {})[0].args[2] == ["cpuset", "cpu", "io", "memory", "pids"]
    resources = {"hugepageLimits": [{"pageSize": "2MB", "limit": 1}]}
    step = api.plan_update(v2, "a", resources)[0]
    assert "hugetlb" in step.args[2] and step.args[3] == ["hugetlb"]
    assert step.undo is None


def test_devices_go_to_v1_where_it_has_them_else_to_bpf(v1: Layout, v2: Layout) -> None:
    rules = [{"allow": False}, {"allow": True, "type": "c", "major": 1, "minor": 3}]
    (step,) = api.plan_update(v1, "a", {"devices": rules})
    assert step.args == ("/cg/devices/a", [["deny", "a"], ["allow", "c 1:3 rwm"]])
    (step,) = api.plan_update(v2, "a", {"devices": rules})
    assert step.op == "kernel.bpf.set_device_rules"
    assert step.args == ("/sys/fs/cgroup/a", False, [[True, "c", 1, 3, "rwm"]])
