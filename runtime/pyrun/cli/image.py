"""`pyrun image …`: what images there are, bringing them in, looking into them, removing them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from pyrun.cli import output
from pyrun.cli.named import IMAGE
from pyrun.errors import NotFound, PyrunError
from pyrun.image import reference
from pyrun.image.store import Image, ImageStore
from pyrun.store.paths import Paths


@click.group(epilog="Example: pyrun image ls")
def image() -> None:
    """Images: a config and layers, each layer unpacked once."""


format_option = click.option(
    "--format", "format_", type=click.Choice(["table", "json"]), default="table",
    help="How to print: for people, or for programs.",
)  # fmt: skip


@image.command(epilog="Example: pyrun image load nginx.tar --name nginx:test")
@click.argument("source", required=False)
@click.option("-i", "--input", "input_", metavar="SOURCE", help="The same as the argument.")
@click.option("--name", default="", help="The image's name, whatever the archive says.")
@click.option("-q", "--quiet", is_flag=True, help="Print the ids alone.")
@click.pass_obj
def load(paths: Paths, source: str | None, input_: str | None, name: str, quiet: bool) -> None:
    """Load images from SOURCE: an OCI layout directory, an oci-archive or a docker-archive.

    Archives may be compressed with gzip or zstd. Without SOURCE, or where it is `-`, standard
    input is read. Every digest is verified before anything becomes visible.
    """
    if source and input_:
        raise click.UsageError("give SOURCE or --input, not both")
    chosen = source or input_ or "-"
    _refuse_terminal(chosen)
    with _Progress(quiet) as progress:
        loaded = ImageStore(paths).load(chosen, name=name, progress=progress.show)
    for one in loaded:
        print(one.id if quiet else f"Loaded image: {_said(one)}")


@image.command(
    "import", epilog="Example: tar -C rootfs -c . | pyrun image import - mine --change 'CMD sh'"
)
@click.argument("source")
@click.argument("name", required=False, default="")
@click.option(
    "-c",
    "--change",
    "changes",
    multiple=True,
    metavar="LINE",
    help="A Dockerfile line about the image; may be given several times.",
)
@click.option("-m", "--message", default="", help="A comment for the history.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.pass_obj
def import_(
    paths: Paths, source: str, name: str, changes: tuple[str, ...], message: str, quiet: bool
) -> None:
    """Make an image of one layer from the plain tar SOURCE of a root file system."""
    _refuse_terminal(source)
    with _Progress(quiet) as progress:
        made = ImageStore(paths).import_(
            source, name=name, changes=changes, message=message, progress=progress.show
        )
    print(made.id)


@image.command(epilog="Example: pyrun image ls")
@click.option("-q", "--quiet", is_flag=True, help="Print ids alone.")
@click.option("--digests", is_flag=True, help="Show the digest of each manifest too.")
@click.option("--no-trunc", is_flag=True, help="Print ids in full.")
@format_option
@click.pass_obj
def ls(paths: Paths, quiet: bool, digests: bool, no_trunc: bool, format_: str) -> None:
    """List images, the newest first."""
    images = sorted(ImageStore(paths).images(), key=_created, reverse=True)
    if quiet:
        for one in images:
            print(one.id if no_trunc else _short(one.id))
    elif format_ == "json":
        output.print_json([_summary(one) for one in images])
    else:
        rows = [row for one in images for row in _rows(one, digests, no_trunc)]
        header = ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"]
        if digests:
            header.insert(2, "DIGEST")
        output.table(rows, header)


@image.command(epilog="Example: pyrun image inspect busybox")
@click.argument("refs", nargs=-1, required=True, metavar="IMAGE...", type=IMAGE)
@click.pass_obj
def inspect(paths: Paths, refs: tuple[str, ...]) -> None:
    """Print all that is known about images, as a JSON list."""
    store = ImageStore(paths)
    found, failed = _each(refs, lambda ref: _details(store, store.resolve(ref)))
    output.print_json(found)
    _exit(failed)


@image.command(epilog="Example: pyrun image history busybox")
@click.argument("ref", metavar="IMAGE", type=IMAGE)
@click.option("--no-trunc", is_flag=True, help="Do not cut long commands.")
@format_option
@click.pass_obj
def history(paths: Paths, ref: str, no_trunc: bool, format_: str) -> None:
    """Show how an image came about, the last step first."""
    found = ImageStore(paths).resolve(ref)
    steps = _history(found)
    if format_ == "json":
        output.print_json(steps)
        return
    rows = []
    for step in steps:
        text = " ".join(step["created_by"].split())
        cut = text if no_trunc or len(text) <= 60 else text[:59] + "…"
        layer = _short(step["layer"]) if step["layer"] else "-"
        rows.append([layer, output.ago(step["created"]), cut, step["comment"]])
    output.table(rows, ["LAYER", "CREATED", "CREATED BY", "COMMENT"])


@image.command(epilog="Example: pyrun image tag busybox localhost/mine:1")
@click.argument("ref", metavar="IMAGE", type=IMAGE)
@click.argument("new", metavar="NEW_NAME")
@click.pass_obj
def tag(paths: Paths, ref: str, new: str) -> None:
    """Give an image one more name."""
    ImageStore(paths).tag(ref, new)


@image.command(epilog="Example: pyrun image rm localhost/mine:1")
@click.argument("refs", nargs=-1, required=True, metavar="IMAGE...", type=IMAGE)
@click.option("-f", "--force", is_flag=True, help="Take all the names of an image away.")
@click.pass_obj
def rm(paths: Paths, refs: tuple[str, ...], force: bool) -> None:
    """Remove names, and with its last name an image.

    An image that a container needs stays; the message names the containers.
    """
    from pyrun.container.record import users_of_image

    store = ImageStore(paths)

    def remove(ref: str) -> list[str]:
        return store.remove(ref, force=force, users=lambda id_: users_of_image(paths, id_))

    removed, failed = _each(refs, remove)
    for line in (line for lines in removed for line in lines):
        print(line)
    _exit(failed)


@image.command(epilog='Example: ls "$(pyrun image mount busybox)"')
@click.argument("ref", metavar="IMAGE", type=IMAGE)
@click.pass_obj
def mount(paths: Paths, ref: str) -> None:
    """Mount an image read-only and print the path of its tree."""
    from pyrun.image import mount as mounting

    print(mounting.mount(ImageStore(paths), ref))


@image.command(epilog="Example: pyrun image unmount busybox")
@click.argument("refs", nargs=-1, required=True, metavar="IMAGE...", type=IMAGE)
@click.pass_obj
def unmount(paths: Paths, refs: tuple[str, ...]) -> None:
    """Take the mounts of images away."""
    from pyrun.image import mount as mounting

    done, failed = _each(refs, lambda ref: mounting.unmount(ImageStore(paths), ref))
    for one in done:
        print(one.id)
    _exit(failed)


# What is printed


def _rows(one: Image, digests: bool, no_trunc: bool) -> list[list[str]]:
    """A line for each name; an image without names has one too."""
    rows = []
    for name in one.names or ("",):
        repository, tag_ = reference.split(name) if name else ("<none>", "<none>")
        row = [
            reference.familiar(repository),
            tag_,
            one.id if no_trunc else _short(one.id),
            output.ago(_created(one)),
            output.human_size(one.size),
        ]
        if digests:
            row.insert(2, one.manifest)
        rows.append(row)
    return rows


def _summary(one: Image) -> dict[str, Any]:
    return {
        "Id": one.id,
        "Names": list(one.names),
        "Digest": one.manifest,
        "Created": _created(one),
        "Size": one.size,
    }


def _details(store: ImageStore, one: Image) -> dict[str, Any]:
    return {
        "Id": one.id,
        "RepoTags": [reference.familiar(name) for name in one.names],
        "RepoDigests": [reference.familiar(name) for name in one.digests],
        "Names": list(one.names),
        "Digest": one.manifest,
        "Created": _created(one),
        "Author": one.config.get("author", ""),
        "Architecture": one.config.get("architecture", ""),
        "Variant": one.config.get("variant", ""),
        "Os": one.config.get("os", ""),
        "Size": one.size,
        "Config": one.config.get("config") or {},
        "RootFS": {"Type": "layers", "Layers": list(one.diff_ids)},
        "LowerDirs": store.lowerdirs(one),
        "History": one.config.get("history") or [],
    }


def _history(one: Image) -> list[dict[str, str]]:
    """The config's history, newest first, each step that made a layer beside its diff_id."""
    layers = list(one.diff_ids)[::-1]
    steps = []
    for step in one.config.get("history") or []:
        layer = layers.pop() if layers and not step.get("empty_layer") else ""
        steps.append(
            {
                "layer": layer,
                "created": str(step.get("created") or ""),
                "created_by": str(step.get("created_by") or ""),
                "comment": str(step.get("comment") or ""),
            }
        )
    return steps[::-1]


