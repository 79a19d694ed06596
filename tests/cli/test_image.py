"""`pyrun image …` as a user types it."""

from __future__ import annotations

import gzip
import json
import os
import pty
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from image_lab import contents, unmount_all
from imagebuild import Layout, Tar
from pyrun.image.store import ImageStore
from support import PYRUN, Node, wait_until

LAYER = Tar().dir("etc").file("etc/motd", b"hello\n").file("tool", bytes(2_000_000)).end()


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Node]:
    """A node without a single image."""
    node = Node(tmp_path / "root", tmp_path / "run")
    yield node
    assert unmount_all(tmp_path) == []


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout()
    history = [
        {"created": "2024-01-02T03:04:05Z", "created_by": "/bin/sh -c #(nop) ADD file:1 in / "},
        {"created": "2024-01-02T03:04:06Z", "created_by": "CMD", "empty_layer": True},
    ]
    made.image(LAYER, name="docker.io/library/web:1", config={"history": history})
    made.write(str(tmp_path / "layout"))
    return made


@pytest.fixture
def loaded(bare: Node, layout: Layout, tmp_path: Path) -> Node:
    bare("image", "load", tmp_path / "layout")
    return bare


def test_load_says_what_it_loaded_and_how_far_it_is(
    bare: Node, layout: Layout, tmp_path: Path
) -> None:
    done = bare("image", "load", "-i", tmp_path / "layout")
    assert done.stdout == "Loaded image: web:1\n"
    (line,) = done.stderr.splitlines()  # in a pipe: one line for each layer, nothing that moves
    assert line.startswith("layer 1/1 sha256:")
    again = bare("image", "load", tmp_path / "layout", "-q")
    assert again.stdout.startswith("sha256:")
    assert again.stderr == ""


@pytest.mark.parametrize("how", ["-", None])
def test_load_reads_standard_input(
    bare: Node, layout: Layout, tmp_path: Path, how: str | None
) -> None:
    archive = tmp_path / "a.tgz"
    archive.write_bytes(gzip.compress(layout.archive()))
    with open(archive, "rb") as file:
        subprocess.run(
            [*PYRUN, "image", "load", *([how] if how else [])],
            env=bare.env, stdin=file, check=True, capture_output=True,
        )  # fmt: skip
    assert bare.out("image", "ls", "-q")


def test_load_under_another_name(bare: Node, layout: Layout, tmp_path: Path) -> None:
    assert "mine:2" in bare.out("image", "load", tmp_path / "layout", "--name", "mine:2")
    assert "web" not in bare.out("image", "ls")


def test_progress_on_a_terminal_is_one_line_that_is_erased(
    bare: Node, layout: Layout, tmp_path: Path
) -> None:
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [*PYRUN, "image", "load", str(tmp_path / "layout")],
        env=bare.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=follower,
    ) as process:  # fmt: skip
        os.close(follower)
        shown = b""
        while True:
            try:
                data = os.read(leader, 4096)
            except OSError:  # EIO: the other side is closed
                break
            if not data:
                break
            shown += data
        process.wait()
    os.close(leader)
    assert process.returncode == 0
    assert b"layer 1/1 sha256:" in shown
    assert shown.rstrip().endswith(b"MB") or shown.rstrip().endswith(b"kB")


def test_ls(loaded: Node) -> None:
    header, row = loaded.out("image", "ls").splitlines()
    assert header.split() == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
    cells = row.split()
    assert cells[:2] == ["web", "1"]
    assert len(cells[2]) == 12
    assert cells[-1] == "2MB"
    assert loaded.out("image", "ls", "-q") == cells[2]
    assert "sha256:" in loaded.out("image", "ls", "--digests")
    (entry,) = json.loads(loaded.out("image", "ls", "--format", "json"))
    assert entry["Names"] == ["docker.io/library/web:1"]
    assert entry["Size"] == 2_000_006


def test_inspect_knows_by_name_id_and_digest(loaded: Node) -> None:
    (one,) = json.loads(loaded.out("image", "inspect", "web:1"))
    assert one["RepoTags"] == ["web:1"]
    assert one["Config"]["Cmd"] == ["/bin/sh"]
    assert os.path.isdir(one["LowerDirs"][0])
    for ref in (one["Id"], one["Id"][7:15], one["RepoDigests"][0]):
        assert json.loads(loaded.out("image", "inspect", ref)) == [one]


