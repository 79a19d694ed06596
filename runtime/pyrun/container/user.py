"""`--user` to numbers: by the passwd and group files of the image itself, never the host's.

The files are looked up in the layers, top first, each opened with its layer as root, so a link in
an image leads nowhere else. docker's rules: USER[:GROUP], names or numbers; a number need not be
in the files; without a group the user's own groups apply.
"""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from pyrun.errors import BadInput, KernelError
from pyrun.kernel import files

LARGEST = 1 << 20
"""Bytes read of a passwd or group file: an image must not fill our memory."""
MAX_ID = (1 << 32) - 2


class Identity(NamedTuple):
    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = "/"


def identify(user: str, extra: tuple[str, ...], layers: list[str]) -> Identity:
    """The numbers that `user` means in the image made of `layers` (top first). Raises BadInput."""
    passwd = [line.split(":") for line in read_file(layers, "etc/passwd")]
    group = [line.split(":") for line in read_file(layers, "etc/group")]
    passwd = [row for row in passwd if len(row) >= 6 and row[2].isdecimal() and row[3].isdecimal()]
    group = [row for row in group if len(row) >= 4 and row[2].isdecimal()]
    name, colon, group_name = (user or "0").partition(":")
    row = next((row for row in passwd if row[0] == name), None)
    if row is None and name.isdecimal():
        row = next((row for row in passwd if int(row[2]) == int(name)), None)
    if row is not None:
        uid, gid, home = int(row[2]), int(row[3]), row[5]
    elif name.isdecimal() and int(name) <= MAX_ID:
        uid, gid, home = int(name), 0, "/"
    else:
        raise BadInput(
            f"--user: the image has no user {name!r}",
            hint="its /etc/passwd lists them; a number always works",
        )
    groups = []
    if colon:
        gid = group_number(group_name, group)
    elif row is not None:
        groups = [int(g[2]) for g in group if row[0] in g[3].split(",") and int(g[2]) != gid]
    groups += [group_number(name, group) for name in extra]
    # The primary group among the supplementary ones too: without it a program that gives up its
    # group could reach what is forbidden to that very group (CVE-2022-36109).
    return Identity(uid, gid, tuple(dict.fromkeys((gid, *groups))), home or "/")


def group_number(name: str, group: list[list[str]]) -> int:
    for row in group:
        if row[0] == name:
            return int(row[2])
    if name.isdecimal() and int(name) <= MAX_ID:
        return int(name)
    raise BadInput(
        f"--user: the image has no group {name!r}",
        hint="its /etc/group lists them; a number always works",
    )


def read_file(layers: list[str], path: str) -> list[str]:
    """The lines of `path` in the first layer that has it; [] where none has, or it is removed."""
    for layer in layers:
        root = os.open(layer, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # O_NONBLOCK: an image could have a FIFO there, and wait for ever.
            fd = files.open_in_root(root, path, os.O_RDONLY | os.O_NONBLOCK)
        except KernelError as error:
            if error.errno in (2, 20, 40):
                continue
            if error.errno in (6, 13):  # ENXIO, EACCES: a whiteout, a device that cannot be opened
                return []
            raise
        finally:
            os.close(root)
        with open(fd, encoding="utf-8", errors="replace") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return []
            return file.read(LARGEST).splitlines()
    return []
