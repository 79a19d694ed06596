"""What the default profile decides, compared with what Docker's is known to."""

import os

import pyseccomp
import pytest
from bpf_machine import ALLOW, I386, X32_BIT, errno, verdict

from pyrun.kernel import caps
from pyrun.oci import seccomp_default
from pyrun.oci.seccomp_compile import compile_profile
from pyrun.oci.seccomp_docker import profile_from_docker, resolve
from pyrun.oci.seccomp_prologue import NEWER, X86_64_ONLY

EPERM, ENOSYS = errno(1), errno(38)
NAMESPACE_FLAGS = {
    "NEWNS": 0x00020000, "NEWCGROUP": 0x02000000, "NEWUTS": 0x04000000, "NEWIPC": 0x08000000,
    "NEWUSER": 0x10000000, "NEWPID": 0x20000000, "NEWNET": 0x40000000,
}  # fmt: skip


def program_for(*names: str) -> bytes:
    return compile_profile(resolve(seccomp_default.PROFILE, names, "x86_64", "6.18.0"))


@pytest.fixture(scope="module")
def program() -> bytes:
    """The filter of a container with the default capabilities, on x86_64."""
    return program_for(*caps.DEFAULT)


def number(name: str) -> int:
    known = {**NEWER, **X86_64_ONLY}
    return known[name] if name in known else pyseccomp.resolve_syscall(0xC000003E, name)


@pytest.mark.parametrize(
    "name",
    "read openat execve fork mmap futex statx chroot mknod setuid capset prctl seccomp ptrace "
    "process_vm_readv io_setup rseq pidfd_open pidfd_send_signal close_range openat2 faccessat2 "
    "epoll_pwait2 memfd_secret process_mrelease futex_waitv landlock_create_ruleset "
    "landlock_restrict_self cachestat fchmodat2 map_shadow_stack futex_wake futex_wait "
    "futex_requeue statmount listmount mseal setxattrat getxattrat listxattrat removexattrat "
    "uretprobe uprobe arch_prctl modify_ldt clock_adjtime name_to_handle_at".split(),
)
def test_what_programs_use_is_allowed(program: bytes, name: str) -> None:
    assert verdict(program, number(name)) == ALLOW


@pytest.mark.parametrize(
    "name",
    "keyctl add_key request_key mount umount2 pivot_root unshare setns reboot swapon "
    "init_module finit_module delete_module kexec_load kexec_file_load settimeofday "
    "clock_settime bpf perf_event_open userfaultfd io_uring_setup io_uring_enter "
    "io_uring_register open_tree move_mount fsopen fsmount mount_setattr open_by_handle_at "
    "acct iopl ioperm quotactl syslog sethostname vhangup kcmp pidfd_getfd process_madvise "
    "mbind set_mempolicy set_mempolicy_home_node move_pages lookup_dcookie fanotify_init "
    "lsm_get_self_attr lsm_set_self_attr lsm_list_modules nfsservctl uselib ustat sysfs".split(),
)
def test_what_reaches_the_host_is_refused_with_eperm(program: bytes, name: str) -> None:
    assert verdict(program, number(name)) == EPERM


@pytest.mark.parametrize("unknown", [337, 400, 423, 999, 4000, 100_000])
def test_unknown_numbers_get_enosys(program: bytes, unknown: int) -> None:
    assert verdict(program, unknown) == ENOSYS
    assert verdict(program, unknown, arch=I386) in (ENOSYS, ALLOW, EPERM)
    assert verdict(program, X32_BIT | 999) == ENOSYS
    assert verdict(program, 999, arch=I386) == ENOSYS


def test_clone3_sends_the_c_library_back_to_clone(program: bytes) -> None:
    assert verdict(program, number("clone3")) == ENOSYS
    assert verdict(program, 435, arch=I386) == ENOSYS
    assert verdict(program, X32_BIT | 435) == ENOSYS


@pytest.mark.parametrize("flag", NAMESPACE_FLAGS.values(), ids=NAMESPACE_FLAGS)
def test_clone_makes_no_namespace(program: bytes, flag: int) -> None:
    assert verdict(program, number("clone"), flag | 17) == EPERM
    assert verdict(program, 120, flag | 17, arch=I386) == EPERM


def test_clone_makes_threads_and_processes(program: bytes) -> None:
    assert verdict(program, number("clone"), 0x3D0F00) == ALLOW
    assert verdict(program, number("clone"), 17) == ALLOW


@pytest.mark.parametrize("domain", range(46))
def test_all_socket_families_but_vsock_and_crypto(program: bytes, domain: int) -> None:
    expected = EPERM if domain in (38, 40) else ALLOW
    assert verdict(program, number("socket"), domain, 1, 0) == expected
    assert verdict(program, X32_BIT | number("socket"), domain, 1, 0) == expected


@pytest.mark.parametrize(
    ("persona", "allowed"),
    [(0, True), (8, True), (0x20000, True), (0x20008, True), (0xFFFFFFFF, True),
     (0x40000, False), (0x0400000, False), (6, False)],
)  # fmt: skip
def test_personality_is_linux_or_a_question(program: bytes, persona: int, allowed: bool) -> None:
    assert verdict(program, number("personality"), persona) == (ALLOW if allowed else EPERM)


@pytest.mark.parametrize(
    ("capability", "names"), [*seccomp_default.BY_CAPABILITY.items(), ("CAP_SYS_ADMIN", "clone3")]
)
def test_capability_opens_the_calls_it_is_for(capability: str, names: str) -> None:
    without, given = program_for(), program_for(capability)
    for name in names.split():
        if number(name) >= 0:
            assert verdict(given, number(name), 0x7E020000) == ALLOW, name
            if name not in seccomp_default.TRACING.split():
                assert verdict(without, number(name), 0x7E020000) in (EPERM, ENOSYS), name


def test_ptrace_needs_a_kernel_that_filters_after_the_tracer() -> None:
    old = compile_profile(resolve(seccomp_default.PROFILE, [], "x86_64", "4.7.10"))
    assert verdict(old, number("ptrace")) == EPERM
    debugger = resolve(seccomp_default.PROFILE, ["CAP_SYS_PTRACE"], "x86_64", "4.7.10")
    assert verdict(compile_profile(debugger), number("ptrace")) == ALLOW


def test_compat_architectures_are_those_of_docker() -> None:
    def architectures(machine: str) -> list[str]:
        found = resolve(seccomp_default.PROFILE, [], machine, "6.1")["architectures"]
        return [name.removeprefix("SCMP_ARCH_") for name in found]

    assert architectures("x86_64") == ["X86_64", "X86", "X32"]
    assert architectures("aarch64") == ["AARCH64", "ARM"]
    assert architectures("riscv64") == ["RISCV64"]


def test_default_profile_is_made_for_this_machine() -> None:
    uname = os.uname()
    profile = seccomp_default.default_profile(caps.DEFAULT)
    assert profile == profile_from_docker(
        seccomp_default.PROFILE, caps.DEFAULT, uname.machine, uname.release
    )
    assert compile_profile(profile)


def test_every_name_of_the_profile_is_a_system_call() -> None:
    """A misspelt name would be passed over in silence. These are of other machines or newer."""
    names = {name for rule in seccomp_default.PROFILE["syscalls"] for name in rule["names"]}
    strange = {name for name in names if pyseccomp.resolve_syscall(0, name) == -1}
    assert strange <= {*NEWER, *X86_64_ONLY, "riscv_hwprobe"}
