"""The commands a newcomer types first: script/setup, and the rule that guards CI."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


def run(*command, **more):
    return subprocess.run(
        command, cwd=CHECKOUT, capture_output=True, text=True, timeout=300, **more
    )


def test_setup_with_nothing_to_do_takes_under_a_second_and_ends_with_one_line():
    run("script/setup", "--dev")
    started = time.monotonic()
    done = run("script/setup")
    took = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("setup: ready: ")
    assert done.stdout.count("\n") == 1
    assert took < 1


def test_setup_refuses_an_unknown_argument():
    done = run("script/setup", "--fast")
    assert done.returncode == 1
    assert done.stderr.endswith("setup: unknown argument: --fast\n")


def test_setup_refuses_an_old_python_and_names_it(tmp_path):
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\necho 3.10\n")
    old.chmod(0o755)
    done = run("script/setup", env=os.environ | {"PYRUN_PYTHON": str(old)})
    assert done.returncode == 1
    assert f"{old} is Python 3.10; pyrun needs 3.11 or newer" in done.stderr


def test_setup_refuses_to_run_without_root():
    # Read from standard input: another user may not be able to reach the checkout.
    with open(CHECKOUT / "script/setup") as script:
        done = run("setpriv", "--reuid=65534", "--clear-groups", "bash", stdin=script)
    assert done.returncode == 1
    assert "run this as root" in done.stderr


def test_the_launcher_is_isolated_and_imports_this_checkout():
    text = Path("/usr/local/bin/pyrun").read_text()
    assert text.startswith(("#!/bin/sh\n", f"#!{CHECKOUT}/.venv/bin/python3 -IS\n"))
    assert " -IS" in text
    assert f'"{CHECKOUT}/runtime"' in text


def pytest_with_one_skip(tmp_path, reason, environment):
    shutil.copy(CHECKOUT / "tests/conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "def test_fine():\n    pass\n"
        f"def test_skipped():\n    pytest.skip({reason!r})\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    return run(*command, env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)})


def test_ci_fails_on_a_skip_that_is_not_the_kernels_fault(tmp_path):
    environment = os.environ | {"CI": "true"}
    done = pytest_with_one_skip(tmp_path, "no time today", environment)
    assert done.returncode == 1
    assert "test_it.py::test_skipped: Skipped: no time today" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("1 passed, 1 skipped")


def test_ci_allows_a_skip_that_is_the_kernels_fault(tmp_path):
    environment = os.environ | {"CI": "true"}
    assert pytest_with_one_skip(tmp_path, "kernel lacks vxlan", environment).returncode == 0


def test_outside_ci_a_skip_is_fine(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "CI"}
    assert pytest_with_one_skip(tmp_path, "no time today", environment).returncode == 0
