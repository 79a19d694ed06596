"""A full disk: one clear error, nothing half made, no output lost."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import Node, lines, running, wait_until


@pytest.fixture
def small(tmp_path: Path, node: Node) -> Iterator[Node]:
    """A second node whose root is a file system of a few megabytes."""
    root = tmp_path / "small"
    root.mkdir()
    running("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(root))
    made = Node(root, Path(tempfile.mkdtemp(prefix="pyrun-test-", dir="/run")))
    try:
        made("run", "--rm", "--network", "none", "busybox", "true")
        yield made
    finally:
        (root / "filler").unlink(missing_ok=True)
        made.remove_everything()
        wait_until(lambda: not made.traces(), "nothing of the small node is left")
        made("network", "rm")
        running("rm", "-r", made.paths.run_root)
        running("umount", str(root))
        for top in Path("/sys/fs/cgroup").glob(f"*/pyrun/{made.paths.tag}"):
            top.rmdir()


def fill(node: Node) -> None:
    with open(f"{node.paths.root}/filler", "ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            assert error.errno == 28


def test_a_full_disk_is_one_clear_error_and_the_verbs_work_on(small: Node) -> None:
    up = small.start("--network", "none", "busybox", "sleep", "100")
    before = small.traces()
    fill(small)
    error = small.fails(125, "run", "--network", "none", "busybox", "true")
    assert "ENOSPC" in error and "full" in error
    assert small.traces() - before == {f"file {small.paths.root}/filler"} - before
    assert up in small.out("ps")
    small("stop", "-t", "0", up)
    assert "Exited (137)" in small.out("ps", "-a")
    small("rm", up)
    assert small.out("ps", "-aq") == ""


def test_output_waits_for_space_and_none_of_it_is_lost(small: Node) -> None:
    name = small.start("--network", "none", "-i", "busybox", "sh", "-c",
                       "sleep 100; seq 30000; sleep 100")  # fmt: skip
    fill(small)
    sleeping = wait_until(
        lambda: [p for p in small.pids(name) if p != small.pid(name)], "it sleeps"
    )
    os.kill(sleeping[0], 9)

    def blocked() -> bool:
        # A system call with descriptor 1: write(2) to its stdout, in which it sleeps.
        return any(lines(f"/proc/{p}/syscall")[0].split()[1:2] == ["0x1"] for p in small.pids(name))

    wait_until(blocked, "the writer waits")
    os.unlink(f"{small.paths.root}/filler")
    wait_until(lambda: small.out("logs", name).endswith("\n30000"), "all is written")
    assert small.out("logs", name) == "\n".join(str(n) for n in range(1, 30001))
