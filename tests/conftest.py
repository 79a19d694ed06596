"""What every test shares. In CI a skip must be the kernel's fault, or the run fails."""

import os

import pytest

from vm.selection import pytest_collection_modifyitems  # noqa: F401  (a hook: see there)

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
