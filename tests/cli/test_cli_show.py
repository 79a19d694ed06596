"""`pyrun ps`, `inspect` and `logs`."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

from support import DEADLINE, Node, reaped, wait_until


def test_ps_shows_what_runs_and_all_shows_the_rest(pyrun: Node) -> None:
    up = pyrun.start("busybox", "sleep", "100")
    over = pyrun.start("busybox", "sh", "-c", "exit 4")
    pyrun("wait", over)
    text = pyrun.out("ps")
    assert up in text and over not in text and "Up " in text
    assert "Exited (4)" in pyrun.out("ps", "-a")
    rows = {row["name"]: row for row in json.loads(pyrun.out("ps", "-a", "--format", "json"))}
    assert rows[up]["pid"] == pyrun.pid(up) and rows[up]["status"] == "running"
    assert rows[over]["exit_code"] == 4
    ids = pyrun.out("ps", "-aq", "--no-trunc").split()
    assert sorted(ids) == sorted(row["id"] for row in rows.values())


def test_inspect_tells_what_the_kernel_tells(pyrun: Node) -> None:
    name = pyrun.start("--label", "a=b", "-m", "32m", "busybox", "sleep", "100")
    (found,) = json.loads(pyrun.out("inspect", name))
    assert found["state"]["pid"] == pyrun.pid(name)
    assert found["labels"] == {"a": "b"}
    assert found["config"]["linux"]["resources"]["memory"]["limit"] == 32 << 20
    assert os.path.isdir(found["upperdir"])
    assert "no such container" in pyrun.fails(125, "inspect", "nosuch")


# logs


def test_logs_keep_streams_apart_and_lines_whole(pyrun: Node) -> None:
    name = pyrun.start("busybox", "sh", "-c", "echo out; echo err >&2; printf 'no newline'")
    pyrun("wait", name)
    done = pyrun("logs", name)
    assert (done.stdout, done.stderr) == ("out\nno newline", "err\n")
    stamped = pyrun.out("logs", "-t", name)
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z out\n", stamped)


def test_logs_tail_and_since(pyrun: Node) -> None:
    name = pyrun.start("busybox", "sh", "-c", "for i in 1 2 3 4 5; do echo $i; done")
    pyrun("wait", name)
    assert pyrun.out("logs", "--tail", "2", name) == "4\n5"
    assert pyrun.out("logs", "--tail", "0", name) == ""
    assert pyrun.out("logs", "--since", "1h", name).split() == list("12345")
    assert pyrun.out("logs", "--since", "2999-01-01T00:00:00Z", name) == ""
    assert "not a time" in pyrun.fails(125, "logs", "--since", "soon", name)


def test_logs_follow_until_the_end(pyrun: Node) -> None:
    name = pyrun.start("-i", "busybox", "sh", "-c", "echo first; sleep 100; echo last")
    process = pyrun.spawn("logs", "-f", name)
    with reaped(process):
        assert process.stdout is not None
        assert process.stdout.readline() == b"first\n"
        inner = wait_until(lambda: [p for p in pyrun.pids(name) if p != pyrun.pid(name)], "sleeps")
        os.kill(inner[0], 9)
        out, _ = process.communicate(timeout=DEADLINE)
        assert out == b"last\n" and process.returncode == 0


def test_fifty_megabytes_are_kept_byte_for_byte_when_unbounded(pyrun: Node, tmp_path: Path) -> None:
    data = os.urandom(1 << 20) * 50
    (tmp_path / "data").write_bytes(data)
    name = pyrun.start("-v", f"{tmp_path}:/a:ro", "--log-opt", "max-size=0", "busybox", "cat",
                       "/a/data")  # fmt: skip
    assert pyrun.out("wait", name) == "0"
    with (tmp_path / "out").open("wb") as sink:
        process = pyrun.spawn("logs", name, stdout=sink)
        with reaped(process):
            assert process.wait(DEADLINE) == 0
    assert hashlib.sha256((tmp_path / "out").read_bytes()).digest() == hashlib.sha256(data).digest()


def test_logs_are_bounded_by_default_and_rotation_tears_no_line(pyrun: Node) -> None:
    script = "i=0; while [ $i -lt 4000 ]; do echo line $i; i=$((i+1)); done"
    name = pyrun.start("--log-opt", "max-size=20k", "--log-opt", "max-file=3", "busybox",
                       "sh", "-c", script)  # fmt: skip
    pyrun("wait", name)
    directory = pyrun.paths.container(name)
    files = [file for file in os.listdir(directory) if file.startswith("log")]
    assert sorted(files) == ["log", "log.1", "log.2"]
    # A chunk is written whole, so a file may be larger than the bound by one chunk.
    assert all(os.path.getsize(f"{directory}/{file}") < (20 << 10) + (4 << 16) for file in files)
    lines = pyrun.out("logs", name).splitlines()
    first = int(lines[0].split()[1])
    assert lines == [f"line {number}" for number in range(first, 4000)]
    default = pyrun.start("busybox", "sh", "-c", "yes | head -c 80000000 >/dev/null; true")
    order = json.loads(Path(f"{pyrun.paths.container(default)}/record.json").read_text())
    assert order["log_size"] is None


def test_attached_output_is_complete_however_fast_the_log_rotates(pyrun: Node) -> None:
    done = pyrun("run", "--rm", "--log-opt", "max-size=64k", "--log-opt", "max-file=2", "busybox",
                 "seq", "200000")  # fmt: skip
    assert done.stdout == "".join(f"{number}\n" for number in range(1, 200001))


def test_ps_shows_published_ports(pyrun: Node) -> None:
    name = pyrun.start("-p", "127.0.0.1:19191:80", "busybox", "sleep", "1000")
    [row] = [row for row in json.loads(pyrun.out("ps", "--format", "json")) if row["name"] == name]
    assert row["ports"] == ["127.0.0.1:19191->80/tcp"]
    assert "127.0.0.1:19191->80/tcp" in pyrun.out("ps")
