"""The image that is always there: busybox, made from this host's own program.

With no network and no image at hand a learner still needs something to run. Debian's and Ubuntu's
`busybox-static` is one program that is a shell and 260 tools, chosen by the name it is called by.
This file puts it into a real OCI image layout with a symlink for every tool. The bytes depend on
the program alone, so the digest is the same every time.

Where there is no static busybox, a dynamic one or a few host programs are taken together with the
libraries they load. Loading the layout into the store is `store.py`'s work.
"""

from __future__ import annotations

import os
import struct

from pyrun.errors import NotFound, Unsupported
from pyrun.image.write import Entry, Layer, directory, regular, symlink, write_layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyrun.image.store import Image, ImageStore

NAME = "docker.io/library/busybox:latest"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CONFIG: dict[str, Any] = {
    "created": "1970-01-01T00:00:00Z",
    "config": {"Cmd": ["sh"], "Env": [f"PATH={PATH}"]},
}

HOST_PROGRAMS = (
    "sh cat chmod chown cp date df echo env false head hostname id ip kill ln ls mkdir mount mv "
    "ps pwd rm rmdir sleep sort stat tail test touch true umount uname wc"
).split()
"""What the image has where the host has no busybox: those of them that the host has."""

DIRECTORIES = {
    "bin": 0o755,
    "dev": 0o755,
    "etc": 0o755,
    "home": 0o755,
    "proc": 0o755,
    "root": 0o700,
    "run": 0o755,
    "sbin": 0o755,
    "sys": 0o755,
    "tmp": 0o1777,
    "usr": 0o755,
    "usr/bin": 0o755,
    "usr/sbin": 0o755,
    "var": 0o755,
    "var/tmp": 0o1777,
}

FILES = {
    "etc/passwd": """\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
""",
    "etc/group": """\
root:x:0:
daemon:x:1:
tty:x:5:
www-data:x:33:
users:x:100:
nogroup:x:65534:
""",
    "etc/nsswitch.conf": "hosts: files dns\n",
}

# ELF, elf(5): the program header that names the dynamic loader.
PT_INTERP = 3


def ensure_busybox(store: ImageStore) -> Image:
    """The image `busybox` of `store`; it is made and loaded first where it is missing."""
    try:
        return store.resolve(NAME)
    except NotFound:
        pass
    import tempfile

    with tempfile.TemporaryDirectory(prefix="pyrun-busybox.") as layout:
        make_busybox(layout)
        return store.load(layout, name=NAME)[0]


def make_busybox(out_dir: str) -> str:
    """Write busybox's image layout into `out_dir`. Returns the manifest's digest.

    Raises Unsupported where the host has neither a busybox nor a shell to put in.
    """
    return write_layout(out_dir, [busybox_layer()], CONFIG, NAME)


def busybox_layer() -> Layer:
    """A small userland from this host: the base of every image pyrun ships."""
    program = find_busybox()
    if program:
        entries = busybox_entries(program)
        said = "busybox from the host"
    else:
        entries = host_entries(_on_host(HOST_PROGRAMS))
        said = "programs and libraries from the host"
    # Not compressed: a compressor's next version would change the digest.
    return Layer(skeleton() + entries, f"pyrun: {said}", gzip=False)


def skeleton() -> list[Entry]:
    """Directories, users and groups, as every program expects to find them."""
    entries = [directory(path, mode, mtime=0) for path, mode in DIRECTORIES.items()]
    return entries + [regular(path, text.encode(), mtime=0) for path, text in FILES.items()]


def find_busybox() -> str | None:
    """The host's busybox, a static one if there is one. None where there is none."""
    found = _on_host(["busybox"]) + _on_host(["busybox.static", "busybox-static"])
    static = [path for path in found if elf_interpreter(path) is None]
    return (static + found + [None])[0]


