"""`pyrun create`, `start` and `restart`."""

from __future__ import annotations

import os
import time
from pathlib import Path

from support import Node, read, status_of, wait_until


def test_create_makes_files_and_no_process(pyrun: Node) -> None:
    before = pyrun.traces()
    id_ = pyrun.out("create", "--name", "one", "busybox", "sleep", "100")
    assert len(id_) == 64
    made = pyrun.traces() - before
    assert not [trace for trace in made if not trace.startswith("file ")]
    assert {trace for trace in made if pyrun.paths.root not in trace} == {
        f"file {pyrun.paths.run_root}/locks/one"
    }
    assert "Created" in pyrun.out("ps", "-a") and "one" not in pyrun.out("ps")


def test_a_created_container_starts_by_id_prefix(pyrun: Node) -> None:
    id_ = pyrun.out("create", "--name", "one", "busybox", "sleep", "100")
    assert pyrun.out("start", id_[:10]) == id_[:10]
    assert status_of(pyrun.pid("one"))["Name"] == "sleep"


def test_start_of_what_runs_changes_nothing(pyrun: Node) -> None:
    name = pyrun.start("busybox", "sleep", "100")
    pid = pyrun.pid(name)
    pyrun("start", name)
    assert pyrun.pid(name) == pid


def test_start_again_keeps_the_changes_to_the_rootfs(pyrun: Node) -> None:
    name = pyrun.start("busybox", "sh", "-c", "echo x >> /count; wc -l < /count")
    pyrun("wait", name)
    for count in (2, 3):
        pyrun("start", name)
        assert pyrun.out("wait", name) == "0"
        assert pyrun.out("logs", name).splitlines()[-1] == str(count)


def test_start_attached_shows_the_output_and_gives_the_code(pyrun: Node) -> None:
    pyrun("create", "-i", "--name", "one", "busybox", "sh", "-c", "read x; echo got $x; exit 5")
    done = pyrun("start", "-a", "-i", "one", input="this\n", check=False)
    assert (done.stdout, done.returncode) == ("got this\n", 5)


def test_start_of_several_goes_on_after_a_failure(pyrun: Node) -> None:
    name = pyrun.out("create", "busybox", "sleep", "100")
    done = pyrun("start", "nosuch", name, check=False)
    assert done.returncode == 125 and "no such container" in done.stderr
    assert done.stdout == f"{name}\n"


def test_create_fails_for_a_command_that_only_start_can_miss(pyrun: Node) -> None:
    pyrun("create", "--name", "one", "busybox", "nosuchcommand")
    for attach in ([], ["-a"]):
        assert "nosuchcommand" in pyrun.fails(127, "start", *attach, "one")
        # It is as it was before: there, not running, and it can be tried again.
        left = {trace for trace in pyrun.traces() if not trace.startswith("file ")}
        assert not left
        assert "Created" in pyrun.out("ps", "-a")
    pyrun("rm", "one")


def test_a_failed_start_keeps_how_it_had_ended_before(pyrun: Node, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    pyrun("run", "--name", "one", "-v", f"{volume}:/v", "busybox", "sh", "-c", "exit 4",
          check=False)  # fmt: skip
    volume.rmdir()
    pyrun.fails(125, "start", "one")
    assert "Exited (4)" in pyrun.out("ps", "-a")
    volume.mkdir()
    assert pyrun("start", "-a", "one", check=False).returncode == 4


def test_restart_is_a_new_process_in_the_same_container(pyrun: Node) -> None:
    name = pyrun.start("--stop-signal", "KILL", "busybox", "sh", "-c", "echo x >> /c; sleep 100")
    pid = pyrun.pid(name)
    wait_until(lambda: os.path.exists(f"/proc/{pid}/root/c"), "it has written")
    pyrun("restart", name)
    again = pyrun.pid(name)
    assert again != pid and not os.path.exists(f"/proc/{pid}")
    wait_until(lambda: read(f"/proc/{again}/root/c") == "x\nx\n", "it has written again")


def test_restart_of_what_does_not_run_starts_it(pyrun: Node) -> None:
    pyrun("create", "--name", "one", "busybox", "sleep", "100")
    start = time.monotonic()
    pyrun("restart", "one")
    assert pyrun.pid("one") and time.monotonic() - start < 5
