"""`pyrun completion`: the scripts are fit for their shells, and Tab finds what there is."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from docs.world import CHECKOUT
from support import PYRUN, Node


def completed(node: Node, *words: str) -> set[str]:
    """What Tab offers behind `pyrun WORDS…`, the last word being the one under the cursor."""
    done = subprocess.run(
        PYRUN,
        env={
            **node.env,
            "_PYRUN_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(["pyrun", *words]),
            "COMP_CWORD": str(len(words)),
        },
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return {line.partition(",")[2] for line in done.stdout.split()}


@pytest.mark.parametrize(
    ("shell", "check"), [("bash", ["bash", "-n"]), ("zsh", ["zsh", "-n"]), ("fish", ["fish", "-n"])]
)
def test_the_script_is_what_its_shell_reads(pyrun: Node, shell: str, check: list[str]) -> None:
    script = pyrun.out("completion", shell)
    assert "_PYRUN_COMPLETE" in script
    if shutil.which(shell):  # zsh and fish are on few machines
        subprocess.run([*check, "/dev/stdin"], input=script, text=True, check=True, timeout=60)


def test_an_unknown_shell_is_refused(pyrun: Node) -> None:
    assert "'tcsh'" in pyrun.fails(125, "completion", "tcsh")


def test_commands_and_options_are_completed(pyrun: Node) -> None:
    assert completed(pyrun, "pod", "cr") == {"create"}
    assert completed(pyrun, "run", "--mem") == {
        "--memory", "--memory-swap", "--memory-reservation"
    }  # fmt: skip


def test_names_of_containers_pods_and_images_are_completed(pyrun: Node) -> None:
    pyrun("create", "--name", "one", "busybox", "true")
    pyrun("pod", "create", "--name", "two", "--container", "busybox sleep 1000")
    assert completed(pyrun, "rm", "") == {"one", "two-busybox"}
    assert completed(pyrun, "rm", "one", "") == {"two-busybox"}
    assert completed(pyrun, "exec", "two") == {"two-busybox"}
    assert completed(pyrun, "pod", "rm", "") == {"two"}
    assert "busybox:latest" in completed(pyrun, "image", "inspect", "")


def test_roots_on_the_command_line_are_heeded(pyrun: Node, tmp_path: object) -> None:
    pyrun("create", "--name", "one", "busybox", "true")
    assert completed(pyrun, "--root", str(tmp_path), "rm", "") == set()


def test_the_reference_is_what_help_says() -> None:
    subprocess.run(["script/docs", "--check"], cwd=CHECKOUT, check=True, timeout=60)
