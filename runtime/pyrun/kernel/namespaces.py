"""Namespaces that outlive their makers: a bind mount of /proc/self/ns/* keeps one alive.

namespaces(7): a namespace lives while a process is in it, or while its file is open or mounted.
`ip netns` works this way; pyrun pins the network namespace where iproute2 does, and the UTS and
IPC namespaces beside the pod's other files.
"""

from __future__ import annotations

import os

from pyrun.errors import Conflict, KernelError
from pyrun.kernel import const, mounts, process

FILES = {"network": "net", "uts": "uts", "ipc": "ipc"}
FLAGS = {
    "network": const.CLONE_NEWNET,
    "uts": const.CLONE_NEWUTS,
    "ipc": const.CLONE_NEWIPC,
}


def share_directory(path: str) -> None:
    """Make `path` a shared mount point, as `ip netns add` does for /run/netns.

    Other programs see namespaces pinned in it, and removed from it, also in the mount namespaces
    they cloned before. Doing it again changes nothing.
    """
    os.makedirs(path, 0o755, exist_ok=True)
    try:
        mounts.mount("", path, "", const.MS_SHARED | const.MS_REC)
    except KernelError as error:
        if error.errno != 22:  # EINVAL: not a mount point yet
            raise
        mounts.mount(path, path, "", const.MS_BIND | const.MS_REC)
        mounts.mount("", path, "", const.MS_SHARED | const.MS_REC)


def pin(kind: str, path: str) -> None:
    """Make a new namespace of `kind` and pin it at `path`; the caller stays where it is.

    Raises Conflict when something is at `path` already, KernelError when the kernel refuses.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_CLOEXEC, 0))
    except FileExistsError:
        raise Conflict(
            f"a {kind} namespace is pinned at {path} already",
            hint="another program made it (`ip netns` lists them), or it was left behind: "
            f"`umount {path}; rm {path}`",
        ) from None
    file = f"/proc/self/ns/{FILES[kind]}"
    home = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        process.unshare(FLAGS[kind])
        try:
            mounts.mount(file, path, "", const.MS_BIND)
        finally:
            process.setns(home, FLAGS[kind])
    except OSError:
        os.unlink(path)
        raise
    finally:
        os.close(home)


def unpin(path: str) -> None:
    """Unmount and remove a pinned namespace; nothing there is fine. Undoes `pin`.

    Touches only what is a namespace, or the empty file that a killed `pin` left.
    """
    mounts.umount(path)
    try:
        if os.stat(path).st_size == 0:
            os.unlink(path)
    except FileNotFoundError:
        pass


def show(path: str, place: str) -> None:
    """Bind-mount the namespace pinned at `path` at `place` as well, where other programs look.

    Raises Conflict when something is at `place` already: another program's namespace, perhaps.
    """
    try:
        os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_CLOEXEC, 0))
    except FileExistsError:
        raise Conflict(
            f"a namespace is at {place} already",
            hint="another program made it (`ip netns` lists them): choose another name, or "
            f"remove it with `ip netns delete {os.path.basename(place)}`",
        ) from None
    try:
        mounts.bind(path, place)
    except OSError:
        os.unlink(place)
        raise


def hide(path: str, place: str) -> None:
    """Undo `show`. What is at `place` and is not the namespace pinned at `path` is left alone,
    but for the empty file of a `show` that was killed."""
    try:
        there = os.stat(place)
        if os.path.samestat(there, os.stat(path)):
            unpin(place)
        elif there.st_size == 0 and there.st_dev == os.stat(os.path.dirname(place)).st_dev:
            os.unlink(place)
    except FileNotFoundError:
        pass


def set_hostname(path: str, name: str) -> None:
    """sethostname(2) inside the UTS namespace pinned at `path`."""
    home = os.open("/proc/self/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
    there = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        process.setns(there, const.CLONE_NEWUTS)
        try:
            process.sethostname(name)
        finally:
            process.setns(home, const.CLONE_NEWUTS)
    finally:
        os.close(there)
        os.close(home)
