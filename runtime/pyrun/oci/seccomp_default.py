"""The system calls of a container that brings no profile: Docker's default, as of May 2026.

The idea: a container shares the host's kernel, so every call it can make is a way to a kernel
bug. Allowed is what programs use; refused with EPERM is what changes the host (clock, modules,
swap, reboot, mounts), what capabilities do not guard well enough (keyctl, io_uring, userfaultfd,
new namespaces), and what nobody misses. A capability given to the container opens the calls it is
good for. What is in nobody's list gets ENOSYS (`seccomp_prologue.py`).

The data below is in Docker's own format and `seccomp_docker.py` resolves it, so it reads like a
profile that users write themselves. Two calls are new in it: `uprobe`, which is to Linux 6.18
what `uretprobe` is to 6.11, and with CAP_SYS_ADMIN `open_tree_attr`, next to `open_tree`.
"""

from __future__ import annotations

import os

from pyrun.oci.seccomp_docker import resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

ALLOW, ERRNO = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"
EPERM, ENOSYS = 1, 38

ALLOWED = """
    accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown
    chown32 clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime
    clock_gettime64 clock_nanosleep clock_nanosleep_time64 close close_range connect
    copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old
    epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit
    exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod
    fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr
    flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate
    ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat
    get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid getegid32 geteuid
    geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid
    getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit
    getrusage getsid getsockname getsockopt gettid gettimeofday getuid getuid32 getxattr
    getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel
    io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl
    ioprio_get ioprio_set ipc kill landlock_add_rule landlock_create_ruleset
    landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount listxattr
    listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lstat lstat64 madvise
    map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat
    mlock mlock2 mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open mq_timedreceive
    mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget
    msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat
    _newselect open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc
    pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64
    process_mrelease pselect6 pselect6_time64 pwrite64 pwritev pwritev2 read readahead readlink
    readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr
    removexattrat rename renameat renameat2 restart_syscall riscv_hwprobe rmdir rseq
    rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
    rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max
    sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler
    sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr
    sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop
    semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto set_robust_list
    set_thread_area set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32
    setgroups setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid
    setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setsockopt setuid
    setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd
    signalfd4 sigprocmask sigreturn socketcall socketpair splice stat stat64 statfs statfs64
    statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time
    timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime
    timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime
    timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat
    uprobe uretprobe utime utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid
    write writev
""".split()

BY_CAPABILITY = {
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_SYS_ADMIN": "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick "
    "lookup_dcookie lsm_get_self_attr lsm_list_modules lsm_set_self_attr mount mount_setattr "
    "move_mount open_tree open_tree_attr perf_event_open quotactl quotactl_fd setdomainname "
    "sethostname setns syslog umount umount2 unshare",
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module init_module finit_module",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    "CAP_SYS_RAWIO": "iopl ioperm",
    "CAP_SYS_TIME": "settimeofday stime clock_settime clock_settime64",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYSLOG": "syslog",
    "CAP_BPF": "bpf",
    "CAP_PERFMON": "perf_event_open",
}

BY_ARCHITECTURE = (
    ("ppc64le", "sync_file_range2 swapcontext"),
    (
        "arm arm64",
        "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls",
    ),
    ("amd64 x32", "arch_prctl"),
    ("amd64 x32 x86", "modify_ldt"),
    ("s390 s390x", "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr"),
    ("riscv64", "riscv_flush_icache"),
)

TRACING = "process_vm_readv process_vm_writev ptrace"
"""From Linux 4.8 on the filter judges a traced process after its tracer has changed the call;
before, ptrace was a way around it."""

AF_ALG, AF_VSOCK = 38, 40
SOCKETS = (("SCMP_CMP_LT", AF_ALG), ("SCMP_CMP_EQ", AF_ALG + 1), ("SCMP_CMP_GT", AF_VSOCK))
"""Every family but two: the kernel's cryptography, a rich source of bugs, and the hypervisor's
sockets, which no network namespace keeps apart."""

PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
"""PER_LINUX, PER_LINUX32, each also with UNAME26; and the question which one is in force."""

NEW_NAMESPACES = 0x7E020000
"""CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}. A new user namespace would give back every
capability inside it."""


def _rule(names: list[str], action: str = ALLOW, **more: Any) -> dict[str, Any]:
    return {"names": names, "action": action, **more}


def _test(index: int, op: str, value: int) -> list[dict[str, Any]]:
    return [{"index": index, "op": op, "value": value, "valueTwo": 0}]


NO_ADMIN = {"caps": ["CAP_SYS_ADMIN"]}
S390 = ["s390", "s390x"]

PROFILE: dict[str, Any] = {
    "defaultAction": ERRNO,
    "defaultErrnoRet": EPERM,
    "archMap": [
        # Programs of the smaller sibling run on the same kernel; a filter that left it out would
        # kill them.
        {
            "architecture": "SCMP_ARCH_X86_64",
            "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        },
        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
        {"architecture": "SCMP_ARCH_S390X", "subArchitectures": ["SCMP_ARCH_S390"]},
        {"architecture": "SCMP_ARCH_RISCV64"},
        {"architecture": "SCMP_ARCH_LOONGARCH64"},
    ],
    "syscalls": [
        _rule(ALLOWED),
        _rule(TRACING.split(), includes={"minKernel": "4.8"}),
        *(_rule(["socket"], args=_test(0, op, family)) for op, family in SOCKETS),
        *(_rule(["personality"], args=_test(0, "SCMP_CMP_EQ", one)) for one in PERSONALITIES),
        *(
            _rule(names.split(), includes={"arches": arches.split()})
            for arches, names in BY_ARCHITECTURE
        ),
        *(_rule(names.split(), includes={"caps": [cap]}) for cap, names in BY_CAPABILITY.items()),
        _rule(
            ["clone"],
            args=_test(0, "SCMP_CMP_MASKED_EQ", NEW_NAMESPACES),
            excludes={**NO_ADMIN, "arches": S390},
        ),
        # On s390 the flags are clone's second argument.
        _rule(
            ["clone"],
            args=_test(1, "SCMP_CMP_MASKED_EQ", NEW_NAMESPACES),
            includes={"arches": S390},
            excludes=NO_ADMIN,
        ),
        # A filter cannot look into clone3's struct. ENOSYS sends a C library back to clone.
        _rule(["clone3"], ERRNO, errnoRet=ENOSYS, excludes=NO_ADMIN),
    ],
}


def default_profile(capabilities: Iterable[str]) -> dict[str, Any]:
    """linux.seccomp for a container with `capabilities` (CAP_ names; its bounding set), here."""
    uname = os.uname()
    return resolve(PROFILE, capabilities, uname.machine, uname.release)
