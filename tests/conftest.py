"""What every test shares. In CI a skip must be the kernel's fault, or the run fails.

A test that asks for `pyrun` gets a node that is the test run's own (`support.py`), and fails when
it leaves anything behind that `rm -f` does not remove.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import Node, wait_until
from vm.selection import pytest_collection_modifyitems  # noqa: F401  (a hook: see there)

# CI may start us in the background, where shells have SIGINT ignored, and what is ignored stays so
# over execve: Ctrl-C could not be tested. With a handler here our children get the default.
signal.signal(signal.SIGINT, signal.default_int_handler)

ALLOWED_SKIP = "kernel lacks"


def _skip_reasons(terminal: pytest.TerminalReporter) -> list[str]:
    """`where: reason` of every skip whose reason is not one CI allows."""
    found = []
    for report in terminal.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        if not str(reason).removeprefix("Skipped: ").startswith(ALLOWED_SKIP):
            found.append(f"{report.nodeid}: {reason}")
    return found


def pytest_sessionfinish(session: pytest.Session) -> None:
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") != "true" or terminal is None:
        return
    refused = _skip_reasons(terminal)
    if refused:
        terminal.write_line("")
        terminal.write_line(f"skips that CI does not allow (only '{ALLOWED_SKIP} …' is):")
        for line in refused:
            terminal.write_line(f"  {line}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A pyrun with roots, bridge, addresses and cgroups of its own; the busybox image is there."""
    root = tmp_path_factory.mktemp("node")
    run_root = Path(tempfile.mkdtemp(prefix="pyrun-test-", dir="/run"))
    made = Node(root, run_root)
    try:
        assert made.out("run", "--rm", "busybox", "echo", "hello") == "hello"
        wait_until(lambda: not made.traces(), "the first container leaves nothing behind")
        yield made
    finally:
        made.tear_down()


@pytest.fixture
def pyrun(node: Node) -> Iterator[Node]:
    """The node, and after the test nothing more on the host than before it."""
    before = node.traces()
    yield node
    node.remove_everything()

    def left() -> set[str]:
        return node.traces() - before

    try:
        wait_until(lambda: not left(), "everything the test made is gone", 5)
    except AssertionError:
        pytest.fail("left behind:\n  " + "\n  ".join(sorted(left())))
