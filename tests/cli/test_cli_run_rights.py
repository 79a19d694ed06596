"""`pyrun run`: capabilities, the system call filter, no_new_privs, devices, sysctls."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pyrun.kernel import caps
from support import Node, compiled, read, status_of

# capabilities(7) numbers of docker's default set: chown, dac_override, fowner, fsetid, kill,
# setgid, setuid, setpcap, net_bind_service, net_raw, sys_chroot, mknod, audit_write, setfcap.
DOCKER = sum(1 << bit for bit in (0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31))
SYS_ADMIN, NET_ADMIN, SYS_TIME, CHOWN = 21, 12, 25, 0
OWN = int(status_of("self")["CapBnd"], 16)


def sets(pid: int) -> dict[str, int]:
    status = status_of(pid)
    return {name: int(status[f"Cap{name}"], 16) for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")}


def test_default_capabilities_are_dockers_or_fewer(pyrun: Node) -> None:
    found = sets(pyrun.pid(pyrun.start("busybox", "sleep", "100")))
    assert found["Eff"] == found["Prm"] == found["Bnd"] == caps.mask(caps.DEFAULT) & OWN
    assert found["Bnd"] & ~DOCKER == 0
    assert found["Inh"] == found["Amb"] == 0


@pytest.mark.parametrize(
    ("flags", "present", "absent"),
    [
        (["--cap-add", "NET_ADMIN"], [NET_ADMIN, CHOWN], [SYS_ADMIN]),
        (["--cap-drop", "chown"], [], [CHOWN, NET_ADMIN]),
        (["--cap-drop", "ALL", "--cap-add", "CAP_CHOWN"], [CHOWN], [NET_ADMIN, 1, 3]),
        (["--cap-add", "ALL", "--cap-drop", "SYS_TIME"], [SYS_ADMIN, NET_ADMIN], [SYS_TIME]),
        (["--privileged"], [SYS_ADMIN, NET_ADMIN], []),
    ],
)
def test_cap_add_and_drop(
    pyrun: Node, flags: list[str], present: list[int], absent: list[int]
) -> None:
    found = sets(pyrun.pid(pyrun.start(*flags, "busybox", "sleep", "100")))
    for kind in ("Eff", "Prm", "Bnd"):
        assert all(found[kind] >> bit & 1 for bit in present)
        assert not any(found[kind] >> bit & 1 for bit in absent)


def test_exec_has_the_containers_rights_and_no_more(pyrun: Node) -> None:
    name = pyrun.start("--cap-drop", "ALL", "busybox", "sleep", "100")
    out = pyrun.out("exec", name, "grep", "-E", "Cap|Seccomp:|NoNew", "/proc/self/status")
    assert "CapBnd:\t0000000000000000" in out and "Seccomp:\t2" in out


def test_a_setuid_program_gives_nothing_back(pyrun: Node) -> None:
    name = pyrun.start("--user", "1000", "--security-opt", "no-new-privileges", "busybox",
                       "sleep", "100")  # fmt: skip
    status = status_of(pyrun.pid(name))
    assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"
    other = pyrun.start("busybox", "sleep", "100")
    assert status_of(pyrun.pid(other))["NoNewPrivs"] == "0"


# seccomp

PROBE = r"""
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        errno = 0;
        long result = syscall(atol(argv[i]), -1L, 0L, -1L, -1L, 0L, 0L);
        printf("%d\n", result == -1 ? errno : 0);
    }
}
"""
EPERM, ENOSYS, EBADF = "1", "38", "9"
# x86-64 and arm64 alike from 424 on; unshare is 272 and 97, kexec_load 246 and 104.
UNSHARE, KEXEC_LOAD = ("272", "246") if os.uname().machine == "x86_64" else ("97", "104")
UNKNOWN = "999"


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("probe"), PROBE)


def test_the_default_filter_refuses_and_unknown_calls_get_enosys(pyrun: Node, probe: Path) -> None:
    out = pyrun.out("run", "--rm", "-v", f"{probe}:/probe:ro", "busybox", "/probe", UNSHARE,
                    KEXEC_LOAD, UNKNOWN)  # fmt: skip
    assert out.split() == [EPERM, EPERM, ENOSYS]


def test_the_filter_follows_the_capabilities(pyrun: Node, probe: Path) -> None:
    """What CAP_SYS_ADMIN is for is allowed to who has it, as docker's profile says."""
    out = pyrun.out("run", "--rm", "--cap-add", "SYS_ADMIN", "-v", f"{probe}:/probe:ro", "busybox",
                    "/probe", UNSHARE)  # fmt: skip
    assert out != EPERM


