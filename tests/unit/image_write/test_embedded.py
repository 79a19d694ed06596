"""What the embedded image is made of: pure reading, judged by other tools of the host."""

import os
import subprocess
import sys

import pytest

from pyrun.errors import Unsupported
from pyrun.image import embedded


def test_elf_interpreter_is_what_readelf_says():
    said = subprocess.run(
        ["readelf", "-lW", "/bin/ls"], check=True, capture_output=True, text=True
    ).stdout
    assert f"interpreter: {embedded.elf_interpreter('/bin/ls')}]" in said


def test_a_static_program_and_a_script_have_no_interpreter(tmp_path):
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    assert embedded.elf_interpreter("/bin/busybox") is None
    assert embedded.elf_interpreter(str(script)) is None
    assert embedded.libraries("/bin/busybox") == []


def test_libraries_are_those_the_kernel_maps():
    """What `ld.so --list` answers is what a running program has in /proc/PID/maps."""
    maps = subprocess.run(
        ["/bin/cat", "/proc/self/maps"], check=True, capture_output=True, text=True
    ).stdout
    mapped = {line.split()[-1] for line in maps.splitlines() if ".so" in line}
    assert {os.path.realpath(path) for path in embedded.libraries("/bin/cat")} == mapped


def test_every_applet_is_a_link_to_busybox():
    entries = {entry.path: entry for entry in embedded.busybox_layer().entries}
    for path in ("bin/sh", "bin/sleep", "bin/env", "usr/bin/env", "sbin/ip"):
        where = os.path.normpath(os.path.join(os.path.dirname(path), entries[path].target))
        assert where == "bin/busybox"


def test_digest_is_the_same_every_time(tmp_path, monkeypatch):
    first = embedded.make_busybox(str(tmp_path / "one"))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "99")
    assert embedded.make_busybox(str(tmp_path / "two")) == first


def test_made_in_under_a_second(tmp_path):
    code = f"from pyrun.image.embedded import make_busybox; make_busybox({str(tmp_path)!r})"
    path = os.pathsep.join(filter(None, sys.path))
    subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=1, env=os.environ | {"PYTHONPATH": path}
    )


def test_a_host_without_shell_is_told_what_to_do():
    with pytest.raises(Unsupported) as raised:
        embedded.host_entries(["/bin/ls"])
    assert "busybox-static" in raised.value.hint
