"""The kernel's own answers under the default profile, asked by raw system call number."""

import ctypes
import errno
import os
import platform
from collections.abc import Callable
from pathlib import Path

import pytest

from pyrun.errors import BadInput, KernelError
from pyrun.kernel import caps, const
from pyrun.kernel.libc import libc, prctl
from pyrun.kernel.seccomp import install
from pyrun.oci import seccomp, seccomp_default

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="kernel lacks the x86_64 numbers this test asks by"
)


def in_child(body: Callable[[], int | str]) -> str:
    """What `body` returns when it runs in a process of its own, as text."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            text = str(body())
        except BaseException as error:
            text = repr(error)
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        text = file.read()
    _, status = os.waitpid(pid, 0)
    return text or f"ended by signal {os.waitstatus_to_exitcode(status)}"


def ask(number: int, *arguments: int) -> str:
    """The errno's name, or "ok"."""
    ctypes.set_errno(0)
    wide = [ctypes.c_ulong(value & 0xFFFFFFFFFFFFFFFF) for value in arguments]
    result = libc.syscall(ctypes.c_ulong(number), *wide)
    return "ok" if result != -1 else errno.errorcode[ctypes.get_errno()]


def under(path: str, number: int, *arguments: int) -> str:
    program, flags = seccomp.load(path), seccomp.load_flags(path)

    def body() -> str:
        prctl(const.PR_SET_NO_NEW_PRIVS, 1)
        install(program, flags)
        return ask(number, *arguments)

    return in_child(body)


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> str:
    cache = tmp_path_factory.mktemp("cache")
    return seccomp.compiled(seccomp_default.default_profile(caps.DEFAULT), str(cache))


@pytest.mark.parametrize(
    ("name", "number", "arguments", "answer"),
    [
        ("getpid", 39, (), "ok"),
        ("socket(AF_INET)", 41, (2, 1, 0), "ok"),
        ("socket(AF_UNIX)", 41, (1, 1, 0), "ok"),
        ("socket(AF_NETLINK)", 41, (16, 3, 0), "ok"),
        ("socket(AF_VSOCK)", 41, (40, 1, 0), "EPERM"),
        ("socket(AF_ALG)", 41, (38, 5, 0), "EPERM"),
        ("personality(query)", 135, (0xFFFFFFFF,), "ok"),
        ("personality(PER_LINUX)", 135, (0,), "ok"),
        ("personality(ADDR_NO_RANDOMIZE)", 135, (0x40000,), "EPERM"),
        ("ptrace(TRACEME)", 101, (0, 0, 0, 0), "ok"),
        ("keyctl(GET_KEYRING_ID)", 250, (0, -1, 0), "EPERM"),
        ("mount", 165, (0, 0, 0, 0, 0), "EPERM"),
        ("unshare(NEWUTS)", 272, (0x04000000,), "EPERM"),
        ("unshare(nothing)", 272, (0,), "EPERM"),
        ("setns", 308, (-1, 0), "EPERM"),
        ("clone(NEWUSER)", 56, (0x10000000 | 17, 0, 0, 0, 0), "EPERM"),
        ("clone3", 435, (0, 0), "ENOSYS"),
        ("io_uring_setup", 425, (1, 0), "EPERM"),
        ("userfaultfd", 323, (0,), "EPERM"),
        ("bpf", 321, (0, 0, 0), "EPERM"),
        ("sethostname", 170, (0, 0), "EPERM"),
        ("reboot", 169, (0, 0, 0), "EPERM"),
        ("epoll_pwait2", 441, (-1, 0, 1, 0, 0), "EBADF"),
        ("fchmodat2", 452, (-1, 0, 0, 0), "EFAULT"),
        ("lsm_list_modules", 461, (0, 0, 0), "EPERM"),
        ("no such call", 999, (), "ENOSYS"),
        ("no such call", 400, (), "ENOSYS"),
    ],
)
def test_default_profile(
    default: str, name: str, number: int, arguments: tuple[int, ...], answer: str
) -> None:
    assert under(default, number, *arguments) == answer


@pytest.mark.parametrize(
    ("name", "number", "arguments"),
    [
        ("cachestat", 451, (-1, 0, 0, 0)),
        ("futex_wake", 454, (0, 0, 0, 0)),
        ("statmount", 457, (0, 0, 0, 1)),
        ("listmount", 458, (0, 0, 0, 1)),
        ("mseal", 462, (1, 1, 0)),
        ("setxattrat", 463, (-1, 0, 0, 0, 0, 0)),
        ("landlock_create_ruleset", 444, (0, 0, 1)),
        ("process_mrelease", 448, (-1, 0)),
        ("memfd_secret", 447, (0,)),
    ],
)
def test_new_calls_answer_as_if_there_were_no_filter(
    default: str, name: str, number: int, arguments: tuple[int, ...]
) -> None:
    free = in_child(lambda: ask(number, *arguments))
    assert under(default, number, *arguments) == free


def test_a_container_with_cap_sys_admin_mounts_and_makes_namespaces(tmp_path: Path) -> None:
    profile = seccomp_default.default_profile([*caps.DEFAULT, "CAP_SYS_ADMIN"])
    path = seccomp.compiled(profile, str(tmp_path))
    assert under(path, 272, 0x04000000) == "ok"
    assert under(path, 435, 0, 0) == "EINVAL"
    assert under(path, 165, 0, 0, 0, 0, 0) == "EFAULT"


def test_filter_without_no_new_privs_needs_cap_sys_admin(default: str) -> None:
    program = seccomp.load(default)

    def as_nobody() -> str:
        os.setgroups([])
        os.setresuid(65534, 65534, 65534)
        try:
            install(program)
        except KernelError as error:
            return str(error)
        return "installed"

    assert "EACCES" in in_child(as_nobody)
    assert in_child(lambda: install(program) or "installed") == "installed"


def test_filter_survives_execve_and_lets_programs_run(default: str) -> None:
    program, flags = seccomp.load(default), seccomp.load_flags(default)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            install(program, flags)
            os.dup2(writer, 1)
            script = "grep ^Seccomp: /proc/self/status; mount -t tmpfs x /mnt 2>&1; ls / | wc -l"
            os.execv("/bin/sh", ["sh", "-c", script])
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as file:
        text = file.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert f"Seccomp:\t{const.SECCOMP_MODE_FILTER}\n" in text
    assert "permi" in text.lower()  # mount(8) on EPERM


def test_threads_start_under_the_default_profile(default: str) -> None:
    program = seccomp.load(default)

    def body() -> str:
        import threading

        install(program)
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(os.getppid()))
        thread.start()
        thread.join()
        return f"threads {len(found)}"

    assert in_child(body) == "threads 1"


@pytest.mark.parametrize("program", [b"", b"1234567", bytes(8 * 4097)])
def test_what_is_no_program_never_reaches_the_kernel(program: bytes) -> None:
    with pytest.raises(BadInput):
        install(program)


def test_kernels_refusal_names_the_call() -> None:
    with pytest.raises(KernelError, match=r"seccomp\(SECCOMP_SET_MODE_FILTER.*EINVAL"):
        install(bytes(8))
