"""Loads that are killed, and loads that happen at once."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from image_lab import contents, mounted, new_store
from imagebuild import Layout, Tar, describe_tree
from pyrun.image.store import ImageStore

RUNTIME = str(Path(__file__).parents[2] / "runtime")
LOAD = (
    f"import sys; sys.path.insert(0, {RUNTIME!r})\n"
    "from pyrun.image.store import ImageStore\n"
    "from pyrun.store.paths import Paths\n"
    "print(ImageStore(Paths(sys.argv[1], sys.argv[1] + '/run')).load(sys.argv[2])[0].id)\n"
)


def start(store: ImageStore, source: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", LOAD, store.paths.root, str(source)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers that take long enough to be killed in the middle."""
    path = tmp_path_factory.mktemp("layout")
    made = Layout()
    tars = []
    for n in range(3):
        tar = Tar()
        blocks = [
            Tar().file(f"d{n}/{i % 50}/f{i}", os.urandom(3000), uid=i).data for i in range(2500)
        ]
        tars.append(tar.raw(b"".join(blocks)).end())
    made.image(*tars, name="localhost/big:1", compress=lambda data: gzip.compress(data, 1))
    made.write(str(path))
    return path


def wait_for(condition: object, process: subprocess.Popen[str]) -> bool:
    """Until `condition()` is true or the process has ended."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return True
        if process.poll() is not None:
            return False
    raise AssertionError("neither happened in 30 seconds")


def files_below(path: str) -> int:
    return sum(len(files) for _, _, files in os.walk(path))


@pytest.mark.parametrize("moment", [1, 200, 3000, 6500, "published"])
def test_killed_at_any_moment_the_next_load_cleans_up(
    tmp_path: Path, layout: Path, moment: int | str
) -> None:
    store = new_store(tmp_path)
    process = start(store, layout)
    tmp = f"{store.paths.images}/tmp"

    def reached() -> bool:
        if moment == "published":
            return os.path.isdir(store.paths.layers) and bool(os.listdir(store.paths.layers))
        return files_below(tmp) >= int(moment)

    wait_for(reached, process)
    process.kill()
    process.communicate()
    # Workers die with their parent; they hold the work directory's lock until they are gone.
    small = Layout()
    small.image(Tar().file("f", b"").end(), name="localhost/small:1")
    small.write(str(tmp_path / "small"))
    deadline = time.monotonic() + 10
    while True:
        store.load(str(tmp_path / "small"))
        if os.listdir(tmp) == [] or time.monotonic() > deadline:
            break
    assert os.listdir(tmp) == []
    # The record comes before the name, so between the two there is a whole image without one.
    for image in store.images():
        with mounted(store, image.id) as tree:
            assert files_below(tree) == (1 if image.names == ("localhost/small:1",) else 7500)
        store.remove(image.id)
    assert contents(store) == []


def test_ctrl_c_leaves_nothing(tmp_path: Path, layout: Path) -> None:
    store = new_store(tmp_path)
    process = start(store, layout)
    if wait_for(lambda: files_below(f"{store.paths.images}/tmp") > 500, process):
        process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert "KeyboardInterrupt" in error
    assert contents(store) == []
    assert os.listdir(f"{store.paths.images}/tmp") == []


def test_loads_at_once_give_one_image(tmp_path: Path, layout: Path) -> None:
    store = new_store(tmp_path)
    processes = [start(store, layout) for _ in range(4)]
    outputs = [process.communicate() for process in processes]
    assert {process.returncode for process in processes} == {0}, outputs
    assert len({out for out, _ in outputs}) == 1
    (image,) = store.images()
    assert len(os.listdir(store.paths.layers)) == 3
    with mounted(store, "localhost/big:1") as tree:
        assert files_below(tree) == 7500
    store.remove(image.id)
    assert contents(store) == []


def test_loading_and_removing_at_once(tmp_path: Path) -> None:
    """A layer that a load means to share may be removed under its feet."""
    store = new_store(tmp_path)
    for number in range(2):
        made = Layout()
        made.image(
            Tar().dir("d").file("d/shared", b"s" * 1000).end(),
            Tar().file(f"own{number}", b"").end(),
            name=f"localhost/n:{number}",
        )
        made.write(str(tmp_path / f"in{number}"))
    remover = subprocess.Popen(
        [sys.executable, "-c",
         f"import sys; sys.path.insert(0, {RUNTIME!r})\n"
         "from pyrun.errors import NotFound\n"
         "from pyrun.image.store import ImageStore\n"
         "from pyrun.store.paths import Paths\n"
         "store = ImageStore(Paths(sys.argv[1], sys.argv[1] + '/run'))\n"
         "while True:\n"
         "    try: store.remove('localhost/n:0')\n"
         "    except NotFound: pass\n", store.paths.root],
    )  # fmt: skip
    try:
        for _ in range(30):
            store.load(str(tmp_path / "in0"))
            store.load(str(tmp_path / "in1"))
            with mounted(store, "localhost/n:1") as tree:
                assert sorted(os.listdir(tree)) == ["d", "own1"]
            store.remove("localhost/n:1")
    except Exception:
        raise
    finally:
        remover.kill()
        remover.communicate()


def test_a_load_opens_no_descriptor_that_stays(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    made = Layout()
    made.image(Tar().file("f", b"").end(), name="localhost/a:1")
    made.write(str(tmp_path / "in"))
    store.load(str(tmp_path / "in"))
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        store.load(str(tmp_path / "in"))
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_the_same_archive_gives_the_same_snapshot(tmp_path: Path) -> None:
    made = Layout()
    made.image(Tar().file("a/b/c", b"x").symlink("s", "a").end(), name="localhost/a:1")
    made.write(str(tmp_path / "in"))
    trees = []
    for number in range(2):
        store = new_store(tmp_path / str(number))
        (image,) = store.load(str(tmp_path / "in"))
        trees.append(describe_tree(store.lowerdirs(image)[0]))
    assert trees[0] == trees[1]