def test_seccomp_unconfined(pyrun: Node) -> None:
    for flags in (["--security-opt", "seccomp=unconfined"], ["--privileged"]):
        pid = pyrun.pid(pyrun.start(*flags, "busybox", "sleep", "100"))
        assert status_of(pid)["Seccomp"] == "0"


def test_a_seccomp_profile_from_a_file(pyrun: Node, tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}],
    }))  # fmt: skip
    done = pyrun("run", "--rm", "--security-opt", f"seccomp={profile}", "busybox", "mkdir", "/x",
                 check=False)  # fmt: skip
    assert "No space left on device" in done.stderr and done.returncode == 1


def test_a_broken_seccomp_profile_is_one_error(pyrun: Node, tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    for text in ("{", "[]", '{"defaultAction": "SCMP_ACT_NOSUCH"}', '{"defaultAction": 3}'):
        profile.write_text(text)
        pyrun.fails(125, "run", "--security-opt", f"seccomp={profile}", "busybox", "true")


# devices and sysctls


def test_device(pyrun: Node) -> None:
    name = pyrun.start("--device", "/dev/fuse:/dev/mine:r", "busybox", "sleep", "100")
    found = os.stat(f"/proc/{pyrun.pid(name)}/root/dev/mine")
    assert found.st_rdev == os.stat("/dev/fuse").st_rdev
    pyrun("exec", name, "sh", "-c", "true < /dev/mine")
    done = pyrun("exec", name, "sh", "-c", "true > /dev/mine", check=False)
    assert "Operation not permitted" in done.stderr


def test_a_device_that_was_not_given_cannot_be_opened(pyrun: Node) -> None:
    """mknod is allowed, it is the opening that the device cgroup refuses."""
    name = pyrun.start("busybox", "sleep", "100")
    pyrun("exec", name, "mknod", "/tmp/k", "c", "10", "229")  # fuse
    done = pyrun("exec", name, "cat", "/tmp/k", check=False)
    assert "Operation not permitted" in done.stderr


def test_privileged_sees_the_hosts_devices_and_opened_doors(pyrun: Node) -> None:
    name = pyrun.start("--privileged", "busybox", "sleep", "100")
    root = f"/proc/{pyrun.pid(name)}/root"
    assert os.stat(f"{root}/dev/kmsg").st_rdev == os.stat("/dev/kmsg").st_rdev
    assert not os.statvfs(f"{root}/proc/sys").f_flag & os.ST_RDONLY
    assert not os.statvfs(f"{root}/sys").f_flag & os.ST_RDONLY
    pyrun("exec", name, "mount", "-t", "tmpfs", "tmpfs", "/tmp")


def test_sysctl(pyrun: Node) -> None:
    name = pyrun.start("--sysctl", "net.ipv4.ip_default_ttl=77", "--sysctl", "kernel.msgmax=12345",
                       "busybox", "sleep", "100")  # fmt: skip
    assert pyrun.out("exec", name, "cat", "/proc/sys/net/ipv4/ip_default_ttl") == "77"
    assert pyrun.out("exec", name, "cat", "/proc/sys/kernel/msgmax") == "12345"
    assert read("/proc/sys/net/ipv4/ip_default_ttl") != "77\n"


@pytest.mark.parametrize(
    "key",
    [
        "kernel.core_pattern", "vm.overcommit_memory", "fs.file-max", "kernel.hostname",
        "net.ipv4/../../kernel/core_pattern",
    ],
)  # fmt: skip
def test_a_sysctl_of_the_whole_host_is_refused(pyrun: Node, key: str) -> None:
    before = read("/proc/sys/kernel/core_pattern")
    pyrun.fails(125, "run", "--sysctl", f"{key}=1", "busybox", "true")
    assert read("/proc/sys/kernel/core_pattern") == before


@pytest.mark.parametrize("mode", ["host", "container"])
def test_a_network_sysctl_needs_a_network_of_its_own(pyrun: Node, mode: str) -> None:
    """With the host's network namespace it would be the host that changes."""
    before = read("/proc/sys/net/ipv4/ip_default_ttl")
    if mode == "container":
        mode = "container:" + pyrun.start("--network", "host", "busybox", "sleep", "100")
    pyrun.fails(125, "run", "--network", mode, "--sysctl", "net.ipv4.ip_default_ttl=99",
                "busybox", "true")  # fmt: skip
    assert read("/proc/sys/net/ipv4/ip_default_ttl") == before
    pyrun.fails(125, "run", "--ipc", "host", "--sysctl", "kernel.msgmax=999", "busybox", "true")
