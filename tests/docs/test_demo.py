"""script/demo keeps its promises: it shows what it says, and leaves nothing behind."""

from __future__ import annotations

import re
import subprocess

import pytest

from docs.world import CHECKOUT, run_in_world

LOOK = """
echo "== left =="
find /var/lib/pyrun /run/pyrun /run/netns -name '*demo*'
pgrep -a pyrun
ip -o link | grep -v ' lo:'
nft list tables
grep demo- /proc/self/mountinfo
find /sys/fs/cgroup -type d -path '*/pyrun/demo-*'
"""


def left(printed: list[str]) -> list[str]:
    return printed[printed.index("== left ==") + 1 :]


def test_the_demo_shows_a_pod_and_leaves_nothing_behind() -> None:
    demo = f"{CHECKOUT}/script/demo --offline; echo exit code $?"
    _, printed = run_in_world(f"{demo}\n{LOOK}")
    text = "\n".join(printed)
    assert "exit code 0" in printed, text
    assert left(printed) == [], text
    assert "✗" not in text
    last = printed[printed.index("exit code 0") - 1]
    assert last == "demo: done; everything the demo made is removed"
    assert re.search(r"\d+ observations, all as promised", text)


def test_the_demo_can_be_run_again_and_spares_other_pods() -> None:
    _, printed = run_in_world(
        "pyrun pod create --name mine --container 'busybox sleep 1000'\n"
        f"{CHECKOUT}/script/demo --offline >/dev/null; echo exit code $?\n"
        "pyrun pod ps --quiet; pyrun exec mine-busybox echo alive; pyrun images --quiet | wc -l"
    )
    assert printed[-4:] == ["exit code 0", "mine", "alive", "1"]


@pytest.mark.parametrize("at", ["pyrun pod create", "One port space", "Limits are cgroups"])
def test_ctrl_c_leaves_nothing_behind(at: str) -> None:
    demo = f"{CHECKOUT}/script/demo --offline; echo exit code $?"
    _, printed = run_in_world(f"trap : INT\n{demo}\n{LOOK}", interrupt_at=at)
    text = "\n".join(printed)
    assert "exit code 130" in printed, text
    assert "demo: interrupted (exit code 130); nothing of it is left" in printed
    assert left(printed) == [], text


def test_the_demo_does_not_touch_a_pod_of_its_name_that_is_not_its_own() -> None:
    _, printed = run_in_world(
        "pyrun pod create --name demo-shop --container 'busybox sleep 1000'\n"
        f"{CHECKOUT}/script/demo --offline; echo exit code $?; pyrun pod ps --quiet"
    )
    assert printed[-2:] == ["exit code 1", "demo-shop"]
    assert "a pod of yours is called demo-shop" in printed[-3]


def test_an_unknown_argument_is_refused() -> None:
    done = subprocess.run(
        ["script/demo", "--fast"], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.endswith("demo: unknown argument: --fast\n")
