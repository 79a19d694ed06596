"""Profiles in Docker's and podman's format become linux.seccomp for one container on one host."""

from typing import Any

import pytest

from pyrun.errors import BadInput, Unsupported
from pyrun.oci.seccomp_docker import profile_from_docker, version


def profile(*rules: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": list(rules), **more}


def rule(**more: Any) -> dict[str, Any]:
    return {"names": ["read"], "action": "SCMP_ACT_ALLOW", **more}


def kept(one: dict[str, Any], *capabilities: str, kernel: str = "6.1.0-13-amd64") -> bool:
    return bool(profile_from_docker(profile(one), capabilities, "x86_64", kernel)["syscalls"])


def test_plain_oci_profile_passes_through() -> None:
    plain = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 38,
        "architectures": ["SCMP_ARCH_X86"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [
            rule(args=[{"index": 0, "op": "SCMP_CMP_EQ", "value": 1}]),
            {"names": ["write"], "action": "SCMP_ACT_ERRNO", "errnoRet": 22},
        ],
    }
    assert profile_from_docker(plain, [], "x86_64", "6.1") == plain


def test_arch_map_gives_the_native_architecture_and_its_siblings() -> None:
    mapped = profile(
        archMap=[
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": None},
        ]
    )

    def architectures(machine: str) -> object:
        return profile_from_docker(mapped, [], machine, "6.1")["architectures"]

    assert architectures("x86_64") == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    assert architectures("aarch64") == ["SCMP_ARCH_AARCH64"]
    assert architectures("riscv64") == []


def test_included_capabilities_must_all_be_there() -> None:
    one = rule(includes={"caps": ["CAP_BPF", "CAP_SYSLOG"]})
    assert not kept(one, "CAP_BPF")
    assert kept(one, "CAP_BPF", "CAP_SYSLOG")


def test_one_excluded_capability_is_enough() -> None:
    one = rule(excludes={"caps": ["CAP_BPF", "CAP_SYSLOG"]})
    assert kept(one)
    assert not kept(one, "CAP_SYSLOG")


def test_architectures_are_dockers_names() -> None:
    assert kept(rule(includes={"arches": ["amd64", "x32"]}))
    assert not kept(rule(includes={"arches": ["arm64"]}))
    assert not kept(rule(excludes={"arches": ["amd64"]}))


def test_kernel_versions_compare_as_numbers() -> None:
    one = rule(includes={"minKernel": "4.8"})
    assert kept(one, kernel="4.10.0") and kept(one, kernel="5.0-rc1") and kept(one, kernel="4.8")
    assert not kept(one, kernel="4.7.99")
    assert not kept(rule(excludes={"minKernel": "4.8"}), kernel="4.8.0")


def test_versions_with_suffixes_are_read() -> None:
    assert version("6.18.44-fc-v669", "") == (6, 18)
    assert version("5.15-azure", "") == (5, 15)
    with pytest.raises(BadInput):
        version("six.one", "minKernel")


def test_old_form_with_one_name_is_read() -> None:
    old = profile({"name": "read", "action": "SCMP_ACT_ALLOW"})
    assert profile_from_docker(old, [], "x86_64", "6.1")["syscalls"] == [rule()]


def test_podman_names_errnos() -> None:
    podman = profile(
        {"names": ["bpf"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "errno": "EINVAL"},
        defaultErrno="ENOSYS",
        defaultErrnoRet=1,
    )
    found = profile_from_docker(podman, [], "x86_64", "6.1")
    assert found["defaultErrnoRet"] == 38
    assert found["syscalls"][0]["errnoRet"] == 22


@pytest.mark.parametrize(
    ("wrong", "place"),
    [
        ([], "JSON object"),
        ({}, "defaultAction"),
        (profile(archMap=[{}]), r"archMap\[0\]"),
        (profile(archMap=[{"architecture": "SCMP_ARCH_PDP11"}]), r"archMap\[0\]"),
        (
            profile(
                archMap=[{"architecture": "SCMP_ARCH_X86"}], architectures=["SCMP_ARCH_X86"]
            ),
            "archMap",
        ),
        (profile(rule(), 7), r"syscalls\[1\]"),  # type: ignore[arg-type]
        (profile({"action": "SCMP_ACT_ALLOW"}), r"syscalls\[0\].names"),
        (profile(rule(name="write")), r"syscalls\[0\]: has `name` and `names`"),
        (profile(rule(includes=[])), ""),
        (profile(rule(includes="CAP_BPF")), r"syscalls\[0\].includes"),
        (profile(rule(includes={"caps": "CAP_BPF"})), r"syscalls\[0\].includes.caps"),
        (profile(rule(excludes={"minKernel": "new"})), r"syscalls\[0\].excludes.minKernel"),
        (profile(rule(), rule(action="SCMP_ACT_NO")), r"syscalls\[1\].action"),
        (profile(rule(action="SCMP_ACT_ERRNO", errno="EWHAT")), r"syscalls\[0\].errno"),
        (profile(defaultErrno="EWHAT"), "defaultErrno"),
        # A rule for other machines is looked at, too.
        (profile(rule(includes={"arches": ["arm"]}, args=[{}])), r"syscalls\[0\].args\[0\].op"),
    ],
)  # fmt: skip
def test_mistake_is_reported_with_its_place_in_the_file(wrong: Any, place: str) -> None:
    if not place:
        assert profile_from_docker(wrong, [], "x86_64", "6.1")
        return
    with pytest.raises(BadInput, match=place):
        profile_from_docker(wrong, [], "x86_64", "6.1")


def test_notify_is_not_supported_yet() -> None:
    with pytest.raises(Unsupported):
        profile_from_docker(profile(rule(action="SCMP_ACT_NOTIFY")), [], "x86_64", "6.1")
