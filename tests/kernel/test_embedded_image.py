"""The embedded image really runs: unpacked by umoci, entered with chroot; and pyrun's own store."""

import json
import os
import subprocess

import pytest

from pyrun.image import embedded, write
from pyrun.image.store import ImageStore
from pyrun.store.paths import Paths


def run(*command, **more):
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=60, **more
    ).stdout


def unpack(layout, bundle):
    """The root directory of an image, made by a program that is not ours."""
    run("umoci", "unpack", "--image", f"{layout}:latest", str(bundle))
    return bundle / "rootfs"


def inside(root, *command):
    environment = {"PATH": embedded.PATH}
    return run("/usr/sbin/chroot", str(root), *command, env=environment)


@pytest.fixture
def busybox(tmp_path):
    layout = tmp_path / "layout"
    embedded.make_busybox(str(layout))
    return unpack(layout, tmp_path / "bundle")


def test_skopeo_reads_the_layout(tmp_path):
    digest = embedded.make_busybox(str(tmp_path / "layout"))
    said = json.loads(run("skopeo", "inspect", f"oci:{tmp_path}/layout:latest"))
    assert said["Digest"] == digest
    assert said["Architecture"] == write.architecture()


def test_the_shell_and_its_tools_run(busybox):
    said = inside(busybox, "sh", "-c", "echo hello | /usr/bin/tr a-z A-Z; /bin/env | grep PATH")
    assert said == f"HELLO\nPATH={embedded.PATH}\n"


def test_every_tool_is_found_by_its_name(busybox):
    tools = inside(busybox, "busybox", "--list").split()
    found = inside(busybox, "ls", "-L", "/bin").split()
    # linuxrc is what a kernel starts an initrd with: it has no place in a container.
    assert set(tools) - set(found) <= {"linuxrc"}


def test_users_and_directories_are_as_programs_expect(busybox):
    assert inside(busybox, "id") == "uid=0(root) gid=0(root)\n"
    assert oct((busybox / "tmp").stat().st_mode & 0o7777) == "0o1777"
    assert oct((busybox / "root").stat().st_mode & 0o7777) == "0o700"


def test_host_programs_run_with_the_libraries_found_for_them(tmp_path):
    programs = ["/bin/sh", "/bin/ls", "/bin/cat", "/bin/sleep"]
    layer = write.Layer(embedded.skeleton() + embedded.host_entries(programs), gzip=False)
    layout = tmp_path / "layout"
    write.write_layout(str(layout), [layer], embedded.CONFIG, embedded.NAME)
    root = unpack(layout, tmp_path / "bundle")
    assert inside(root, "sh", "-c", "ls /bin && sleep 0 && cat /etc/group").startswith(
        "cat\nls\nsh\nsleep\nroot:x:0:\n"
    )


def test_metadata_survives_the_way_through_another_unpacker(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    (source / "file").write_text("x")
    os.setxattr(source / "file", "security.capability", capability)
    os.chown(source / "file", 70000, 2**31)
    os.chmod(source / "file", 0o755)
    os.setxattr(source / "file", "security.capability", capability)
    os.utime(source / "file", ns=(0, -1_250_000_000))
    os.link(source / "file", source / "link")
    os.mknod(source / "null", 0o20666, os.makedev(1, 3))
    layout = tmp_path / "layout"
    write.write_layout(
        str(layout), [write.Layer(write.tree(str(source), exact=True))], {}, "example/a:latest"
    )

    root = unpack(layout, tmp_path / "bundle")
    status = (root / "file").stat()
    assert (status.st_uid, status.st_gid, status.st_mtime_ns) == (70000, 2**31, -1_250_000_000)
    assert os.getxattr(root / "file", "security.capability") == capability
    assert (root / "link").samefile(root / "file")
    assert (root / "null").stat().st_rdev == os.makedev(1, 3)


def test_ensure_busybox_makes_it_once(tmp_path):
    store = ImageStore(Paths(str(tmp_path / "root"), str(tmp_path / "run")))
    first = embedded.ensure_busybox(store)
    assert embedded.NAME in first.names
    assert first.config["config"]["Cmd"] == ["sh"]
    before = sorted(os.listdir(store.paths.layers))
    second = embedded.ensure_busybox(store)
    assert (second.id, sorted(os.listdir(store.paths.layers))) == (first.id, before)
