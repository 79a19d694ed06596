"""From an image to a root file system: a Debian layer and nginx on top of it.

Every measurement gets a fresh ext4 of its own in a file: files removed in a loop slow ext4 down
for whoever comes next, two to seven times. The time ends when the command ends, as a user sees it;
nobody is asked to reach the disk. The competitors do not do the same work: pyrun, podman and
containerd verify digests and keep what they need to start containers; umoci also writes the
manifest of the tree that `umoci repack` needs; `tar xzf` only unpacks.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engines import Engines
from lab import run
from measure import Failed, Result, alternate, timed

SIZE = "3G"

CONTAINERD = """\
version = 2
root = "{root}"
state = "/run/bench-containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "/run/bench-containerd.sock"
"""


# the image


def debian_and_nginx(checkout: Path) -> Path:
    """An OCI layout: this distribution's minimal base system, and the layers of images/nginx.

    Made once and kept in .cache; needs the network, so it is called outside the lab.
    """
    cache = checkout / ".cache" / "bench"
    layout = cache / "debian-nginx"
    if layout.exists():
        return layout
    cache.mkdir(parents=True, exist_ok=True)
    nginx = run(checkout / "images" / "build", "nginx").strip().splitlines()[-1]
    new = cache / "debian-nginx.new"
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(nginx, new)
    tar = base_system(cache)
    put_below(new, tar)
    tar.unlink()
    new.rename(layout)
    return layout


def base_system(cache: Path) -> Path:
    """A tar of what debootstrap calls minbase, about 200 MB."""
    release = dict(
        line.split("=", 1)
        for line in Path("/etc/os-release").read_text().splitlines()
        if "=" in line
    )
    suite = release["VERSION_CODENAME"].strip('"')
    print(f"bench: making a minimal {suite} with debootstrap (once, about a minute)", flush=True)
    tree = cache / "base"
    shutil.rmtree(tree, ignore_errors=True)
    run("debootstrap", "--variant=minbase", suite, tree)
    tar = cache / "base.tar"
    run("tar", "--numeric-owner", "--xattrs", "-cf", tar, "-C", tree, ".")
    shutil.rmtree(tree)
    return tar


def put_below(layout: Path, tar: Path) -> None:
    """Make `tar` the first layer of the only image in `layout`."""
    blobs = layout / "blobs" / "sha256"
    index = json.loads((layout / "index.json").read_text())
    manifest = json.loads(blob(blobs, index["manifests"][0]).read_text())
    config = json.loads(blob(blobs, manifest["config"]).read_text())

    diff_id = digest_of(tar)
    run("gzip", "--no-name", "--keep", "--force", tar)
    packed = tar.with_name(tar.name + ".gz")
    layer = {
        "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
        "digest": f"sha256:{digest_of(packed)}",
        "size": packed.stat().st_size,
    }
    packed.rename(blob(blobs, layer))

    config["rootfs"]["diff_ids"].insert(0, f"sha256:{diff_id}")
    config["history"].insert(0, {"created_by": "debootstrap --variant=minbase"})
    manifest["layers"].insert(0, layer)
    manifest["config"] |= write_blob(blobs, config)
    index["manifests"][0] |= write_blob(blobs, manifest)
    index["manifests"][0]["annotations"]["io.containerd.image.name"] = "localhost/bench:latest"
    (layout / "index.json").write_text(json.dumps(index))


def blob(blobs: Path, descriptor: dict[str, Any]) -> Path:
    return blobs / str(descriptor["digest"]).removeprefix("sha256:")


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_blob(blobs: Path, value: object) -> dict[str, Any]:
    data = json.dumps(value).encode()
    descriptor = {"digest": f"sha256:{hashlib.sha256(data).hexdigest()}", "size": len(data)}
    blob(blobs, descriptor).write_bytes(data)
    return descriptor


def layers_of(layout: Path) -> list[Path]:
    blobs = layout / "blobs" / "sha256"
    index = json.loads((layout / "index.json").read_text())
    manifest = json.loads(blob(blobs, index["manifests"][0]).read_text())
    return [blob(blobs, layer) for layer in manifest["layers"]]


# the competitors: each is handed an empty file system


@contextmanager
def fresh_filesystem(work: Path) -> Iterator[Path]:
    """The mount point of a new ext4, made in a sparse file, gone afterwards."""
    image, mount = work / "disk.img", work / "disk"
    mount.mkdir(exist_ok=True)
    run("truncate", "--size", SIZE, image)
    run("mkfs.ext4", "-q", "-F", image)
    # noinit_itable: the kernel would go on initialising inode tables while we measure.
    run("mount", "-o", "loop,noinit_itable", image, mount)
    try:
        yield mount
    finally:
        run("umount", "--recursive", mount)
        image.unlink()


def on_fresh(work: Path, measure: Callable[[Path], float]) -> Callable[[], float]:
    def case() -> float:
        with fresh_filesystem(work) as mount:
            return measure(mount)

    return case


def tar(layout: Path, mount: Path) -> float:
    layers = [str(layer) for layer in layers_of(layout)]
    script = 'cd "$1"; shift; for layer; do tar xf "$layer" || exit; done'
    return timed("sh", "-c", script, "sh", str(mount), *layers)


def podman(archive: Path, mount: Path) -> float:
    storage = ("--root", str(mount / "podman"), "--runroot", "/run/podman-unpack")
    load = ("load", "--quiet", "--input", str(archive))
    scratch = mount / "tmp"
    scratch.mkdir()
    environment = ("env", f"TMPDIR={scratch}")
    try:
        return timed(*environment, "podman", *storage, "--storage-driver", "overlay", *load)
    finally:
        shutil.rmtree("/run/podman-unpack", ignore_errors=True)


def containerd(archive: Path, mount: Path) -> float:
    config = mount / "containerd.toml"
    config.write_text(CONTAINERD.format(root=mount / "containerd"))
    address = "/run/bench-containerd.sock"
    daemon = subprocess.Popen(
        ["containerd", "--config", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until_answers("ctr", "--address", address, "version")
        return timed("ctr", "--address", address, "image", "import", str(archive))
    finally:
        daemon.terminate()
        daemon.wait()


def wait_until_answers(*command: str) -> None:
    deadline = time.monotonic() + 15
    while subprocess.run(command, capture_output=True, check=False).returncode:
        if time.monotonic() > deadline:
            raise Failed(f"{' '.join(command)}: no answer in 15 s")
        time.sleep(0.1)


def unpacking(engines: Engines, layout: Path, rounds: int) -> list[Result]:
    archive = engines.work / "debian-nginx.tar"
    run("tar", "-cf", archive, "-C", layout, *sorted(os.listdir(layout)))
    program = engines.pyrun[0]

    def pyrun(source: Path, mount: Path) -> float:
        return timed(program, "--root", str(mount / "pyrun"), "image", "load", str(source))

    def umoci(mount: Path) -> float:
        image = f"{layout}:latest"
        return timed("umoci", "unpack", "--image", image, str(mount / "umoci"))

    work = engines.work
    size = sum(layer.stat().st_size for layer in layers_of(layout)) >> 20
    return [
        alternate(
            f"Debian + nginx unpacked ({size} MiB packed)",
            {
                "pyrun image load, archive": on_fresh(work, lambda m: pyrun(archive, m)),
                "pyrun image load, directory": on_fresh(work, lambda m: pyrun(layout, m)),
                "tar xzf": on_fresh(work, lambda m: tar(layout, m)),
                "umoci unpack": on_fresh(work, umoci),
                "podman load": on_fresh(work, lambda m: podman(archive, m)),
                "ctr image import": on_fresh(work, lambda m: containerd(archive, m)),
            },
            rounds,
            {"tar xzf": 0.67, "umoci unpack": 0.25, "ctr image import": 0.5},
        )
    ]
