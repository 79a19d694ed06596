"""The executor: order, undo in reverse, what an error says. Steps here act on this very module."""

from __future__ import annotations

from typing import Any

import pytest

from pyrun.errors import BadInput, Conflict, KernelError, StepFailed
from pyrun.explain import steps
from pyrun.explain.steps import Step

LOG: list[str] = []


@pytest.fixture(autouse=True)
def acting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `resolve` find the functions of this module under the name `acts`."""
    LOG.clear()
    functions = {"acts.do": do, "acts.fail": fail, "acts.interrupt": interrupt}
    monkeypatch.setattr(steps, "resolve", functions.__getitem__)


def do(what: str) -> None:
    LOG.append(what)


def fail(error: BaseException) -> None:
    raise error


def interrupt() -> None:
    raise KeyboardInterrupt


def doing(name: str) -> Step:
    return Step("acts.do", f"do {name}", why=f"do {name}", undo=("acts.do", (f"undo {name}",)))


def test_steps_run_in_order() -> None:
    steps.run([doing("a"), doing("b")])
    assert LOG == ["do a", "do b"]


def test_failure_undoes_in_reverse_and_the_failing_step_too() -> None:
    """Ctrl-C may land in the middle of a step, so its own undo runs as well."""
    failing = Step("acts.fail", KernelError(28, "mount(x)"), undo=("acts.do", ("undo c",)))
    with pytest.raises(StepFailed):
        steps.run([doing("a"), doing("b"), failing])
    assert LOG == ["do a", "do b", "undo c", "undo b", "undo a"]


def test_failure_names_step_call_errno_and_cause() -> None:
    failing = Step("acts.fail", KernelError(28, "mount(x)"), why="mount the rootfs")
    with pytest.raises(StepFailed) as caught:
        steps.run([failing])
    error = caught.value
    assert error.message == "cannot mount the rootfs: mount(x): ENOSPC (No space left on device)"
    assert "df -h" in error.hint
    assert "acts.fail" in error.step


def test_interrupt_undoes_and_stays_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt):
        steps.run([doing("a"), Step("acts.interrupt")])
    assert LOG == ["do a", "undo a"]


def test_errors_of_pyrun_keep_their_type() -> None:
    with pytest.raises(BadInput, match="wrong"):
        steps.run([doing("a"), Step("acts.fail", BadInput("wrong"))])
    assert LOG[-1] == "undo a"


def test_a_conflict_is_not_undone_for_it_is_somebody_elses() -> None:
    taken = Step("acts.fail", Conflict("taken"), undo=("acts.do", ("undo taken",)))
    with pytest.raises(Conflict):
        steps.run([doing("a"), taken])
    assert LOG == ["do a", "undo a"]


def test_what_resists_the_undo_is_told_and_the_rest_undone() -> None:
    stuck = Step("acts.do", "do b", undo=("acts.fail", (KernelError(16, "umount(b)"),)))
    with pytest.raises(StepFailed) as caught:
        steps.run([doing("a"), stuck, Step("acts.fail", OSError(2, "gone"))])
    assert LOG[-1] == "undo a"
    assert any("EBUSY" in left for left in caught.value.left)


def test_a_step_is_plain_data() -> None:
    import json

    step = doing("a")
    assert json.loads(json.dumps(step.as_dict())) == {
        "op": "acts.do", "args": ["do a"], "why": "do a",
        "undo": ["acts.do", ["undo a"]], "shell": "", "man": "",
    }  # fmt: skip
    assert step == doing("a") and step != doing("b")


def test_long_arguments_are_cut_in_messages() -> None:
    shown: Any = repr(Step("acts.do", "x" * 500))
    assert len(shown) < 200 and shown.endswith("…)")
