"""Terminals: `run -it`, `exec -it`, `start -ai`, `attach`; the caller's own is always put back."""

from __future__ import annotations

import os
import signal

import pytest

from support import DEADLINE, Node, Terminal, reaped, status_of, wait_until

SHELL = ("busybox", "sh")


def test_run_it_is_a_terminal_of_the_callers_size(pyrun: Node) -> None:
    with Terminal(pyrun, "run", "--rm", "-it", *SHELL, rows=41, columns=91) as terminal:
        terminal.type(b"stty size; tty; test -t 0 -a -t 1 -a -t 2 && echo 'al''l'\n")
        terminal.expect(b"41 91")
        terminal.expect(b"/dev/pts/0")
        terminal.expect(b"all")
        assert terminal.is_raw
        terminal.type(b"exit 3\n")
        assert terminal.wait() == 3
        assert terminal.is_as_before


def test_resizing_reaches_the_program(pyrun: Node) -> None:
    script = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done"
    with Terminal(pyrun, "run", "--name", "one", "-it", "busybox", "sh", "-c", script) as terminal:
        terminal.expect(b"ready")
        terminal.resize(12, 34)
        terminal.expect(b"12 34")
        pyrun("kill", "one")
        assert terminal.wait() == 137


def test_ctrl_c_goes_to_the_program_not_to_pyrun(pyrun: Node) -> None:
    with Terminal(pyrun, "run", "--rm", "-it", *SHELL) as terminal:
        terminal.type(b"echo 'read''y'; sleep 100\n")
        terminal.expect(b"ready")
        terminal.type(b"\x03")
        terminal.type(b"echo 'aft''er'; exit 0\n")
        terminal.expect(b"after")
        assert terminal.wait() == 0


def test_the_terminal_is_put_back_when_the_container_is_killed(pyrun: Node) -> None:
    with Terminal(pyrun, "run", "--name", "one", "-it", *SHELL) as terminal:
        terminal.type(b"echo 'read''y'\n")
        terminal.expect(b"ready")
        pyrun("kill", "one")
        assert terminal.wait() == 137
        assert terminal.is_as_before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_the_terminal_is_put_back_when_pyrun_is_told_to_end(
    pyrun: Node, number: signal.Signals
) -> None:
    with Terminal(pyrun, "run", "--rm", "-it", "busybox", "sh", "-c", "echo ready; exec cat"
                  ) as terminal:  # fmt: skip
        terminal.expect(b"ready")
        terminal.process.send_signal(number)
        terminal.type(b"\x04")
        terminal.wait()
        assert terminal.is_as_before


def test_the_terminal_is_put_back_when_the_supervisor_dies(pyrun: Node) -> None:
    with Terminal(pyrun, "run", "--name", "one", "-it", *SHELL) as terminal:
        terminal.type(b"echo 'read''y'\n")
        terminal.expect(b"ready")
        os.kill(pyrun.supervisor("one"), signal.SIGKILL)
        assert terminal.wait() == 125
        assert terminal.is_as_before


def test_a_failed_start_leaves_the_terminal_alone(pyrun: Node) -> None:
    with Terminal(pyrun, "run", "--rm", "-it", "busybox", "nosuchcommand") as terminal:
        assert terminal.wait() == 127
        assert terminal.is_as_before


def test_detach_keys_leave_it_running_and_attach_comes_back(pyrun: Node) -> None:
    with Terminal(pyrun, "run", "--name", "one", "-it", *SHELL) as terminal:
        terminal.type(b"x=kept; echo 'read''y'\n")
        terminal.expect(b"ready")
        terminal.type(b"\x10\x11")
        assert terminal.wait() == 0
        assert terminal.is_as_before
    assert status_of(pyrun.pid("one"))["State"][0] == "S"
    with Terminal(pyrun, "attach", "one", rows=17, columns=71) as terminal:
        terminal.type(b"echo $x; stty size\n")
        terminal.expect(b"kept")
        terminal.expect(b"17 71")
        # The keys may come one by one.
        terminal.type(b"\x10")
        terminal.type(b"\x11")
        assert terminal.wait() == 0
        assert terminal.is_as_before
    with Terminal(pyrun, "attach", "one") as terminal:
        terminal.type(b"exit 8\n")
        assert terminal.wait() == 8


def test_exec_it(pyrun: Node) -> None:
    name = pyrun.start("busybox", "sleep", "100")
    with Terminal(pyrun, "exec", "-it", name, "sh", rows=21, columns=61) as terminal:
        terminal.type(b"stty size; tty\n")
        terminal.expect(b"21 61")
        terminal.expect(b"/dev/pts/")
        terminal.resize(22, 62)
        wait_until(lambda: size_is(terminal, b"22 62"), "the new size has arrived")
        terminal.type(b"exit 5\n")
        assert terminal.wait() == 5
        assert terminal.is_as_before


def size_is(terminal: Terminal, wanted: bytes) -> bool:
    terminal.type(b"stty size; echo 'en''d'\n")
    return wanted in terminal.expect(b"end")


def test_exec_it_ends_with_the_container(pyrun: Node) -> None:
    name = pyrun.start("busybox", "sleep", "100")
    with Terminal(pyrun, "exec", "-it", name, "sh") as terminal:
        terminal.type(b"echo 'read''y'\n")
        terminal.expect(b"ready")
        pyrun("kill", name)
        assert terminal.wait() in (137, 129)
        assert terminal.is_as_before


def test_a_terminal_without_stdin_and_a_detached_one(pyrun: Node) -> None:
    process = pyrun.spawn("run", "--rm", "-t", "busybox", "sh", "-c", "test -t 1 && echo tty")
    with reaped(process):
        assert process.communicate(timeout=DEADLINE)[0] == b"tty\r\n"
    name = pyrun.start("-it", "busybox", "sh")
    with Terminal(pyrun, "attach", name) as terminal:
        terminal.type(b"echo 'o''k'; exit\n")
        terminal.expect(b"ok")
        assert terminal.wait() == 0


def test_start_attached_with_a_terminal(pyrun: Node) -> None:
    pyrun("create", "--name", "one", "-it", "busybox", "sh")
    with Terminal(pyrun, "start", "-ai", "one") as terminal:
        terminal.type(b"echo 'o''k'; exit 2\n")
        terminal.expect(b"ok")
        assert terminal.wait() == 2
        assert terminal.is_as_before


def test_attach_without_a_terminal_shows_output_and_passes_input(pyrun: Node) -> None:
    name = pyrun.start("-i", "busybox", "sh", "-c", "read x; echo got $x; exit 4")
    process = pyrun.spawn("attach", name)
    with reaped(process):
        out, _ = process.communicate(b"this\n", timeout=DEADLINE)
        assert (out, process.returncode) == (b"got this\n", 4)
    assert "not running" in pyrun.fails(125, "attach", name)


def test_signals_to_an_attached_run_go_to_the_container(pyrun: Node) -> None:
    script = "trap 'echo caught; exit 6' TERM; echo ready; while :; do sleep 0.05; done"
    process = pyrun.spawn("run", "--rm", "busybox", "sh", "-c", script)
    with reaped(process):
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.terminate()
        assert process.stdout.readline() == b"caught\n"
        assert process.wait(DEADLINE) == 6
