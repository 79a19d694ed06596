"""Loading real archives into a real store, and what the kernel then shows of them."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from image_lab import contents, mounted, new_store, unmount_all
from imagebuild import Layout, Tar, archive, describe_tree, digest, docker_archive
from pyrun.errors import Conflict, NotFound
from pyrun.image.store import ImageStore

BASE = (
    Tar()
    .dir("./", mtime=1)
    .dir("etc", mtime=2)
    .file("etc/hosts", b"lower")
    .file("etc/old", b"old")
    .dir("tmp", mode=0o1777, mtime=3)
    .dir("opt", uid=5, gid=6, mode=0o750, mtime=4)
    .file("opt/tool", b"tool", mode=0o755, mtime=5)
    .end()
)
TOP = (
    Tar().dir("etc", mtime=7).file("etc/.wh.old").file("etc/hosts", b"upper").file("new", b"").end()
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ImageStore]:
    yield new_store(tmp_path)
    assert unmount_all(tmp_path) == []


def write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def names(store: ImageStore) -> list[str]:
    return sorted(name for one in store.images() for name in one.names)


SOURCES: dict[str, Any] = {
    "layout directory": lambda p: two_layers().write(str(p / "in")),
    "oci-archive": lambda p: write(p / "in.tar", two_layers().archive()),
    "oci-archive, gzip": lambda p: write(p / "in.tgz", gzip.compress(two_layers().archive())),
    "oci-archive, zstd": lambda p: write(p / "in", zstandard.compress(two_layers().archive())),
    "docker-archive": lambda p: write(p / "in", docker_archive(BASE, TOP, tags=["web:1"])),
    "docker-archive, gzip": lambda p: write(
        p / "in", gzip.compress(docker_archive(BASE, TOP, tags=["web:1"]))
    ),
    "layers of zstd": lambda p: two_layers(zstandard.compress).write(str(p / "in")),
    "plain layers": lambda p: two_layers(bytes).write(str(p / "in")),
    "layers of several gzip members": lambda p: two_layers(
        lambda data: b"".join(gzip.compress(data[n : n + 700]) for n in range(0, len(data), 700))
    ).write(str(p / "in")),
}


def two_layers(compress: Any = gzip.compress) -> Layout:
    layout = Layout()
    layout.image(BASE, TOP, name="docker.io/library/web:1", compress=compress)
    return layout


@pytest.mark.parametrize("what", SOURCES)
def test_every_format_gives_the_same_tree(tmp_path: Path, store: ImageStore, what: str) -> None:
    (image,) = store.load(SOURCES[what](tmp_path))
    assert image.names == ("docker.io/library/web:1",)
    assert image.diff_ids == (digest(BASE), digest(TOP))
    assert image.size == 5 + 3 + 4 + 5
    with mounted(store, "web:1") as tree:
        assert sorted(os.listdir(tree)) == ["etc", "new", "opt", "tmp"]
        assert os.listdir(f"{tree}/etc") == ["hosts"]
        assert Path(tree, "etc/hosts").read_text() == "upper"
        assert os.lstat(f"{tree}/etc").st_mtime == 7
        assert stat.S_IMODE(os.lstat(f"{tree}/tmp").st_mode) == 0o1777
        with pytest.raises(OSError, match="Read-only"):
            Path(tree, "etc/hosts").write_text("no")


def test_layers_of_a_docker_archive_may_be_links(tmp_path: Path, store: ImageStore) -> None:
    data = docker_archive(
        BASE, BASE, tags=["a:1", "b:2"], links={f"{1:064x}/layer.tar": f"../{0:064x}/layer.tar"}
    )
    (image,) = store.load(write(tmp_path / "in", data))
    assert image.names == ("docker.io/library/a:1", "docker.io/library/b:2")
    # Overlayfs refuses the same directory twice; the tree is the same with one.
    assert len(store.lowerdirs(image)) == 1
    with mounted(store, "a:1") as tree:
        assert Path(tree, "etc/old").exists()


def test_name_overrides_and_names_are_annotations(tmp_path: Path, store: ImageStore) -> None:
    layout = Layout()
    descriptor = layout.image(BASE)
    descriptor["annotations"] = {"org.opencontainers.image.ref.name": "quay.io/team/app:v2"}
    layout.write(str(tmp_path / "in"))
    store.load(str(tmp_path / "in"))
    store.load(str(tmp_path / "in"), name="other")
    assert names(store) == ["docker.io/library/other:latest", "quay.io/team/app:v2"]
    assert len(store.images()) == 1


def test_a_bare_ref_name_is_a_tag_of_the_layout(tmp_path: Path, store: ImageStore) -> None:
    layout = Layout()
    layout.image(BASE)["annotations"] = {"org.opencontainers.image.ref.name": "v3"}
    (image,) = store.load(write(tmp_path / "web.tar", layout.archive()))
    assert image.names == ("docker.io/library/web:v3",)


def test_an_image_without_a_name_is_found_by_its_id(tmp_path: Path, store: ImageStore) -> None:
    layout = Layout()
    layout.image(BASE)
    (image,) = store.load(layout.write(str(tmp_path / "in")))
    assert image.names == ()
    assert store.resolve(image.id).id == store.resolve(image.id[7:15]).id == image.id
    with pytest.raises(NotFound):
        store.resolve("ffff")


def test_several_images_share_layers(tmp_path: Path, store: ImageStore) -> None:
    layout = Layout()
    layout.image(BASE, name="localhost/a:1")
    layout.image(BASE, TOP, name="localhost/b:1")
    a, b = store.load(layout.write(str(tmp_path / "in")))
    assert store.lowerdirs(a)[0] == store.lowerdirs(b)[-1]
    assert store.remove("localhost/a:1")[-1] == f"deleted: {a.id}"
    with mounted(store, "localhost/b:1") as tree:
        assert Path(tree, "opt/tool").read_text() == "tool"
    store.remove("localhost/b:1")
    assert contents(store) == []


def test_by_the_digest_of_the_manifest(tmp_path: Path, store: ImageStore) -> None:
    layout = Layout()
    descriptor = layout.image(BASE, name="localhost/a:1")
    (image,) = store.load(layout.write(str(tmp_path / "in")))
    assert store.resolve(f"localhost/a@{descriptor['digest']}").id == image.id
    assert image.digests == (f"localhost/a@{descriptor['digest']}",)
    assert image.names == ("localhost/a:1",)
    with pytest.raises(NotFound):
        store.resolve(f"localhost/b@{descriptor['digest']}")


def test_the_manifest_for_this_machine_is_chosen(tmp_path: Path, store: ImageStore) -> None:
    machine = "amd64" if os.uname().machine == "x86_64" else "arm64"
    layout = Layout()
    manifests = []
    for arch, variant, content in (
        ("s390x", "", b"wrong"),
        (machine, "", b"right"),
        (machine, "v99", b"too new"),
        ("unknown", "", b"attestation"),
    ):
        one = layout.image(Tar().file("which", content).end(), listed=False)
        one["platform"] = {"os": "linux", "architecture": arch, "variant": variant}
        manifests.append(one)
    nested = layout.json_blob(
        {"schemaVersion": 2, "manifests": manifests}, "application/vnd.oci.image.index.v1+json"
    )
    nested["annotations"] = {"io.containerd.image.name": "localhost/multi:1"}
    layout.index.append(nested)
    store.load(layout.write(str(tmp_path / "in")))
    with mounted(store, "localhost/multi:1") as tree:
        assert Path(tree, "which").read_text() == "right"


def test_parents_nobody_listed_look_like_the_ones_below(tmp_path: Path, store: ImageStore) -> None:
    """Otherwise `tmp/x` alone in a layer would turn /tmp from 1777 into 755."""
    layout = Layout()
    bare = Tar().file("tmp/x", b"").file("opt/y", b"").file("fresh/z", b"").end()
    layout.image(BASE, bare, name="localhost/a:1")
    layout.image(bare, name="localhost/alone:1")
    layout.image(Tar().dir("tmp", mode=0o700).end(), bare, name="localhost/other:1")
    a, alone, other = store.load(layout.write(str(tmp_path / "in")))
    assert len({store.lowerdirs(one)[0] for one in (a, alone, other)}) == 3
    with mounted(store, "localhost/a:1") as tree:
        tmp, opt = os.lstat(f"{tree}/tmp"), os.lstat(f"{tree}/opt")
        assert (stat.S_IMODE(tmp.st_mode), tmp.st_mtime) == (0o1777, 3)
        assert (stat.S_IMODE(opt.st_mode), opt.st_uid, opt.st_gid) == (0o750, 5, 6)
        assert stat.S_IMODE(os.lstat(f"{tree}/fresh").st_mode) == 0o755
    with mounted(store, "localhost/alone:1") as tree:
        assert stat.S_IMODE(os.lstat(f"{tree}/tmp").st_mode) == 0o755
    with mounted(store, "localhost/other:1") as tree:
        assert stat.S_IMODE(os.lstat(f"{tree}/tmp").st_mode) == 0o700
    # Loaded again, everything is known.
    again = store.load(str(tmp_path / "in"))
    assert [one.layers for one in again] == [a.layers, alone.layers, other.layers]


def test_a_layer_stored_for_one_chain_serves_another_chain_rightly(
    tmp_path: Path, store: ImageStore
) -> None:
    bare = Tar().file("tmp/x", b"").end()
    for number, layers in enumerate(([bare], [BASE, bare], [TOP, bare], [BASE, TOP, bare])):
        layout = Layout()
        layout.image(*layers, name=f"localhost/n:{number}")
        store.load(layout.write(str(tmp_path / f"in{number}")))
    for number, mode in enumerate((0o755, 0o1777, 0o755, 0o1777)):
        with mounted(store, f"localhost/n:{number}") as tree:
            assert stat.S_IMODE(os.lstat(f"{tree}/tmp").st_mode) == mode


def test_whiteouts_that_hide_nothing_are_not_seen(tmp_path: Path, store: ImageStore) -> None:
    layout = Layout()
    ghosts = Tar().dir("d").file("d/.wh.ghost").file("d/real", b"").file(".wh.root").end()
    layout.image(ghosts, name="localhost/bottom:1")
    layout.image(BASE, ghosts, name="localhost/top:1")
    layout.image(Tar().dir("d").file("d/ghost", b"").end(), ghosts, name="localhost/needed:1")
    store.load(layout.write(str(tmp_path / "in")))
    for name in ("bottom", "top", "needed"):
        with mounted(store, f"localhost/{name}:1") as tree:
            assert os.listdir(f"{tree}/d") == ["real"]
            assert "root" not in os.listdir(tree)


def test_a_hard_link_to_a_file_of_a_lower_layer(tmp_path: Path, store: ImageStore) -> None:
    layout = Layout()
    top = Tar().dir("bin").hardlink("bin/tool", "opt/tool").end()
    layout.image(BASE, top, name="localhost/a:1")
    store.load(layout.write(str(tmp_path / "in")))
    with mounted(store, "localhost/a:1") as tree:
        assert os.path.samefile(f"{tree}/bin/tool", f"{tree}/opt/tool")
        tool, opt = os.lstat(f"{tree}/opt/tool"), os.lstat(f"{tree}/opt")
        assert (stat.S_IMODE(tool.st_mode), tool.st_mtime, tool.st_nlink) == (0o755, 5, 2)
        assert (stat.S_IMODE(opt.st_mode), opt.st_uid, opt.st_mtime) == (0o750, 5, 4)


def test_an_opaque_root_hides_all_layers_below(tmp_path: Path, store: ImageStore) -> None:
    layout = Layout()
    layout.image(BASE, Tar().file(".wh..wh..opq").file("only", b"").end(), name="localhost/a:1")
    store.load(layout.write(str(tmp_path / "in")))
    with mounted(store, "localhost/a:1") as tree:
        assert os.listdir(tree) == ["only"]


def test_opaque_directories_and_replaced_ones(tmp_path: Path, store: ImageStore) -> None:
    layout = Layout()
    layout.image(
        Tar().dir("d").file("d/a", b"").dir("e").file("e/a", b"").file("f", b"").end(),
        Tar().dir("d").file("d/.wh..wh..opq").file("d/b", b"").symlink("e", "/d").dir("f").end(),
        Tar().dir("f").file("f/x", b"").end(),
        name="localhost/a:1",
    )
    store.load(layout.write(str(tmp_path / "in")))
    with mounted(store, "localhost/a:1") as tree:
        assert os.listdir(f"{tree}/d") == ["b"]
        assert os.readlink(f"{tree}/e") == "/d"
        assert os.listdir(f"{tree}/f") == ["x"]


def test_131_layers(tmp_path: Path, store: ImageStore) -> None:
    layout = Layout()
    tars = [Tar().file(f"f{n}", b"%d" % n).file("last", b"%d" % n).end() for n in range(131)]
    layout.image(*tars, name="localhost/many:1", compress=bytes)
    (image,) = store.load(layout.write(str(tmp_path / "in")))
    assert len(store.lowerdirs(image)) == 131
    with mounted(store, "localhost/many:1") as tree:
        assert len(os.listdir(tree)) == 132
        assert Path(tree, "last").read_text() == "130"


def test_an_image_without_layers(tmp_path: Path, store: ImageStore) -> None:
    layout = Layout()
    layout.image(name="localhost/empty:1")
    store.load(layout.write(str(tmp_path / "in")))
    with mounted(store, "localhost/empty:1") as tree:
        assert os.listdir(tree) == []


def test_removal_refuses_while_in_use_and_names_the_users(
    tmp_path: Path, store: ImageStore
) -> None:
    store.load(two_layers().write(str(tmp_path / "in")))
    with pytest.raises(Conflict, match="in use by one, two"):
        store.remove("web:1", users=lambda _: ["one", "two"])
    with mounted(store, "web:1"), pytest.raises(Conflict, match="image mount"):
        store.remove("web:1", force=True)
    assert names(store) == ["docker.io/library/web:1"]


def test_removing_one_of_several_names_keeps_the_image(tmp_path: Path, store: ImageStore) -> None:
    (image,) = store.load(two_layers().write(str(tmp_path / "in")))
    store.tag("web:1", "localhost/mine")
    assert store.remove("web:1", users=lambda _: ["c"]) == ["untagged: docker.io/library/web:1"]
    assert names(store) == ["localhost/mine:latest"]
    store.tag("localhost/mine", "second")
    with pytest.raises(Conflict, match="2 names"):
        store.remove(image.id[7:20])
    assert store.remove(image.id[7:20], force=True)[-1] == f"deleted: {image.id}"
    assert contents(store) == []
    assert store.names() == {}


def test_a_tag_moves_and_the_old_image_stays_without_a_name(
    tmp_path: Path, store: ImageStore
) -> None:
    (old,) = store.load(two_layers().write(str(tmp_path / "in")))
    layout = Layout()
    layout.image(BASE, name="docker.io/library/web:1")
    (new,) = store.load(layout.write(str(tmp_path / "in2")))
    assert store.resolve("web:1").id == new.id
    assert store.resolve(old.id).names == ()


def test_import_makes_an_image_of_a_plain_tar(tmp_path: Path, store: ImageStore) -> None:
    packers = {"tar": bytes, "gz": gzip.compress, "zst": zstandard.compress}
    for suffix, pack in packers.items():
        image = store.import_(
            write(tmp_path / f"r.{suffix}", pack(BASE)),
            name="mine",
            changes=['CMD ["sh", "-c", "x"]', 'ENV A=1 B="two words"', "ENV A=2", "EXPOSE 80",
                     "LABEL a=b", "USER 5:6", "WORKDIR /opt", "VOLUME /data", "ENTRYPOINT run it"],
        )  # fmt: skip
        assert image.diff_ids == (digest(BASE),)
        assert image.config["config"] == {
            "Cmd": ["sh", "-c", "x"],
            "Entrypoint": ["/bin/sh", "-c", "run it"],
            "Env": ["B=two words", "A=2"],
            "ExposedPorts": {"80/tcp": {}},
            "Labels": {"a": "b"},
            "User": "5:6",
            "WorkingDir": "/opt",
            "Volumes": {"/data": {}},
        }
    with mounted(store, "mine") as tree:
        assert Path(tree, "etc/hosts").read_text() == "lower"
    assert len({one.layers for one in store.images()}) == 1


def test_mounting_twice_gives_the_same_path(tmp_path: Path, store: ImageStore) -> None:
    from pyrun.image import mount

    store.load(two_layers().write(str(tmp_path / "in")))
    with mounted(store, "web:1") as tree:
        assert mount.mount(store, "web:1") == tree
    with pytest.raises(NotFound, match="not mounted"):
        mount.unmount(store, "web:1")
    assert os.listdir(f"{store.paths.run_root}/image-mounts") == []


def test_what_other_tools_made(tmp_path: Path, store: ImageStore) -> None:
    """umoci unpacks the layout too; the trees are the same. skopeo turns it into archives."""
    for tool in ("skopeo", "umoci"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    two_layers().write(str(tmp_path / "layout"))
    index = json.loads((tmp_path / "layout/index.json").read_text())
    index["manifests"][0]["annotations"] = {"org.opencontainers.image.ref.name": "1"}
    (tmp_path / "layout/index.json").write_text(json.dumps(index))

    umoci = ["umoci", "raw", "unpack", "--image", f"{tmp_path}/layout:1", f"{tmp_path}/theirs"]
    subprocess.run(umoci, check=True, capture_output=True)
    made = {"oci-archive": "oci.tar:localhost/made:oci", "docker-archive": "d.tar:localhost/made:d"}
    for kind, name in made.items():
        subprocess.run(
            ["skopeo", "--insecure-policy", "copy", f"oci:{tmp_path}/layout:1",
             f"{kind}:{tmp_path}/{name}"], check=True, capture_output=True,
        )  # fmt: skip
        store.load(f"{tmp_path}/{name.partition(':')[0]}")
    theirs = describe_tree(f"{tmp_path}/theirs", times=False)
    for name in ("localhost/made:oci", "localhost/made:d"):
        with mounted(store, name) as tree:
            assert describe_tree(tree, times=False) == theirs


def test_a_docker_archive_of_today_is_read_as_the_layout_it_also_is(
    tmp_path: Path, store: ImageStore
) -> None:
    layout = Layout()
    descriptor = layout.image(BASE, compress=bytes)
    manifest = json.loads(layout.files["blobs/" + descriptor["digest"].replace(":", "/")])
    layout.files["manifest.json"] = json.dumps(
        [
            {
                "Config": "blobs/" + manifest["config"]["digest"].replace(":", "/"),
                "RepoTags": ["today:25"],
                "Layers": ["blobs/" + manifest["layers"][0]["digest"].replace(":", "/")],
            }
        ]
    ).encode()
    (image,) = store.load(write(tmp_path / "in", archive(layout.all_files())))
    assert image.names == ("docker.io/library/today:25",)
    assert image.manifest == descriptor["digest"]
