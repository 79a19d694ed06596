"""linux.seccomp of config.json → a compiled filter, kept on disk.

Compiling takes libseccomp some milliseconds, which would be half of a container's start; so the
program is kept below the cache directory under the hash of everything it depends on. This module
is the fast way through: it finds and checks the file. `seccomp_compile.py` does the work where
there is none, `seccomp_default.py` has the profile of containers that bring none.

A file is a 32-byte checksum, 4 bytes of flags for seccomp(2), and the program. The checksum also
covers the file's name: a program copied over another one's place is refused.
"""

from __future__ import annotations

import os

from pyrun.errors import BadInput
from pyrun.store.fastjson import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

try:
    from _blake2 import blake2b  # hashlib loads OpenSSL, 2.5 ms; this is the part it wraps
except ImportError:  # not CPython
    from hashlib import blake2b

FORMAT = 1
"""Part of every key: raised when the compiler's output changes, so that old files are not used."""
DIGEST = 32
HEADER = DIGEST + 4

LIBRARY_DIRS = ("/usr/lib/{0}-linux-gnu", "/usr/lib64", "/lib/{0}-linux-gnu", "/lib64", "/usr/lib")


def compiled(profile: dict[str, Any], cache_dir: str) -> str:
    """The path of the filter compiled from `profile`; it is compiled when it is missing or bad.

    Raises BadInput where the profile is wrong, Unsupported where libseccomp or this version
    cannot do what it asks, OSError where the cache cannot be written.
    """
    key = _key(profile)
    path = f"{cache_dir}/seccomp-{key}"
    try:
        _read(path)
    except (OSError, BadInput):
        from pyrun.oci import seccomp_compile

        program = seccomp_compile.compile_profile(profile)
        body = seccomp_compile.filter_flags(profile).to_bytes(4, "little") + program
        os.makedirs(cache_dir, 0o700, exist_ok=True)
        _write(path, _checksum(path, body) + body)
    return path


def load(path: str) -> bytes:
    """The program kept at `path`. Raises BadInput where the file is not what was written."""
    return _read(path)[1]


def load_flags(path: str) -> int:
    """The SECCOMP_FILTER_FLAG_* that the profile of the program at `path` asked for."""
    return _read(path)[0]


def _key(profile: dict[str, Any]) -> str:
    """A name for all that the program depends on.

    The hash is a cryptographic one: whoever writes a profile must not be able to make it collide
    with another's. The kernel's release is part of it because libseccomp asks the kernel which
    actions it knows.
    """
    uname = os.uname()
    facts = f"{FORMAT} {uname.machine} {uname.release} {_library(uname.machine)} {dumps(profile)}"
    return blake2b(facts.encode(), digest_size=20).hexdigest()


def _library(machine: str) -> str:
    """Tells one build of libseccomp from the next without loading it."""
    for directory in LIBRARY_DIRS:
        path = f"{directory.format(machine)}/libseccomp.so.2"
        try:
            status = os.stat(path)
        except OSError:
            continue
        return f"{path}:{status.st_size}:{status.st_mtime_ns}"
    return ""


def _checksum(path: str, body: bytes) -> bytes:
    return blake2b(os.fsencode(os.path.basename(path)) + b"\0" + body, digest_size=DIGEST).digest()


def _read(path: str) -> tuple[int, bytes]:
    """Flags and program. Raises OSError, and BadInput for a file that nobody should trust."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        status = os.fstat(fd)
        data = os.read(fd, status.st_size + 1)
    finally:
        os.close(fd)
    body = data[DIGEST:]
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        why = "others can write it"
    elif len(data) <= HEADER or data[:DIGEST] != _checksum(path, body):
        why = "its checksum is wrong"
    else:
        return int.from_bytes(body[:4], "little"), body[4:]
    raise BadInput(
        f"the compiled system call filter {path} cannot be used: {why}",
        hint="remove the file; it is made again when a container starts",
    )


def _write(path: str, data: bytes) -> None:
    """Whole or not at all. Not durable: after a power cut the checksum says what survived."""
    temporary = f"{path}.{os.getpid()}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(temporary, flags, 0o600)
    try:
        try:
            while data:
                data = data[os.write(fd, data) :]
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
