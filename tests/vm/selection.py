"""Which tests run where: `v2` ones need cgroup v2 controllers, which some hosts do not have.

On a host without them they are deselected, not skipped: `tests/kernel/test_in_vm.py` runs them all
inside the test VM, so nothing is left out. tests/conftest.py imports the hook.
"""

from __future__ import annotations

import os

import pytest

NEEDED = {"cpu", "io", "memory", "pids"}


def host_has_v2() -> bool:
    """Whether the controllers the tests use are on cgroup v2 here."""
    from pyrun.cgroup.layout import host_layout

    layout = host_layout()
    return layout.unified is not None and set(layout.unified.controllers) >= NEEDED


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the `v2` tests where they cannot run. Inside the VM none is ever left out."""
    marked = [item for item in items if item.get_closest_marker("v2")]
    if not marked or os.environ.get("PYRUN_IN_VM") or host_has_v2():
        return
    config.hook.pytest_deselected(items=marked)
    items[:] = [item for item in items if item not in marked]