def test_history_newest_first(loaded: Node) -> None:
    header, command, layer = loaded.out("image", "history", "web:1").splitlines()
    assert header.split() == ["LAYER", "CREATED", "CREATED", "BY", "COMMENT"]
    assert command.split()[0] == "-"
    assert "ADD file:1" in layer
    steps = json.loads(loaded.out("image", "history", "web:1", "--format", "json"))
    assert [bool(step["layer"]) for step in steps] == [False, True]


def test_tag_and_rm(loaded: Node) -> None:
    loaded("image", "tag", "web:1", "localhost/other")
    assert loaded.out("image", "rm", "web:1") == "untagged: docker.io/library/web:1"
    assert "deleted: sha256:" in loaded.out("image", "rm", "localhost/other:latest")
    assert loaded.out("image", "ls", "-q") == ""
    assert contents(ImageStore(loaded.paths)) == []


def test_rm_of_several_goes_on_after_an_error(loaded: Node) -> None:
    error = loaded.fails(125, "image", "rm", "nothing", "web:1")
    assert "no image 'nothing'" in error
    assert loaded.out("image", "ls", "-q") == ""


def test_rm_by_id_of_an_image_with_two_names_wants_force(loaded: Node) -> None:
    loaded("image", "tag", "web:1", "localhost/other")
    image_id = loaded.out("image", "ls", "-q").splitlines()[0]
    assert "-f" in loaded.fails(125, "image", "rm", image_id)
    loaded("image", "rm", "-f", image_id)
    assert loaded.out("image", "ls", "-q") == ""


def test_mount_prints_a_read_only_tree(loaded: Node) -> None:
    tree = loaded.out("image", "mount", "web:1")
    assert Path(tree, "etc/motd").read_text() == "hello\n"
    assert loaded.out("image", "mount", "web:1") == tree
    assert "in use" in loaded.fails(125, "image", "rm", "web:1")
    loaded("image", "unmount", "web:1")
    assert not os.path.exists(tree)
    assert "not mounted" in loaded.fails(125, "image", "unmount", "web:1")


def test_import(bare: Node, tmp_path: Path) -> None:
    (tmp_path / "r.tar").write_bytes(LAYER)
    image_id = bare.out(
        "image", "import", tmp_path / "r.tar", "mine:1", "--change", "CMD sleep 1", "-m", "why"
    )
    (one,) = json.loads(bare.out("image", "inspect", "mine:1"))
    assert one["Id"] == image_id
    assert one["Config"] == {"Cmd": ["/bin/sh", "-c", "sleep 1"]}
    assert "why" in bare.out("image", "history", "mine:1")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["inspect", "nothing"], "no image 'nothing'"),
        (["inspect", "UPPER"], "no image name"),
        (["inspect", "a b"], "no image name"),
        (["history", "web@sha256:12"], "digest"),
        (["tag", "web:1", "bad:ta/g"], "tag"),
        (["tag", "web:1", f"x@sha256:{'0' * 64}"], "digest"),
        (["load", "/nowhere"], "cannot open"),
        (["load", "/dev/null"], "empty"),
        (["load", "/etc"], "index.json"),
        (["load", "/etc/hostname"], "not a tar|truncated"),
        (["import", "/dev/null"], "empty"),
        (["import", "/etc/hostname", "x"], "not a tar|truncated"),
        (["import", "/dev/null", "--change", "RUN x"], "not understood"),
        (["rm"], "Missing argument"),
        (["mount", "nothing"], "no image"),
        (["nonsense"], "No such command"),
    ],
)
def test_bad_input_is_one_clear_error(loaded: Node, args: list[str], said: str) -> None:
    import re

    before = contents(ImageStore(loaded.paths))
    error = loaded.fails(125, "image", *args)
    assert re.search(said, error), error
    assert contents(ImageStore(loaded.paths)) == before


def test_rm_names_the_containers_that_need_the_image(pyrun: Node) -> None:
    name = pyrun.start("busybox", "sleep", "1000")
    error = pyrun.fails(125, "image", "rm", "busybox")
    assert f"in use by {name}" in error
    assert pyrun.out("run", "--rm", "busybox", "echo", "still here") == "still here"
    pyrun("rm", "-f", name)


def test_ctrl_c_while_reading_a_pipe_leaves_nothing(bare: Node) -> None:
    process = bare.spawn("image", "load")
    assert process.stdin is not None
    tmp = f"{bare.paths.images}/tmp"
    wait_until(lambda: os.path.isdir(tmp) and os.listdir(tmp), "it has begun")
    process.terminate()
    process.communicate()
    assert process.returncode == 130
    assert os.listdir(tmp) == []
