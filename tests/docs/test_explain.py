"""`pyrun --explain`: every step says what, why and how else, in sentences of one kind."""

from __future__ import annotations

import re
import subprocess
from typing import NamedTuple

from support import Node

HEAD = re.compile(r" *(\d+)\. (.*)")
CALL = re.compile(r"       (\w[\w.]*)\((.*)\)  \[(.*)\]")


class Told(NamedTuple):
    number: int
    why: str
    op: str
    shell: list[str]


def told(text: str) -> list[Told]:
    """The steps in what `--explain` printed. An argument may be a text of several lines."""
    found: list[Told] = []
    for line in text.splitlines():
        if match := HEAD.fullmatch(line):
            found.append(Told(int(match[1]), match[2], "", []))
        elif found and (match := re.match(r"       (\w[\w.]*)\(", line)) and not found[-1].op:
            found[-1] = found[-1]._replace(op=match[1])
        elif found and line.startswith("       $ "):
            found[-1].shell.append(line[9:])
    return found


def explained(node: Node, *args: str) -> list[Told]:
    return told(node("--explain", *args).stderr)


def check(steps: list[Told]) -> None:
    assert steps
    assert [step.number for step in steps] == list(range(1, len(steps) + 1))
    for step in steps:
        assert step.op, step
        sentence = re.sub(r"^inside \S+: ", "", step.why)
        assert sentence[0].islower() and not sentence.endswith("."), step
        for line in step.shell:
            # What could be typed must at least be shell.
            subprocess.run(["bash", "-n"], input=line, text=True, check=True, timeout=10)


def test_the_life_of_a_pod_is_told(pyrun: Node) -> None:
    create = explained(
        pyrun, "pod", "create", "--name", "web", "-p", "127.0.0.1::80",
        "--container", "one=busybox sleep 1000",
    )  # fmt: skip
    check(create)
    whys = [step.why for step in create]
    for text in ("take the name web", "make a new network namespace", "lay a cable"):
        assert [why for why in whys if text in why], text
    inside = [step for step in create if step.why.startswith("inside web-one: ")]
    assert inside[-1].op == "execute"
    assert "pivot_root" in [step.op for step in inside]

    check(explained(pyrun, "exec", "web-one", "true"))
    stop = explained(pyrun, "pod", "stop", "-t", "0", "web")
    check(stop)
    assert stop[0].op == "kernel.process.kill_pid"
    check(explained(pyrun, "pod", "start", "web"))
    remove = explained(pyrun, "pod", "rm", "-f", "web")
    check(remove)
    assert "network.link.delete" in [step.op for step in remove]


def test_run_and_rm_are_told(pyrun: Node) -> None:
    check(
        explained(pyrun, "run", "-d", "--name", "web", "--memory", "64m", "busybox", "sleep", "9")
    )
    check(explained(pyrun, "stop", "-t", "0", "web"))
    check(explained(pyrun, "rm", "web"))


def test_the_story_goes_to_stderr_and_the_answer_to_stdout(pyrun: Node) -> None:
    done = pyrun("--explain", "run", "--rm", "busybox", "echo", "hello")
    assert done.stdout == "hello\n"


def test_a_failing_create_tells_what_it_takes_back(pyrun: Node) -> None:
    story = pyrun.fails(127, "--explain", "pod", "create", "--name", "web",
                        "--container", "busybox no-such-program")  # fmt: skip
    undone = re.findall(r"^undo ([\w.]+)\(", story, re.M)
    assert {"network.link.delete", "kernel.namespaces.unpin", "container.spawn.end_supervisor"} <= {
        *undone
    }
    done = [step.op for step in told(story)]
    assert undone.index("network.link.delete") < undone.index("container.spawn.end_supervisor")
    assert "network.link.add_veth" in done
