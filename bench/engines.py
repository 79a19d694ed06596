"""The command lines of pyrun and its peers, and what each needs before it can start something.

podman and pyrun are engines: images, storage, network, a monitor that outlives the command.
runc and crun are what lies below an engine: they are handed a directory with a rootfs and a
config.json (a bundle), have no images, no network and no monitor. They run with the seccomp
profile that podman writes into its bundles.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from lab import run
from measure import timed

IMAGE = "docker.io/library/busybox:latest"
SLEEP = ("sleep", "100000")

CONTAINERS_CONF = """\
[containers]
# A host may not let root raise its limits: ask for what there is.
default_ulimits = ["nofile={nofile}:{nofile}", "nproc=32768:32768"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
[network]
network_backend = "netavark"
network_config_dir = "{work}/networks"
"""

STORAGE_CONF = """\
[storage]
driver = "overlay"
graphroot = "{work}/podman"
runroot = "/run/podman-storage"
"""


class Engines:
    """All engines, ready to start containers from the same busybox."""

    def __init__(self, work: Path, checkout: Path, pyrun: str) -> None:
        self.work = work
        self.pyrun = (pyrun, "--root", str(work / "pyrun"))
        self.podman = ("podman",)
        self.lower = ("runc", "crun")
        self.count = 0
        archive = self.pack_busybox(checkout)
        self.configure_podman()
        run(*self.pyrun, "image", "load", "--quiet", archive)
        run(*self.podman, "load", "--quiet", "--input", archive)
        self.filter = self.podman_seccomp()
        rootfs = self.unpack_rootfs(archive)
        for name in ("default", "unconfined"):
            self.make_bundle(work / "bundles" / name, rootfs, ("true",), name == "default")
            self.make_bundle(work / "sleepers" / name, rootfs, SLEEP, name == "default")

    def name(self) -> str:
        """A name nobody had yet."""
        self.count += 1
        return f"bench{self.count}"

    def pack_busybox(self, checkout: Path) -> Path:
        """pyrun's own busybox image as an archive that every engine reads."""
        layout = run(checkout / "images" / "build", "busybox").strip().splitlines()[-1]
        archive = self.work / "busybox.tar"
        run("skopeo", "copy", "--quiet", f"oci:{layout}:latest", f"oci-archive:{archive}:{IMAGE}")
        return archive

    def configure_podman(self) -> None:
        import resource

        nofile = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 1048576)
        for variable, text in (
            ("CONTAINERS_CONF", CONTAINERS_CONF),
            ("CONTAINERS_STORAGE_CONF", STORAGE_CONF),
        ):
            path = self.work / variable.lower()
            path.write_text(text.format(work=self.work, nofile=nofile))
            os.environ[variable] = str(path)

    def podman_seccomp(self) -> object:
        """The seccomp section that podman hands to runc and crun."""
        identity = run(*self.podman, "run", "-d", "--network", "none", IMAGE, *SLEEP).strip()
        template = "{{.OCIConfigPath}}"
        config = run(*self.podman, "inspect", "--format", template, identity).strip()
        section = json.loads(Path(config).read_text())["linux"]["seccomp"]
        run(*self.podman, "rm", "--force", "--time", "0", identity)
        return section

    def unpack_rootfs(self, archive: Path) -> Path:
        rootfs = self.work / "rootfs"
        layout = self.work / "busybox"
        run("skopeo", "copy", "--quiet", f"oci-archive:{archive}", f"oci:{layout}:latest")
        run("umoci", "unpack", "--image", f"{layout}:latest", self.work / "umoci")
        shutil.move(self.work / "umoci" / "rootfs", rootfs)
        return rootfs

    def make_bundle(self, bundle: Path, rootfs: Path, args: tuple[str, ...], seccomp: bool) -> None:
        bundle.mkdir(parents=True)
        run("runc", "spec", "--bundle", bundle)
        config = json.loads((bundle / "config.json").read_text())
        config["process"]["terminal"] = False
        config["process"]["args"] = list(args)
        config["process"]["rlimits"] = []
        config["root"] = {"path": str(rootfs), "readonly": False}
        if seccomp:
            config["linux"]["seccomp"] = self.filter
        (bundle / "config.json").write_text(json.dumps(config))

    # Starting a container and letting it end

    def pyrun_run(self, *options: str) -> float:
        return timed(*self.pyrun, "run", "--rm", *options, IMAGE, "true")

    def podman_run(self, *options: str) -> float:
        return timed(*self.podman, "run", "--rm", *options, IMAGE, "true")

    def lower_run(self, runtime: str, seccomp: str) -> float:
        return timed(runtime, "run", "--bundle", str(self.work / "bundles" / seccomp), self.name())

    # Containers that stay, to execute commands in

    def start_sleepers(self, seccomp: str) -> None:
        options = ("-d", "--name", f"sleep-{seccomp}", "--network", "none", *security(seccomp))
        for engine in (self.pyrun, self.podman):
            timed_detached(*engine, "run", *options, IMAGE, *SLEEP)
        bundle = str(self.work / "sleepers" / seccomp)
        for runtime in self.lower:
            timed_detached(runtime, "run", "--detach", "--bundle", bundle, f"sleep-{seccomp}")

    def remove_sleepers(self, seccomp: str) -> None:
        name = f"sleep-{seccomp}"
        run(*self.pyrun, "rm", "--force", name)
        run(*self.podman, "rm", "--force", "--time", "0", name)
        for runtime in self.lower:
            run(runtime, "delete", "--force", name)


def security(seccomp: str) -> tuple[str, ...]:
    """The options of pyrun and podman for `default` or `unconfined`."""
    return () if seccomp == "default" else ("--security-opt", "seccomp=unconfined")


def timed_detached(*command: str) -> float:
    """Like `timed`, for a command whose child keeps standard error open after it has ended."""
    return timed("sh", "-c", 'exec "$@" 2>/dev/null', "sh", *command)
