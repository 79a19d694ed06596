"""Cgroups on the host as it is, whatever mixture of v1 and v2, and on pure v2 in the VM."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from kernel.cgroup_lab import inside, left_behind, remove, result, value, wait_forever
from pyrun.cgroup import api, files
from pyrun.errors import BadInput, Conflict, NotFound, PyrunError, Unsupported
from pyrun.explain import steps

MIB = 1 << 20

DEVICES = [
    {"allow": False, "access": "rwm"},
    {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
    {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "r"},
]


@pytest.fixture(params=["host", "v1", pytest.param("v2", marks=pytest.mark.v2)])
def layout(request: pytest.FixtureRequest) -> api.Layout:
    """The host as it is; as if it had no v2 tree; pure v2, where that is the case."""
    found = api.host_layout()
    if request.param == "v2":
        assert found.controllers["memory"].version == 2
    if request.param == "v1":
        if {found.controllers[name].version for name in ("cpu", "memory", "pids", "io")} != {1}:
            pytest.skip("kernel lacks v1 controllers: v2 has them")
        found.unified = None
        found.controllers = {n: h for n, h in found.controllers.items() if h.version == 1}
    return found


@pytest.fixture
def path(layout: api.Layout) -> Iterator[str]:
    """A cgroup path nobody else uses, removed with its parent afterwards."""
    top = f"pyrun-test-{os.getpid()}"
    yield f"{top}/one"
    remove(layout, top)
    assert left_behind(layout, top) == []


def create(layout: api.Layout, path: str, **resources: object) -> None:
    steps.run(api.plan_create(layout, path, resources))


def memory_limit(layout: api.Layout, path: str) -> str:
    version = layout.controllers["memory"].version
    return value(layout, path, "memory", "memory.limit_in_bytes" if version == 1 else "memory.max")


def opens(name: str, flags: int = os.O_RDONLY) -> bool:
    try:
        os.close(os.open(name, flags))
    except PermissionError:
        return False
    return True


def test_create_makes_a_directory_in_every_hierarchy(layout: api.Layout, path: str) -> None:
    create(layout, path)
    assert left_behind(layout, path) == api.directories(layout, path)
    for hierarchy in layout.hierarchies():
        assert os.stat(hierarchy.directory(path)).st_dev == os.stat(hierarchy.mount).st_dev


def test_limits_are_in_the_kernel(layout: api.Layout, path: str) -> None:
    create(
        layout,
        path,
        memory={"limit": 64 * MIB},
        cpu={"shares": 1024, "quota": 50000, "period": 100000},
        pids={"limit": 7},
    )
    assert memory_limit(layout, path) == str(64 * MIB)
    assert value(layout, path, "pids", "pids.max") == "7"
    if layout.controllers["cpu"].version == 1:
        assert value(layout, path, "cpu", "cpu.shares") == "1024"
        assert value(layout, path, "cpu", "cpu.cfs_quota_us") == "50000"
        assert value(layout, path, "cpu", "cpu.cfs_period_us") == "100000"
    else:
        assert value(layout, path, "cpu", "cpu.weight") == "100"
        assert value(layout, path, "cpu", "cpu.max") == "50000 100000"


def test_process_joins_every_hierarchy(layout: api.Layout, path: str) -> None:
    create(layout, path)
    with inside(layout, path, wait_forever) as pid:
        with open(f"/proc/{pid}/cgroup") as lines:
            found = [line.rstrip("\n").split(":", 2) for line in lines]
        for _, names, where in found:
            if names == "name=systemd" or (names == "" and not layout.unified):
                continue
            assert where.endswith("/" + path), (names, where)
        assert api.pids(layout, path) == [pid]


def test_greedy_process_is_killed_and_counted(layout: api.Layout, path: str) -> None:
    create(layout, path, memory={"limit": 16 * MIB, "swap": 16 * MIB})

    def eat() -> int:
        data = bytearray()
        while len(data) < 64 * MIB:
            data += b"x" * MIB
        return 0

    assert result(layout, path, eat) == -signal.SIGKILL
    assert api.oom_kills(layout, path) == 1
    assert api.stats(layout, path)["oom_kills"] == 1


def test_pids_limit_refuses_fork(layout: api.Layout, path: str) -> None:
    create(layout, path, pids={"limit": 1})

    def fork() -> int:
        try:
            if os.fork() == 0:
                os._exit(0)
        except BlockingIOError:
            return 11
        return 0

    assert result(layout, path, fork) == 11


def test_devices_not_on_the_list_are_refused(layout: api.Layout, path: str) -> None:
    create(layout, path, devices=DEVICES)

    def look() -> int:
        answers = opens("/dev/null"), opens("/dev/zero"), opens("/dev/random")
        writing = opens("/dev/null", os.O_RDWR), opens("/dev/zero", os.O_RDWR)
        return 0 if answers == (True, True, False) and writing == (True, False) else 1

    assert result(layout, path, look) == 0


def test_device_list_can_be_changed(layout: api.Layout, path: str) -> None:
    create(layout, path, devices=DEVICES)
    more = [*DEVICES, {"allow": True, "type": "c", "major": 1, "minor": 8, "access": "r"}]
    steps.run(api.plan_update(layout, path, {"devices": more}))
    assert result(layout, path, lambda: not opens("/dev/random")) == 0
    steps.run(api.plan_update(layout, path, {"devices": DEVICES}))
    assert result(layout, path, lambda: opens("/dev/random")) == 0


@pytest.mark.parametrize("limits", [(32, 64), (64, 32), (32, -1), (-1, 16)])
def test_memory_limit_moves_both_ways(
    layout: api.Layout, path: str, limits: tuple[int, int]
) -> None:
    for limit in limits:
        size = limit * MIB if limit > 0 else -1
        resources = {"memory": {"limit": size, "swap": size}}
        if limit == limits[0]:
            create(layout, path, **resources)
        else:
            steps.run(api.plan_update(layout, path, resources))
        assert api.stats(layout, path)["memory"]["limit"] == max(size, 0)


def test_update_leaves_other_limits_alone(layout: api.Layout, path: str) -> None:
    create(layout, path, memory={"limit": 64 * MIB}, pids={"limit": 7})
    steps.run(api.plan_update(layout, path, {"pids": {"limit": 9}}))
    assert memory_limit(layout, path) == str(64 * MIB)
    assert value(layout, path, "pids", "pids.max") == "9"


def test_period_alone_keeps_the_quota(layout: api.Layout, path: str) -> None:
    create(layout, path, cpu={"quota": 20000, "period": 100000})
    steps.run(api.plan_update(layout, path, {"cpu": {"period": 50000}}))
    if layout.controllers["cpu"].version == 1:
        assert value(layout, path, "cpu", "cpu.cfs_quota_us") == "20000"
        assert value(layout, path, "cpu", "cpu.cfs_period_us") == "50000"
    else:
        assert value(layout, path, "cpu", "cpu.max") == "20000 50000"


def test_frozen_process_stands_still_until_thawed(layout: api.Layout, path: str) -> None:
    create(layout, path)
    reading, writing = os.pipe()

    def count() -> int:
        while True:
            os.write(writing, b".")
            time.sleep(0.001)

    with inside(layout, path, count):
        os.read(reading, 1)
        api.freeze(layout, path)
        os.set_blocking(reading, False)
        try:
            while os.read(reading, 65536):
                pass
        except BlockingIOError:
            pass
        time.sleep(0.05)
        with pytest.raises(BlockingIOError):
            os.read(reading, 1)
        api.thaw(layout, path)
        os.set_blocking(reading, True)
        assert os.read(reading, 1) == b"."
    os.close(reading)
    os.close(writing)


def test_kill_ends_processes_that_keep_forking(layout: api.Layout, path: str) -> None:
    create(layout, path, pids={"limit": 20})

    def bomb() -> int:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            try:
                os.fork()
            except BlockingIOError:
                time.sleep(0.001)

    with inside(layout, path, bomb) as pid:
        deadline = time.monotonic() + 20
        while len(api.pids(layout, path)) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        api.kill(layout, path)
        os.waitpid(pid, 0)
        while api.pids(layout, path) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert api.pids(layout, path) == []


def test_kill_sends_other_signals(layout: api.Layout, path: str) -> None:
    create(layout, path)
    with inside(layout, path, wait_forever) as pid:
        api.kill(layout, path, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM


def test_remove_ends_what_is_inside_and_below(layout: api.Layout, path: str) -> None:
    create(layout, path)
    create(layout, f"{path}/deeper")
    with inside(layout, f"{path}/deeper", wait_forever) as pid:
        remove(layout, path)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert left_behind(layout, path) == []
    remove(layout, path)


def test_remove_ends_frozen_processes(layout: api.Layout, path: str) -> None:
    """A process frozen by v1 does not die of SIGKILL before it is thawed."""
    create(layout, f"{path}/deeper")
    with inside(layout, f"{path}/deeper", wait_forever) as pid:
        api.freeze(layout, f"{path}/deeper")
        remove(layout, path)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert left_behind(layout, path) == []


def test_undo_removes_what_a_failed_plan_made(layout: api.Layout, path: str) -> None:
    plan = api.plan_create(layout, path, {"pids": {"limit": 5}})
    plan.append(steps.Step("cgroup.files.set_limit", "/proc/no/such/memory.max", "1", why="Fail"))
    with pytest.raises(NotFound):
        steps.run(plan)
    assert left_behind(layout, path) == []


def test_value_the_kernel_refuses_is_explained(layout: api.Layout, path: str) -> None:
    with pytest.raises(BadInput, match=r"cannot set .*cpu\..* EINVAL") as caught:
        create(layout, path, cpu={"quota": 1, "period": 100000})
    assert caught.value.hint
    assert left_behind(layout, path) == []


def test_limit_without_a_controller_is_an_error(layout: api.Layout, path: str) -> None:
    with pytest.raises(Unsupported, match="no v2 sunshine controller"):
        create(layout, path, pids={"limit": 5}, unified={"sunshine.max": "1"})
    assert left_behind(layout, path) == []


def test_devices_without_their_v1_controller_need_the_v2_tree(
    layout: api.Layout, path: str
) -> None:
    """As on a host whose devices hierarchy is not mounted: a BPF program, or an error."""
    layout.controllers.pop("devices", None)
    if layout.unified is None:
        with pytest.raises(Unsupported, match="devices"):
            create(layout, path, devices=DEVICES)
        return
    create(layout, path, devices=DEVICES)
    assert result(layout, path, lambda: opens("/dev/null") and not opens("/dev/random")) == 1
    steps.run(api.plan_update(layout, path, {"devices": DEVICES[:2]}))
    assert result(layout, path, lambda: opens("/dev/zero")) == 0


def test_disk_weight_without_a_scheduler_for_it_is_an_error(layout: api.Layout, path: str) -> None:
    create(layout, path)
    where = layout.controllers["io"].directory(path)
    names = "io.weight", "io.bfq.weight", "blkio.weight", "blkio.bfq.weight"
    if any(os.path.exists(f"{where}/{name}") for name in names):
        steps.run(api.plan_update(layout, path, {"blockIO": {"weight": 500}}))
    else:
        with pytest.raises(Unsupported, match=r"io.*weight"):
            steps.run(api.plan_update(layout, path, {"blockIO": {"weight": 500}}))


def test_check_before_update_refuses_less_than_is_used(layout: api.Layout, path: str) -> None:
    create(layout, path, memory={"limit": 64 * MIB})
    reading, writing = os.pipe()

    def hold() -> int:
        data = bytearray(b"x" * 8 * MIB)
        os.write(writing, b"!")
        signal.pause()
        return len(data)

    with inside(layout, path, hold) as pid:
        assert os.read(reading, 1)
        lower = {"memory": {"limit": 2 * MIB, "checkBeforeUpdate": True}}
        with pytest.raises(Conflict, match="in use"):
            steps.run(api.plan_update(layout, path, lower))
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    os.close(reading)
    os.close(writing)


def test_stats_count_what_was_used(layout: api.Layout, path: str) -> None:
    create(layout, path, memory={"limit": 64 * MIB}, pids={"limit": 9})

    def busy() -> int:
        end = time.process_time() + 0.1
        while time.process_time() < end:
            pass
        return 0

    assert result(layout, path, busy) == 0
    found = api.stats(layout, path)
    assert found["cpu"]["usage"] >= 50_000_000
    assert found["memory"]["limit"] == 64 * MIB
    assert found["pids"] == {"current": 0, "limit": 9}
    with pytest.raises(NotFound):
        api.stats(layout, path + "-not")


def test_unlimited_shows_as_zero_in_stats(layout: api.Layout, path: str) -> None:
    create(layout, path)
    found = api.stats(layout, path)
    assert found["memory"]["limit"] == found["pids"]["limit"] == 0


def test_freezing_what_is_not_there_is_an_error(layout: api.Layout, path: str) -> None:
    with pytest.raises(NotFound):
        api.freeze(layout, path)


def test_many_creators_and_removers_do_not_disturb_each_other(layout: api.Layout) -> None:
    """The last one out removes the common parent while others make children in it."""
    base = f"pyrun-test-{os.getpid()}-many"

    def come_and_go(number: int) -> None:
        own = f"{base}/{number}"
        for _ in range(3):
            create(layout, own, pids={"limit": 5}, memory={"limit": MIB * 8})
            assert value(layout, own, "pids", "pids.max") == "5"
            where = api.directories(layout, own)
            files.remove(where, api.directories(layout, base))

    try:
        # The executor's undo handles SIGINT, which is the main thread's; only errors undo.
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(come_and_go, range(8)))
        assert left_behind(layout, base) == []
    finally:
        remove(layout, base)


def test_busy_cgroup_is_not_removed_without_killing(
    layout: api.Layout, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "REMOVE_SECONDS", 0.05)
    create(layout, path)
    with inside(layout, path, wait_forever) as pid, pytest.raises(Conflict, match=str(pid)):
        files.remove(api.directories(layout, path), [])


@pytest.mark.v2
@pytest.mark.parametrize("layout", ["v2"], indirect=True)
def test_processes_beside_children_are_explained(layout: api.Layout, path: str) -> None:
    """v2's rule of no internal processes: the parent of a limited cgroup must be empty."""
    create(layout, path)
    with inside(layout, path, wait_forever), pytest.raises(Conflict, match="EBUSY") as caught:
        create(layout, f"{path}/child", memory={"limit": MIB})
    assert "leaf" in caught.value.hint


def test_limit_of_a_controller_enabled_later(layout: api.Layout, path: str) -> None:
    """hugetlb is handed down only when it is asked for, by an update as well."""
    create(layout, path)
    resources = {"hugepageLimits": [{"pageSize": "2MB", "limit": 2 * MIB}]}
    if "hugetlb" not in layout.controllers:
        with pytest.raises(Unsupported, match="hugetlb"):
            api.plan_update(layout, path, resources)
        return
    try:
        steps.run(api.plan_update(layout, path, resources))
    except PyrunError as error:
        assert not os.path.exists("/sys/kernel/mm/hugepages/hugepages-2048kB"), error
        return
    name = "hugetlb.2MB.limit_in_bytes"
    if layout.controllers["hugetlb"].version == 2:
        name = "hugetlb.2MB.max"
    assert value(layout, path, "hugetlb", name) == str(2 * MIB)
