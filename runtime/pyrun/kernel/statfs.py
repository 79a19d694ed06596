"""statfs(2): which file system really lies behind a path.

Python's os.statvfs() leaves out `f_type`, the one field that tells a cgroup directory from a plain
folder in a tmpfs. The magic numbers are in `const.py`.
"""

from __future__ import annotations

import os

from pyrun.kernel.libc import check, ctypes, libc


def filesystem_type(path: str) -> int:
    """`f_type` of the file system `path` lies on. Raises KernelError."""
    # struct statfs begins with a long f_type on every 64-bit architecture and is 120 bytes long.
    buffer = (ctypes.c_long * 32)()
    check(libc.statfs(os.fsencode(path), ctypes.byref(buffer)), f"statfs({path})")
    return buffer[0] & 0xFFFFFFFF
