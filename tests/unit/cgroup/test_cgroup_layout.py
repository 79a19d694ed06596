"""Reading a host's cgroup hierarchies from /proc: real texts of different hosts."""

import pytest

from pyrun.cgroup import layout as reading
from pyrun.cgroup.layout import Layout, read_layout
from pyrun.errors import Unsupported
from pyrun.kernel import const

V2 = """\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
27 22 0:23 / /sys rw,nosuid shared:6 - sysfs sysfs rw
31 27 0:27 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate
"""

V1 = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
33 31 0:31 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
34 31 0:35 / /sys/fs/cgroup/blkio rw,relatime - cgroup cgroup rw,blkio
35 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
"""

HYBRID = V1 + "36 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"

SELF_V1 = """\
4:blkio:/
3:memory:/jobs/one
2:cpu,cpuacct:/
1:name=systemd:/init.scope
"""

IN_CONTAINER = """\
31 23 0:28 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755
33 31 0:31 /docker/1f2e /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
"""


def versions(layout: Layout) -> dict[str, int]:
    return {name: hierarchy.version for name, hierarchy in layout.controllers.items()}


def test_v2_host_has_all_controllers_in_one_tree() -> None:
    layout = read_layout(V2, "0::/user.slice/x\n", "cpuset cpu io memory pids\n")
    assert versions(layout) == dict.fromkeys(("cpuset", "cpu", "io", "memory", "pids"), 2)
    assert layout.unified is not None and layout.unified.mount == "/sys/fs/cgroup"
    assert layout.unified.own == "user.slice/x"
    assert layout.hierarchies() == [layout.unified]


def test_v1_host_has_a_tree_for_each_mount() -> None:
    layout = read_layout(V1, SELF_V1)
    assert versions(layout) == {"cpu": 1, "cpuacct": 1, "memory": 1, "io": 1}
    assert layout.controllers["cpu"] is layout.controllers["cpuacct"]
    assert [h.mount.rpartition("/")[2] for h in layout.hierarchies()] == [
        "cpu,cpuacct",
        "memory",
        "blkio",
    ]
    assert layout.controllers["memory"].own == "jobs/one"
    assert layout.unified is None


def test_hybrid_host_is_taken_controller_by_controller() -> None:
    layout = read_layout(HYBRID, SELF_V1 + "0::/\n", "hugetlb")
    assert versions(layout) == {"cpu": 1, "cpuacct": 1, "memory": 1, "io": 1, "hugetlb": 2}
    assert layout.hierarchies()[-1] is layout.unified


def test_hybrid_tree_without_controllers_still_counts() -> None:
    layout = read_layout(HYBRID, SELF_V1 + "0::/\n", "")
    assert layout.unified is not None
    assert layout.unified in layout.hierarchies()


def test_named_tree_has_no_controller_and_gets_no_directory() -> None:
    layout = read_layout(V1, SELF_V1)
    assert layout.named["systemd"].mount == "/sys/fs/cgroup/systemd"
    assert layout.named["systemd"] not in layout.hierarchies()


def test_own_cgroup_is_seen_from_the_mount_in_a_container() -> None:
    layout = read_layout(IN_CONTAINER, "3:memory:/docker/1f2e/inner\n")
    assert layout.controllers["memory"].own == "inner"


def test_compiled_in_but_unmounted_controller_does_not_exist() -> None:
    assert "pids" not in read_layout(V1, SELF_V1).controllers


def test_hidden_mount_does_not_count() -> None:
    hidden = V1 + "50 31 0:60 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
    assert read_layout(hidden, SELF_V1).hierarchies() == []
    assert read_layout(hidden + V2, SELF_V1, "memory").controllers["memory"].version == 2


def test_second_mount_of_the_same_tree_is_ignored() -> None:
    twice = V2 + "60 22 0:27 / /mnt/cgroup rw - cgroup2 cgroup2 rw\n"
    layout = read_layout(twice, "0::/\n", "memory")
    assert layout.controllers["memory"].mount == "/sys/fs/cgroup"


def test_blank_in_a_mount_point_is_unescaped() -> None:
    line = r"33 31 0:31 / /a\040b\134c rw - cgroup cgroup rw,memory"
    assert read_layout(line, "").controllers["memory"].mount == "/a b\\c"


def test_directory_that_is_not_a_cgroup_is_dropped() -> None:
    """/sys/fs/cgroup is a tmpfs on v1 hosts: a folder in it limits nothing."""

    def magic(path: str) -> int:
        return const.TMPFS_MAGIC if path.endswith("memory") else const.CGROUP_SUPER_MAGIC

    layout = reading.really_mounted(read_layout(V1, SELF_V1), magic)
    assert "memory" not in layout.controllers
    assert "cpu" in layout.controllers


def test_host_without_any_cgroup_is_refused_with_a_way_forward() -> None:
    with pytest.raises(Unsupported) as caught:
        reading.really_mounted(read_layout("", ""), lambda _: 0)
    assert "mount -t cgroup2" in caught.value.hint


def test_base_is_systemds_unit_where_systemd_rules() -> None:
    assert read_layout(V2, "0::/\n", "memory").base() == "pyrun"
    assert read_layout(V2, "0::/\n", "memory", True).base() == "machine.slice/pyrun.service"
