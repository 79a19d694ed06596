"""State files: whole or not there, names taken once, locks that outlive nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyrun
from pyrun.errors import Conflict
from pyrun.store import fastjson, records
from pyrun.store.paths import Paths

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(JSON)
def test_fastjson_is_json(value: object) -> None:
    text = fastjson.dumps(value)
    assert json.loads(text) == value
    assert fastjson.loads(json.dumps(value)) == value
    assert text == json.dumps(value, sort_keys=True)


@pytest.mark.parametrize("text", ["", "{", "[1,", "1 2", "nul", '{"a":}', "\x00"])
def test_fastjson_refuses_what_is_not_one_value(text: str) -> None:
    with pytest.raises(ValueError):
        fastjson.loads(text)


@pytest.mark.parametrize("text", ["{", "[1,", '{"a":}', '"open'])
def test_fastjson_refuses_it_as_well_where_nobody_has_imported_json(text: str) -> None:
    code = (
        "import sys; from pyrun.store import fastjson\n"
        "assert 'json' not in sys.modules\n"
        "try: fastjson.loads(sys.argv[1])\n"
        "except ValueError: sys.exit(0)\n"
        "sys.exit('no ValueError')"
    )
    # -S: a .pth file of the environment may import anything.
    argv = [sys.executable, "-S", "-c", code, text]
    env = {**os.environ, "PYTHONPATH": str(Path(pyrun.__file__).parent.parent)}
    done = subprocess.run(argv, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_write_replaces_whole(tmp_path: Path) -> None:
    path = f"{tmp_path}/record.json"
    records.write(path, {"a": 1})
    records.write(path, {"b": [2]}, durable=False)
    assert records.read(path) == {"b": [2]}
    assert os.listdir(tmp_path) == ["record.json"]


def test_a_failed_write_leaves_the_old_record_and_no_rubbish(tmp_path: Path) -> None:
    path = f"{tmp_path}/record.json"
    records.write(path, {"a": 1})
    with pytest.raises(TypeError):
        records.write(path, {"a": object()})
    assert records.read(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["record.json"]


@pytest.mark.parametrize("torn", ["", '{"a": 1', "\0\0\0"])
def test_a_record_torn_by_a_power_cut_reads_as_none(tmp_path: Path, torn: str) -> None:
    (tmp_path / "record.json").write_text(torn)
    assert records.read(f"{tmp_path}/record.json") is None


def test_a_name_is_taken_once(tmp_path: Path) -> None:
    records.take_name(str(tmp_path), "web", "pod")
    with pytest.raises(Conflict, match="'web' is taken"):
        records.take_name(str(tmp_path), "web", "pod")


def test_lock_excludes_another_process_and_goes_with_its_owner(tmp_path: Path) -> None:
    owner = tmp_path / "owner"
    owner.mkdir()
    path = f"{tmp_path}/lock"
    code = (
        "import sys, fcntl, os; fd = os.open(sys.argv[1], os.O_RDWR);"
        "fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)"
    )
    with records.Lock(path, owner=str(owner)):
        tried = subprocess.run([sys.executable, "-c", code, path], capture_output=True)
        assert b"BlockingIOError" in tried.stderr
        owner.rmdir()
    assert not os.path.exists(path)


def test_other_roots_give_other_names_to_the_kernel() -> None:
    default, other = Paths("/var/lib/pyrun", "/run/pyrun"), Paths("/tmp/a", "/tmp/b")
    assert (default.bridge, default.nft_table, default.netns) == ("pyrun0", "pyrun", "/run/netns")
    assert other.bridge != default.bridge and len(other.bridge) <= 15
    assert other.nft_table != default.nft_table
    assert other.netns == "/tmp/b/netns"


def test_what_an_earlier_boot_left_in_the_run_root_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / "leases").mkdir()
    records.forget_other_boots(str(tmp_path))
    assert (tmp_path / "leases").is_dir(), "nothing says that this is of another boot"
    records.forget_other_boots(str(tmp_path))
    assert (tmp_path / "leases").is_dir(), "the same boot"
    (tmp_path / "boot_id").write_text("11111111-2222-3333-4444-555555555555\n")
    records.forget_other_boots(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["boot.lock", "boot_id"]
    assert (tmp_path / "boot_id").read_text().strip() == records.boot_id()