def _created(one: Image) -> str:
    return str(one.config.get("created") or "")


def _short(digest: str) -> str:
    return digest.partition(":")[2][:12]


def _said(one: Image) -> str:
    return ", ".join(map(reference.familiar, one.names)) or one.id


# Several arguments, one of which may fail


def _each(refs: tuple[str, ...], act: Callable[[str], Any]) -> tuple[list[Any], int]:
    """Do `act` for all refs; errors are printed, the others go on. Returns the last exit code."""
    done: list[Any] = []
    failed = 0
    for ref in refs:
        try:
            done.append(act(ref))
        except PyrunError as error:
            output.print_error(error)
            failed = error.exit_code
    return done, failed


def _exit(code: int) -> None:
    if code:
        sys.exit(code)


def _refuse_terminal(source: str) -> None:
    if source == "-" and sys.stdin.isatty():
        raise NotFound(
            "no archive was given and standard input is a terminal",
            hint="name a file or a directory, or pipe an archive in",
        )


class _Progress:
    """On a terminal one line that is written over; in a pipe one line for each finished layer."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.terminal = sys.stderr.isatty()
        self._open = False

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()

    def show(self, label: str, done: int, total: int) -> None:
        if self.quiet:
            return
        if done >= total:
            self._clear()
            print(f"{label} {output.human_size(total)}", file=sys.stderr, flush=True)
        elif self.terminal:
            text = f"{label} {output.human_size(done)} of {output.human_size(total)}"
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
            self._open = True

    def _clear(self) -> None:
        if self._open:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
            self._open = False
