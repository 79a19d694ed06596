"""Build the images of this folder into OCI layouts, each once.

A recipe is `NAME/recipe.py` with three names: IMAGE (the reference), CONFIG (the image
configuration) and `layers(work)`, which returns the layers, lowest first. The layout goes to
`.cache/images/NAME`, beside it the key it was made from: the hash of the recipe's folder, of the
code that builds, and of the host's busybox. Where the key is the same nothing is done.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pyrun.errors import PyrunError
from pyrun.image import embedded, write

if TYPE_CHECKING:
    from pyrun.image.write import Layer

HERE = Path(__file__).resolve().parent


class Recipe(Protocol):
    IMAGE: str
    CONFIG: dict[str, Any]

    def layers(self, work: Path) -> list[Layer]: ...


def cache_directory() -> Path:
    return Path(os.environ.get("PYRUN_IMAGE_CACHE") or HERE.parent / ".cache/images").absolute()


def names() -> list[str]:
    return sorted(path.parent.name for path in HERE.glob("*/recipe.py"))


def load_recipe(name: str) -> Recipe:
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", HERE / name / "recipe.py")
    assert spec and spec.loader
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    recipe: Recipe = module
    return recipe


def key(name: str) -> str:
    """The hash of everything the image is made from, save what is downloaded (that is pinned)."""
    code = [HERE / "builder.py", HERE / "ingredients.py"]
    code += [Path(write.__file__), Path(embedded.__file__)]
    own = sorted(
        path
        for path in (HERE / name).rglob("*")
        if path.is_file() and path.suffix != ".pyc" and path.name != "README.md"
    )
    busybox = embedded.find_busybox()
    total = hashlib.sha256(write.architecture().encode())
    for path in [*code, *own, *([Path(busybox)] if busybox else [])]:
        total.update(hashlib.sha256(path.read_bytes()).digest())
    for path in own:
        total.update(f"{path.relative_to(HERE)} {path.stat().st_mode & 0o100:o}\n".encode())
    return total.hexdigest()


def build(name: str) -> Path:
    """The image's layout directory, made if it is not there yet."""
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    layout, stamp = cache / name, cache / f"{name}.key"
    with open(cache / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = key(name)
        if layout.is_dir() and stamp.exists() and stamp.read_text() == wanted:
            return layout
        started = time.monotonic()
        print(f"images: building {name}", file=sys.stderr, flush=True)
        recipe = load_recipe(name)
        with tempfile.TemporaryDirectory(dir=cache, prefix=f"{name}.") as work:
            made = Path(work, "layout")
            digest = write.write_layout(
                str(made), recipe.layers(Path(work)), recipe.CONFIG, recipe.IMAGE
            )
            stamp.unlink(missing_ok=True)
            if layout.exists():
                shutil.rmtree(layout)
            made.rename(layout)
        stamp.write_text(wanted)
    size = sum(path.stat().st_size for path in layout.rglob("*") if path.is_file())
    seconds = time.monotonic() - started
    print(
        f"images: {name}: {digest}, {size / 1e6:.1f} MB, built in {seconds:.1f} s",
        file=sys.stderr,
    )
    return layout


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="images/build",
        description="Build images into OCI layouts and print where they are. "
        "What is built already is not built again.",
        epilog="Example: images/build nginx --load",
    )
    parser.add_argument("name", nargs="+", choices=[*names(), "all"], help="an image, or all")
    parser.add_argument("--load", action="store_true", help="also load it into pyrun's store")
    arguments = parser.parse_args()
    chosen = names() if "all" in arguments.name else arguments.name
    try:
        for name in chosen:
            layout = build(name)
            print(layout, flush=True)
            if arguments.load:
                reference = load_recipe(name).IMAGE
                command = [
                    sys.executable,
                    "-m",
                    "pyrun",
                    "image",
                    "load",
                    "--name",
                    reference,
                    str(layout),
                ]
                subprocess.run(command, check=True)
    except PyrunError as error:
        print(
            f"images: {error}" + (f"\n  hint: {error.hint}" if error.hint else ""), file=sys.stderr
        )
        return 1
    except subprocess.CalledProcessError as error:
        print(f"images: exit code {error.returncode}: {' '.join(error.cmd)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
