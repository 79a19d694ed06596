"""The `v2` tests, run on a Linux with cgroup v2 controllers: see tests/vm/uml.py."""

import pytest

from vm import uml

pytestmark = pytest.mark.timeout(900)


def check(outcome: uml.Outcome, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{outcome.summary()}")
    assert not outcome.failed, outcome.story()
    assert not outcome.skipped, outcome.story()
    assert outcome.passed, outcome.story()


@pytest.fixture(autouse=True)
def vm_can_boot() -> None:
    if reason := uml.missing():
        pytest.skip(reason)


def test_every_v2_test_passes_in_a_vm_with_cgroup_v2(capsys: pytest.CaptureFixture[str]) -> None:
    check(uml.run_tests(timeout=800), capsys)


def test_systemd_as_process_one_lends_pyrun_a_cgroup(capsys: pytest.CaptureFixture[str]) -> None:
    check(uml.run_tests("tests/vm/guest_systemd.py", systemd=True, timeout=300), capsys)
