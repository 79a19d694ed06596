"""Mounts: mount(2) and the new API (fsopen, open_tree, mount_setattr), pivot_root(2), overlay.

Targets inside a container are never given as paths here: the caller opened them beneath the
rootfs (`files.open_in_root`), and the mount goes onto `/proc/self/fd/N`, which cannot be swapped.
"""

from __future__ import annotations

import os

from pyrun.errors import KernelError
from pyrun.kernel import const
from pyrun.kernel.libc import c_char_p, c_ulong, check, ctypes, libc, syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class mount_attr(ctypes.Structure):
    """struct mount_attr of mount_setattr(2)."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clr", "propagation", "userns_fd")]


def mount(source: str, target: str, fstype: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2). Raises KernelError, whose text shows the call."""
    result = libc.mount(
        os.fsencode(source) if source else None,
        os.fsencode(target),
        fstype.encode() if fstype else None,
        c_ulong(flags),
        c_char_p(data.encode()) if data else None,
    )
    check(result, f"mount({source!r}, {target!r}, {fstype!r}, {flags:#x}, {data!r})")


def umount(target: str, flags: int = const.MNT_DETACH | const.UMOUNT_NOFOLLOW) -> None:
    """umount2(2). What is not mounted, or not there at all, is fine."""
    try:
        check(libc.umount2(os.fsencode(target), flags), f"umount2({target!r})")
    except KernelError as error:
        if error.errno not in (2, 22):  # ENOENT; EINVAL: not a mount point
            raise


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2). With "." for both, the old root ends up stacked under the new one."""
    syscall(
        const.SYS_pivot_root,
        f"pivot_root({new_root!r}, {put_old!r})",
        new_root.encode(),
        put_old.encode(),
    )


def fsopen(fstype: str) -> int:
    return syscall(const.SYS_fsopen, f"fsopen({fstype!r})", fstype.encode(), const.FSOPEN_CLOEXEC)


def fsconfig(fd: int, command: int, key: str = "", value: str = "") -> None:
    """fsconfig(2) for strings, flags and the create command.

    On failure the file system's own words are added: they can be read from the descriptor.
    """
    try:
        syscall(
            const.SYS_fsconfig,
            f"fsconfig({key}{'=' if value else ''}{value})",
            fd,
            command,
            key.encode() if key else None,
            os.fsencode(value) if value else None,
            0,
        )
    except KernelError as error:
        error.call += fs_messages(fd)
        raise


def fs_messages(fd: int) -> str:
    """What the file system says about a failed fsconfig, as ` [overlay: …]`, or nothing."""
    said = []
    while True:
        try:
            said.append(os.read(fd, 1024).decode(errors="replace").strip())
        except OSError:
            return f" [{'; '.join(said)}]" if said else ""


def fsmount(fd: int, attributes: int = 0) -> int:
    return syscall(const.SYS_fsmount, "fsmount", fd, const.FSMOUNT_CLOEXEC, attributes)


def open_tree(path: str, flags: int, dirfd: int = const.AT_FDCWD) -> int:
    return syscall(
        const.SYS_open_tree,
        f"open_tree({path!r})",
        dirfd,
        os.fsencode(path),
        flags | const.OPEN_TREE_CLOEXEC,
    )


def move_mount(mount_fd: int, target: str) -> None:
    """Attach a detached mount (from fsmount or open_tree) at `target`."""
    syscall(
        const.SYS_move_mount,
        f"move_mount({target!r})",
        mount_fd,
        b"",
        const.AT_FDCWD,
        os.fsencode(target),
        const.MOVE_MOUNT_F_EMPTY_PATH,
    )


def mount_setattr(
    path: str,
    flags: int,
    *,
    set_: int = 0,
    clear: int = 0,
    propagation: int = 0,
    dirfd: int = const.AT_FDCWD,
) -> None:
    """mount_setattr(2): what is not named in `set_` or `clear` stays as it is."""
    attributes = mount_attr(set_, clear, propagation, 0)
    syscall(
        const.SYS_mount_setattr,
        f"mount_setattr({path!r}, {set_:#x})",
        dirfd,
        os.fsencode(path),
        flags,
        ctypes.byref(attributes),
        ctypes.sizeof(attributes),
    )


ATTRIBUTES = {
    const.MS_RDONLY: const.MOUNT_ATTR_RDONLY,
    const.MS_NOSUID: const.MOUNT_ATTR_NOSUID,
    const.MS_NODEV: const.MOUNT_ATTR_NODEV,
    const.MS_NOEXEC: const.MOUNT_ATTR_NOEXEC,
    const.MS_NODIRATIME: const.MOUNT_ATTR_NODIRATIME,
    const.MS_NOSYMFOLLOW: const.MOUNT_ATTR_NOSYMFOLLOW,
}
TIMES = {
    const.MS_NOATIME: const.MOUNT_ATTR_NOATIME,
    const.MS_STRICTATIME: const.MOUNT_ATTR_STRICTATIME,
    const.MS_RELATIME: 0,
}


def detached_bind(source: int, flags: int, propagation: Sequence[int]) -> int:
    """A bind mount of what descriptor `source` shows, attached nowhere yet, its attributes set.

    Nothing can be swapped between the mount and its flags, as it could where a bind is made and
    remounted by name. flags are MS_* of mount(2); MS_REC binds what is mounted below as well.
    Returns a descriptor for `attach`.
    """
    whole = const.AT_RECURSIVE if flags & const.MS_REC else 0
    fd = open_tree("", const.OPEN_TREE_CLONE | const.AT_EMPTY_PATH | whole, source)
    try:
        set_ = sum(attribute for flag, attribute in ATTRIBUTES.items() if flags & flag)
        times = [attribute for flag, attribute in TIMES.items() if flags & flag]
        if set_ or times:
            clear = const.MOUNT_ATTR__ATIME if times else 0
            mount_setattr("", const.AT_EMPTY_PATH, set_=set_ | sum(times), clear=clear, dirfd=fd)
        for kind in propagation:
            below = const.AT_RECURSIVE if kind & const.MS_REC else 0
            mount_setattr(
                "", const.AT_EMPTY_PATH | below, propagation=kind & ~const.MS_REC, dirfd=fd
            )
    except KernelError:
        os.close(fd)
        raise
    return fd


def attach(mount_fd: int, target: int) -> None:
    """move_mount(2): attach a detached mount over what descriptor `target` shows."""
    syscall(
        const.SYS_move_mount,
        "move_mount",
        mount_fd,
        b"",
        target,
        b"",
        const.MOVE_MOUNT_F_EMPTY_PATH | const.MOVE_MOUNT_T_EMPTY_PATH,
    )


def read_only_clone(path: str) -> int:
    """A descriptor of `path` on a detached, read-only mount of its own.

    A program executed through it shows that mount in /proc/self/exe: nobody who reaches it that
    way can open the file for writing (EROFS), which is what CVE-2019-5736 needed.
    Raises KernelError, ENOSYS before Linux 5.12.
    """
    fd = open_tree(path, const.OPEN_TREE_CLONE)
    try:
        mount_setattr("", const.AT_EMPTY_PATH, set_=const.MOUNT_ATTR_RDONLY, dirfd=fd)
    except KernelError:
        os.close(fd)
        raise
    return fd


def mount_overlay(
    target: str,
    lowerdirs: Sequence[str],
    upperdir: str | None = None,
    workdir: str | None = None,
    readonly: bool = False,
    volatile: bool = False,
) -> None:
    """Mount an overlay of `lowerdirs` (top layer first) on `target`.

    Without `upperdir` the mount is read-only. `volatile` leaves out every sync of the upper
    directory, also the one at unmount, which waits for all that anybody has written to that file
    system: right for a container whose changes are thrown away at its end. Raises KernelError.
    """
    if upperdir is None:
        readonly = True
        if len(lowerdirs) == 1:  # the kernel wants two layers, or one and an upper directory
            mount(lowerdirs[0], target, "", const.MS_BIND)
            mount("", target, "", const.MS_BIND | const.MS_REMOUNT | const.MS_RDONLY)
            return
    if has_lowerdir_plus(os.uname().release):
        _overlay_by_fsopen(target, lowerdirs, upperdir, workdir, readonly, volatile)
    else:
        _overlay_by_mount(target, lowerdirs, upperdir, workdir, readonly, volatile)


def has_lowerdir_plus(release: str) -> bool:
    """Whether overlayfs takes layers one by one: since Linux 6.5.

    Asked of the release, not by trying: older kernels write a complaint into their log each time.
    """
    major, minor, *_ = (*release.partition("-")[0].split("."), "0")
    return (int(major), int("".join(filter(str.isdigit, minor)) or 0)) >= (6, 5)


def _overlay_by_fsopen(
    target: str,
    lowerdirs: Sequence[str],
    upperdir: str | None,
    workdir: str | None,
    readonly: bool,
    volatile: bool,
) -> None:
    fd = fsopen("overlay")
    try:
        fsconfig(fd, const.FSCONFIG_SET_STRING, "source", "overlay")
        for lower in lowerdirs:
            fsconfig(fd, const.FSCONFIG_SET_STRING, "lowerdir+", lower)
        if upperdir is not None:
            fsconfig(fd, const.FSCONFIG_SET_STRING, "upperdir", upperdir)
            fsconfig(fd, const.FSCONFIG_SET_STRING, "workdir", workdir or "")
            if volatile:
                fsconfig(fd, const.FSCONFIG_SET_FLAG, "volatile")
        fsconfig(fd, const.FSCONFIG_CMD_CREATE)
        mounted = fsmount(fd, const.MOUNT_ATTR_RDONLY if readonly else 0)
    finally:
        os.close(fd)
    try:
        move_mount(mounted, target)
    finally:
        os.close(mounted)


def _overlay_by_mount(
    target: str,
    lowerdirs: Sequence[str],
    upperdir: str | None,
    workdir: str | None,
    readonly: bool,
    volatile: bool,
) -> None:
    """The old way. All options must fit one page, so directories are named by descriptor.

    From /proc/self/fd as working directory a lower directory costs about four bytes; and colons
    and commas in real paths need no escaping.
    """
    target_fd = os.open(target, const.O_PATH | os.O_CLOEXEC)
    cwd = os.open(".", const.O_PATH | os.O_CLOEXEC)
    opened = []

    def name(path: str) -> str:
        opened.append(os.open(path, const.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        return str(opened[-1])

    try:
        options = "lowerdir=" + ":".join(map(name, lowerdirs))
        if upperdir is not None:
            options += f",upperdir={name(upperdir)},workdir={name(workdir or '')}"
            options += ",volatile" if volatile else ""
        os.chdir("/proc/self/fd")
        mount(
            "overlay",
            f"/proc/self/fd/{target_fd}",
            "overlay",
            const.MS_RDONLY if readonly else 0,
            options,
        )
    finally:
        os.fchdir(cwd)
        for fd in (target_fd, cwd, *opened):
            os.close(fd)


def is_mount_point(path: str) -> bool:
    """Whether something is mounted exactly at `path`, by mountinfo (proc(5))."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        return any(line.split(" ", 5)[4] == path for line in table)


def mount_tmpfs(target: str, options: str) -> None:
    """A tmpfs on a host directory that pyrun owns (a pod's /dev/shm, a memory emptyDir)."""
    os.makedirs(target, 0o755, exist_ok=True)
    mount("tmpfs", target, "tmpfs", const.MS_NOSUID | const.MS_NODEV, options)


def bind(source: str, target: str) -> None:
    mount(source, target, "", const.MS_BIND)
