"""What a file has beside its bytes: holes, extended attributes, and overlayfs's marks on it."""

from __future__ import annotations

import os
import stat

from pyrun.errors import KernelError
from pyrun.image.stream import write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyrun.image import tar

OPAQUE_XATTR = "trusted.overlay.opaque"
XATTR_SPACES = (b"user.", b"security.", b"trusted.", b"system.")


def is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def remove_whiteouts(directory: int) -> None:
    """Unlink every whiteout in the directory descriptor `directory`."""
    for name in os.listdir(directory):
        if is_whiteout(os.stat(name, dir_fd=directory, follow_symlinks=False)):
            os.unlink(name, dir_fd=directory)


def path_at(parent: int, name: bytes) -> bytes:
    """A path for the calls that take no directory descriptor (lsetxattr has no *at form)."""
    return b"/proc/self/fd/%d/%s" % (parent, name)


def write_sparse(fd: int, entry: tar.Entry, reader: tar.Reader) -> None:
    """Seek over the holes; the file's length says that there is one at the end."""
    segments = iter(entry.segments or ())
    left = 0
    for piece in reader.content():
        while piece:
            while not left:
                offset, left = next(segments)
                os.lseek(fd, offset, os.SEEK_SET)
            write_all(fd, piece[:left])
            taken = min(left, len(piece))
            left -= taken
            piece = piece[taken:]
    os.ftruncate(fd, entry.size)


def set_xattrs(where: int | bytes, xattrs: dict[bytes, bytes], *, follow: bool) -> None:
    for name, value in xattrs.items():
        # trusted.overlay.* would be orders to this host's overlayfs, not content of the image.
        # Names outside Linux's four name spaces come from other systems (com.apple.…).
        if name.startswith(b"trusted.overlay.") or not name.startswith(XATTR_SPACES):
            continue
        try:
            os.setxattr(where, name, value, follow_symlinks=follow)
        except OSError as error:
            text = os.fsdecode(name)
            raise KernelError(error.errno or 0, f"setxattr({text}, {len(value)} bytes)") from None