def busybox_entries(program: str) -> list[Entry]:
    """/bin/busybox, what it loads, and a symlink for every tool it is."""
    entries = [regular("bin/busybox", program, 0o755, mtime=0)]
    entries += library_entries([program])
    for place in _output([program, "--list-full"]).split():
        folder, _, applet = place.rpartition("/")
        if applet == "busybox" or not folder:
            continue
        # Some ask for /bin/NAME of everything, scripts for /usr/bin/env: both places have it.
        for where in {"bin", folder}:
            up = "../" * (where.count("/") + 1)
            target = "busybox" if where == "bin" else f"{up}bin/busybox"
            entries.append(symlink(f"{where}/{applet}", target, mtime=0))
    return entries


def host_entries(programs: list[str]) -> list[Entry]:
    """Host programs at /bin/NAME and the libraries they load, at the paths they load them from.

    Raises Unsupported where there is no shell among them.
    """
    if not any(path.endswith("/sh") for path in programs):
        raise Unsupported(
            "cannot make the embedded image: this host has no busybox and no sh",
            hint="install busybox-static, or load an image with `pyrun image load`",
        )
    entries = [
        regular(f"bin/{os.path.basename(path)}", os.path.realpath(path), 0o755, mtime=0)
        for path in programs
        # A script would need its interpreter too.
        if is_elf(path)
    ]
    return entries + library_entries(programs)


def library_entries(programs: list[str]) -> list[Entry]:
    """The dynamic loader and the libraries of `programs`, and the directories they are in."""
    paths: set[str] = set()
    for program in programs:
        paths.update(libraries(program))
    folders: set[str] = set()
    for path in paths:
        parts = path.strip("/").split("/")[:-1]
        folders.update("/".join(parts[: n + 1]) for n in range(len(parts)))
    folders -= set(DIRECTORIES)
    return [directory(path, mtime=0) for path in sorted(folders)] + [
        regular(path, os.path.realpath(path), 0o755, mtime=0) for path in sorted(paths)
    ]


def libraries(program: str) -> list[str]:
    """What the dynamic loader maps for `program`: itself and the libraries. Empty when static.

    Asks the loader instead of running the program, as ldd(1) does: `ld.so --list program`
    prints `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f…)`.
    """
    interpreter = elf_interpreter(program)
    if interpreter is None:
        return []
    found = [interpreter]
    for line in _output([interpreter, "--list", program]).splitlines():
        path = line.rpartition("=> ")[2].strip().split(" (")[0]
        if path.startswith("/") and path not in found:
            found.append(path)
    return found


def is_elf(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"\x7fELF"


def elf_interpreter(path: str) -> str | None:
    """The dynamic loader a program asks the kernel for, or None: it is static (or no ELF).

    An ELF file's program headers say what the kernel does with it; PT_INTERP names the loader.
    """
    with open(path, "rb") as file:
        head = file.read(64)
        if head[:4] != b"\x7fELF":
            return None
        wide = head[4] == 2
        order = "<" if head[5] == 1 else ">"
        # e_phoff, and after five other fields e_phentsize and e_phnum.
        offset_at, count_at, offset_format = (32, 54, "Q") if wide else (28, 42, "I")
        (offset,) = struct.unpack_from(order + offset_format, head, offset_at)
        size, count = struct.unpack_from(order + "HH", head, count_at)
        file.seek(offset)
        headers = file.read(size * count)
        for at in range(0, size * count, size):
            if struct.unpack_from(order + "I", headers, at)[0] != PT_INTERP:
                continue
            # p_offset and p_filesz.
            where = struct.unpack_from(order + offset_format, headers, at + (8 if wide else 4))[0]
            long = struct.unpack_from(order + offset_format, headers, at + (32 if wide else 16))[0]
            file.seek(where)
            return os.fsdecode(file.read(long).rstrip(b"\0"))
    return None


def _on_host(names: list[str]) -> list[str]:
    """Where the host has these programs, for those it has."""
    folders = PATH.split(":")
    found = []
    for name in names:
        paths = [f"{folder}/{name}" for folder in folders]
        found += [path for path in paths if os.access(path, os.X_OK)][:1]
    return found


def _output(command: list[str]) -> str:
    import subprocess

    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
