"""The second executor: runs the init plan inside the new process, until execve.

Each method is one kind of step; `oci/initplan.py` says in which order and why. The process is a
clone of the launcher, so everything it needs is loaded already: after pivot_root the host's
Python files are out of reach, and importing then would read the image's files as our code.
"""

from __future__ import annotations

import _signal
import fcntl
import os
import resource
import stat
import struct
import sys
import time

from pyrun.errors import KernelError
from pyrun.kernel import caps, const, files, mounts, process, seccomp
from pyrun.kernel.libc import prctl, syscall
from pyrun.kernel.statfs import filesystem_type
from pyrun.oci.seccomp import load, load_flags
from pyrun.store.fastjson import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from typing import Any

TIOCSCTTY = 0x540E
TIOCSWINSZ = 0x5414
TIOCSPTLCK = 0x40045431
TIOCGPTPEER = 0x5441

STEP, ERROR, TERMINAL = b"S", b"E", b"T"
"""First byte of each message to the launcher: a step done, the failure, a terminal's master."""


OVER_PROC = frozenset(
    f"/proc/{name}"
    for name in "cpuinfo diskstats loadavg meminfo slabinfo stat swaps uptime".split()
)
"""Files of /proc that may be covered: they only tell; lxcfs makes some that tell of the cgroup."""

SETTING_UP = "pyrun:setup"
"""Name of the process until execve(2) or `stay_as_init` gives it another."""


