"""The door to libc: one place that loads it, one function that turns errno into KernelError.

Only `pyrun.kernel` calls libc. What belongs here: loading, `syscall(2)`, `prctl(2)`. Mounts are
in `mounts.py`, processes in `process.py`, names of constants in `const.py`.
"""

from __future__ import annotations

import ctypes as ctypes  # said twice: the rest of kernel/ takes it from here
import os

from pyrun.errors import KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

c_char_p, c_int, c_uint, c_ulong = ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_ulong


def check(result: int, call: str) -> int:
    """`result`, or KernelError with errno and the text of the `call` when it is -1."""
    if result == -1:
        raise KernelError(ctypes.get_errno(), call)
    return result


def syscall(number: int | dict[str, int], call: str, *args: Any) -> int:
    """syscall(2) with `args` as C longs or pointers. `call` is what an error message shows."""
    if isinstance(number, dict):
        number = number[os.uname().machine]
    wide = [c_ulong(a & 0xFFFFFFFFFFFFFFFF) if isinstance(a, int) else a for a in args]
    return check(libc.syscall(c_ulong(number), *wide), call)


def prctl(option: int, *args: int) -> int:
    """prctl(2). Raises KernelError."""
    padded = [*args, 0, 0, 0, 0][:4]
    return check(
        libc.prctl(option, *map(c_ulong, padded)), f"prctl({option}, {', '.join(map(str, args))})"
    )