class Init:
    """State of one container process between clone and execve.

    root        descriptor of the rootfs, once it is mounted
    channel     socket to the launcher, close-on-exec: its end of file says that execve worked
    target      pidfd of the container to join, and
    target_root descriptor of its `/` (exec only)
    cgroups     where the container's cgroups are: [(name of the mount, host directory), …]
    """

    def __init__(
        self,
        channel: _socket.socket,
        *,
        target: int = -1,
        target_root: int = -1,
        cgroups: list[tuple[str, str]] | None = None,
        tell_steps: bool = False,
    ) -> None:
        self.channel = channel
        self.target = target
        self.target_root = target_root
        self.cgroups = cgroups or []
        self.tell_steps = tell_steps
        self.root = -1
        self.program, self.filter_flags = b"", 0
        self.pivoted = False
        process.set_name(SETTING_UP)
        # Nobody in a container may trace this process or open its memory while it is still ours;
        # execve sets the flag again.
        prctl(const.PR_SET_DUMPABLE, 0)

    def run(self, plan: list[list[Any]]) -> None:
        """Run `plan`, [[op, *args], …]. Returns only by exiting: 0 is never seen, execve wins."""
        # From here on an import could only find the image's files: there shall be none.
        sys.meta_path.clear()
        sys.path.clear()
        index = 0
        try:
            for index, (op, *args) in enumerate(plan):
                start = time.monotonic_ns()
                getattr(self, op)(*args)
                if self.tell_steps:
                    took = time.monotonic_ns() - start
                    self.channel.send(STEP + f"{index} {took}".encode())
        except BaseException as error:
            self.report(index, error)
        finally:
            os._exit(127)

    def report(self, index: int, error: BaseException) -> None:
        number = error.errno if isinstance(error, OSError) else 0
        message = {
            "step": index,
            "errno": number or 0,
            "text": str(error) or type(error).__name__,
        }
        try:
            self.channel.send(ERROR + dumps(message).encode())
        except OSError:
            pass

    # cgroups and namespaces

    def join_cgroup(self, path: str) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"0")  # 0 is the writer itself, whatever its pid is called elsewhere
        except OSError as error:
            raise KernelError(error.errno or 0, f"write 0 to {path}") from error
        finally:
            os.close(fd)

    def join_namespace(self, path: str, flag: int) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            process.setns(fd, flag)
        finally:
            os.close(fd)

    def join_target(self, kind: str, flag: int) -> None:
        """Join a namespace of the container; setns(2) takes a pidfd since Linux 5.8."""
        process.setns(self.target, flag)
        if kind == "mount":
            # setns puts us at the root of the namespace, which is not the container's `/` where
            # pyrun itself runs below a chroot: there it would be the real host's.
            os.fchdir(self.target_root)
            os.chroot(".")
            self.root = os.open("/", const.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            self.pivoted = True

    def unshare(self, flags: int) -> None:
        process.unshare(flags)

    def new_keyring(self) -> None:
        try:
            syscall(const.SYS_keyctl, "keyctl(JOIN_SESSION_KEYRING)", 1, None)
        except KernelError as error:
            if error.errno != 38:  # ENOSYS: a kernel without keys has none to leave
                raise

    def sethostname(self, name: str) -> None:
        process.sethostname(name)

    # the file system

    def propagation(self, path: str, flags: int) -> None:
        mounts.mount("", path, "", flags)

    def load_filter(self, path: str) -> None:
        self.program, self.filter_flags = load(path), load_flags(path)

    def mount_overlay(
        self, rootfs: str, lower: list[str], upper: str, work: str, volatile: bool
    ) -> None:
        mounts.mount_overlay(rootfs, lower, upper, work, volatile=volatile)
        self.open_rootfs(rootfs)

    def bind_rootfs(self, rootfs: str) -> None:
        mounts.mount(rootfs, rootfs, "", const.MS_BIND | const.MS_REC)
        self.open_rootfs(rootfs)

    def open_rootfs(self, rootfs: str) -> None:
        self.root = os.open(rootfs, const.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def target_path(self, path: str, *, directory: bool) -> tuple[int, str]:
        """Open a mount target beneath the rootfs, creating it. The path names the descriptor."""
        fd = files.make_in_root(self.root, path, directory=directory)
        name = f"/proc/self/fd/{fd}"
        if filesystem_type(name) == const.PROC_SUPER_MAGIC and path not in OVER_PROC:
            os.close(fd)
            raise KernelError(1, f"mount({path}): nothing may cover a part of /proc")
        return fd, name

    def mount(self, source: str, target: str, fstype: str, flags: int, data: str) -> None:
        self.refuse_moved(target)
        if fstype != "proc":
            self.refuse_false_proc(target)
        covered = self.mode_of(target) if fstype == "tmpfs" and "mode=" not in data else None
        fd, path = self.target_path(target, directory=True)
        try:
            if covered is not None:
                # As docker does: a tmpfs keeps the mode of a directory it covers. Where there was
                # none the kernel's own default stays: everybody may write (1777).
                data = ",".join(filter(None, (data, f"mode={covered:o}")))
            mounts.mount(source, path, fstype, flags, data)
        finally:
            os.close(fd)
        if target == "/dev":
            self.own_dev = True

    own_dev = False

    def mode_of(self, target: str) -> int | None:
        try:
            fd = files.open_in_root(self.root, target)
        except KernelError:
            return None
        try:
            return stat.S_IMODE(os.fstat(fd).st_mode)
        finally:
            os.close(fd)

    def refuse_moved(self, target: str) -> None:
        """/proc and /sys must be real directories: CVE-2019-16884 and its relatives begin with a
        link that moves them to where the container can write."""
        if target.rstrip("/") not in ("/proc", "/sys"):
            return
        try:
            mode = os.stat(target.strip("/"), dir_fd=self.root, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(mode):
            raise KernelError(20, f"the image's {target} is not a directory: mount({target})")

    def refuse_false_proc(self, target: str) -> None:
        """What is at /proc must be procfs: the steps after this one write there, and so do other
        programs with rights (CVE-2019-19921, CVE-2025-52881)."""
        if os.path.normpath(target) == "/proc":
            raise KernelError(1, "mount(/proc): only procfs itself may be there")

    def bind(self, source: str, target: str, flags: int, propagation: list[int]) -> None:
        if filesystem_type(source) != const.PROC_SUPER_MAGIC:
            self.refuse_false_proc(target)
        source_fd = os.open(source, const.O_PATH | os.O_CLOEXEC)
        opened = [source_fd]
        try:
            directory = stat.S_ISDIR(os.fstat(source_fd).st_mode)
            opened.append(mounts.detached_bind(source_fd, flags, propagation))
            opened.append(self.target_path(target, directory=directory)[0])
            mounts.attach(opened[1], opened[2])
        finally:
            for fd in opened:
                os.close(fd)

    def locked_flags(self, fd: int) -> int:
        """Mount flags in force at `fd`; statvfs reports them with their own numbers."""
        present = os.fstatvfs(fd).f_flag
        pairs = (
            (os.ST_NOSUID, const.MS_NOSUID),
            (os.ST_NODEV, const.MS_NODEV),
            (os.ST_NOEXEC, const.MS_NOEXEC),
            (os.ST_NOATIME, const.MS_NOATIME),
            (os.ST_NODIRATIME, const.MS_NODIRATIME),
            (os.ST_RELATIME, const.MS_RELATIME),
        )
        return sum(flag for bit, flag in pairs if present & bit)

    def propagate(self, target: str, flag: int) -> None:
        fd = files.open_in_root(self.root, target)
        try:
            mounts.mount("", f"/proc/self/fd/{fd}", "", flag)
        finally:
            os.close(fd)

    def mount_cgroups(self, target: str, flags: int) -> None:
        """A tmpfs with one directory per hierarchy, or the one hierarchy itself (cgroup v2).

        Inside a cgroup namespace the mounts show the container's own cgroup as their root.
        """
        if len(self.cgroups) == 1 and self.cgroups[0][0] == "":
            fd, path = self.target_path(target, directory=True)
            try:
                mounts.mount("cgroup", path, "cgroup2", flags)
            finally:
                os.close(fd)
            return
        clean = flags & ~const.MS_RDONLY
        self.mount("tmpfs", target, "tmpfs", clean, "mode=755")
        for name, options in self.cgroups:
            fd, path = self.target_path(f"{target}/{name}", directory=True)
            try:
                if options == "cgroup2":
                    mounts.mount("cgroup", path, "cgroup2", flags)
                else:
                    mounts.mount("cgroup", path, "cgroup", flags, options)
            finally:
                os.close(fd)
        if flags & const.MS_RDONLY:
            fd = files.open_in_root(self.root, target)
            try:
                mounts.mount("", f"/proc/self/fd/{fd}", "", const.MS_REMOUNT | flags)
            finally:
                os.close(fd)

    # devices and the terminal

    def mknod(
        self, path: str, kind: str, major: int, minor: int, mode: int, uid: int, gid: int
    ) -> None:
        directory, name = self.parent(path)
        try:
            kinds = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}
            device = os.makedev(major, minor)
            try:
                os.mknod(name, kinds[kind] | mode, device, dir_fd=directory)
            except FileExistsError:
                if self.own_dev or os.stat(name, dir_fd=directory).st_rdev == device:
                    return
                raise
            # The umask took bits away from mknod's mode. O_PATH of a device cannot be fchmod'ed.
            fd = os.open(name, const.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            try:
                os.chmod(f"/proc/self/fd/{fd}", mode)
                os.chown(f"/proc/self/fd/{fd}", uid, gid)
            finally:
                os.close(fd)
        finally:
            os.close(directory)

    def parent(self, path: str) -> tuple[int, str]:
        head, _, name = path.rstrip("/").rpartition("/")
        return files.make_in_root(self.root, head or "/", directory=True), name

    def symlink(self, target: str, path: str) -> None:
        directory, name = self.parent(path)
        try:
            os.symlink(target, name, dir_fd=directory)
        except FileExistsError:
            pass
        finally:
            os.close(directory)

    def open_terminal(self, height: int, width: int, uid: int) -> None:
        """A pty of the container's own devpts. TIOCGPTPEER opens the slave without a path."""
        ptmx = files.open_in_root(self.root, "dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY)
        fcntl.ioctl(ptmx, TIOCSPTLCK, struct.pack("i", 0))
        slave = fcntl.ioctl(ptmx, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY)
        if height and width:
            fcntl.ioctl(ptmx, TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        os.fchown(slave, uid, -1)
        if not self.pivoted:
            fd, path = self.target_path("/dev/console", directory=False)
            mounts.mount(f"/proc/self/fd/{slave}", path, "", const.MS_BIND)
            os.close(fd)
        rights = [(1, 1, struct.pack("i", ptmx))]  # SOL_SOCKET, SCM_RIGHTS
        self.channel.sendmsg([TERMINAL], rights)
        os.close(ptmx)
        try:
            os.setsid()
        except PermissionError:
            pass  # already the leader of a session
        fcntl.ioctl(slave, TIOCSCTTY, 0)
        for stream in (0, 1, 2):
            os.dup2(slave, stream)
        if slave > 2:
            os.close(slave)

    def pivot_root(self) -> None:
        os.fchdir(self.root)
        mounts.pivot_root(".", ".")
        # The host's tree now lies on top of the new root at the same place. Slave, so that the
        # umount does not travel; detach, because we still hold descriptors into it.
        mounts.mount("", ".", "", const.MS_SLAVE | const.MS_REC)
        mounts.umount(".", const.MNT_DETACH)
        os.chdir("/")
        os.close(self.root)
        self.root = os.open("/", const.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.pivoted = True

    def sysctl(self, path: str, value: str) -> None:
        fd = files.open_in_root(self.root, f"proc/sys/{path}", os.O_WRONLY)
        try:
            if filesystem_type(f"/proc/self/fd/{fd}") != const.PROC_SUPER_MAGIC:
                raise KernelError(1, f"write to /proc/sys/{path}, which is not procfs")
            os.write(fd, value.encode())
        except OSError as error:
            raise KernelError(error.errno or 0, f"write {value!r} to /proc/sys/{path}") from error
        finally:
            os.close(fd)

    def read_only(self, path: str) -> None:
        try:
            fd = files.open_in_root(self.root, path)
        except KernelError as error:
            if error.errno in (2, 20):
                return  # this kernel has no such file: nothing to protect
            raise
        try:
            name = f"/proc/self/fd/{fd}"
            mounts.mount(name, name, "", const.MS_BIND | const.MS_REC)
        finally:
            os.close(fd)
        fd = files.open_in_root(self.root, path)
        try:
            flags = const.MS_BIND | const.MS_REMOUNT | const.MS_RDONLY | self.locked_flags(fd)
            mounts.mount("", f"/proc/self/fd/{fd}", "", flags)
        finally:
            os.close(fd)

    def mask(self, path: str) -> None:
        try:
            fd = files.open_in_root(self.root, path)
        except KernelError as error:
            if error.errno in (2, 20):
                return
            raise
        try:
            name = f"/proc/self/fd/{fd}"
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                mounts.mount("tmpfs", name, "tmpfs", const.MS_RDONLY, "size=0k")
            else:
                # Not the image's /dev/null, which could be anything: CVE-2025-31133.
                null = files.open_in_root(self.root, "dev/null")
                device = os.fstat(null).st_rdev
                if device != os.makedev(1, 3):
                    raise KernelError(22, f"mask({path}): /dev/null is not the null device")
                mounts.mount(f"/proc/self/fd/{null}", name, "", const.MS_BIND)
                os.close(null)
        finally:
            os.close(fd)

    def read_only_rootfs(self) -> None:
        flags = const.MS_BIND | const.MS_REMOUNT | const.MS_RDONLY | self.locked_flags(self.root)
        mounts.mount("", "/", "", flags)

    # the process

    def oom_score_adj(self, value: int) -> None:
        files.write("/proc/self/oom_score_adj", str(value))

    def rlimit(self, name: str, soft: int, hard: int) -> None:
        number = getattr(resource, name)
        # RLIM_INFINITY is all ones in config.json, and -1 in Python.
        soft, hard = (-1 if value >= 1 << 63 else value for value in (soft, hard))
        try:
            resource.setrlimit(number, (soft, hard))
        except (ValueError, PermissionError) as error:
            raise KernelError(1, f"setrlimit({name}, {soft}, {hard})") from error

    def own_stdio(self, uid: int) -> None:
        """So that /dev/stdout can be opened again by the user (its permissions are the pipe's)."""
        if uid == 0:
            return
        for stream in (0, 1, 2):
            status = os.fstat(stream)
            if stat.S_ISFIFO(status.st_mode) and status.st_uid != uid:
                os.fchown(stream, uid, -1)

    def drop_bounding(self, keep: int) -> None:
        caps.drop_bounding(keep)

    def seccomp(self) -> None:
        seccomp.install(self.program, self.filter_flags)

    def user(self, uid: int, gid: int, groups: list[int], umask: int) -> None:
        prctl(const.PR_SET_KEEPCAPS, 1)  # capabilities() decides what stays, not the change of user
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        prctl(const.PR_SET_KEEPCAPS, 0)
        if umask >= 0:
            os.umask(umask)

    def chdir(self, path: str) -> None:
        try:
            os.chdir(path)
        except FileNotFoundError:
            fd = files.make_in_root(self.root, path, directory=True)
            os.fchdir(fd)
            os.close(fd)
        # CVE-2024-21626: a leaked descriptor as working directory would lie outside the root.
        if not os.getcwd().startswith("/"):
            raise KernelError(2, f"chdir({path!r}): the directory is outside the container")

    def capabilities(self, effective: int, permitted: int, inheritable: int, ambient: int) -> None:
        possible = caps.own_bounding() if self.can_read_proc() else ~0
        caps.capset(effective & possible, permitted & possible, inheritable & possible)
        caps.set_ambient(ambient & permitted & inheritable & possible)

    def can_read_proc(self) -> bool:
        return os.access("/proc/self/status", os.R_OK)

    def no_new_privs(self) -> None:
        prctl(const.PR_SET_NO_NEW_PRIVS, 1)

    def stay_as_init(self) -> None:
        """Fork: the child goes on with the plan, this process stays as pid 1 and reaps."""
        signals = {1, 2, 3, 10, 12, 15, 28}  # HUP INT QUIT USR1 USR2 TERM WINCH
        _signal.pthread_sigmask(_signal.SIG_BLOCK, signals | {17})
        child = os.fork()
        if child == 0:
            _signal.pthread_sigmask(_signal.SIG_UNBLOCK, signals | {17})
            return
        process.set_name("pyrun:init")
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        # The streams stay with the child alone, or their end would never be seen.
        null = os.open("/dev/null", os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        while True:
            number = _signal.sigwait(signals | {17})
            if number != 17:
                os.kill(child, number)
                continue
            while True:
                try:
                    pid, status = os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    os._exit(0)
                if pid == 0:
                    break
                if pid == child:
                    code = os.waitstatus_to_exitcode(status)
                    os._exit(code if code >= 0 else 128 - code)

    def execute(self, args: list[str], env: list[str]) -> None:
        """execve(2) by the image's PATH. Every other descriptor is closed on the way."""
        environment = dict(entry.partition("=")[::2] for entry in env)
        self.close_on_exec()
        name = args[0]
        if "/" in name:
            os.execve(name, args, environment)
        refused: OSError = FileNotFoundError(2, os.strerror(2), name)
        for directory in environment.get("PATH", "/usr/local/bin:/usr/bin:/bin").split(":"):
            try:
                os.execve(f"{directory or '.'}/{name}", args, environment)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except PermissionError as error:
                refused = error
        raise refused

    def close_on_exec(self) -> None:
        """Nothing above stderr reaches the image's program, whoever opened it (CVE-2024-21626).

        Python opens everything close-on-exec; close_range(2) says it once more for what it did
        not open. Before Linux 5.11 there is no such flag, and Python's care must do.
        """
        try:
            syscall(const.SYS_close_range, "close_range", 3, 0xFFFFFFFF, const.CLOSE_RANGE_CLOEXEC)
        except KernelError as error:
            if error.errno not in (22, 38):
                raise
