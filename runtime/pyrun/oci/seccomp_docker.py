"""Docker's profile format → linux.seccomp: what `--security-opt seccomp=FILE` reads.

The format is the runtime specification's with conditions added. `archMap` names the compatible
architectures of each native one; a rule with `includes` or `excludes` counts only for some
capabilities, architectures or kernels. Podman writes the same, and spells errnos by name.
A plain linux.seccomp object passes through unchanged.
"""

from __future__ import annotations

from pyrun.errors import BadInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

MACHINES = {
    "x86_64": ("SCMP_ARCH_X86_64", "amd64"),
    "i686": ("SCMP_ARCH_X86", "x86"),
    "aarch64": ("SCMP_ARCH_AARCH64", "arm64"),
    "armv7l": ("SCMP_ARCH_ARM", "arm"),
    "riscv64": ("SCMP_ARCH_RISCV64", "riscv64"),
    "loongarch64": ("SCMP_ARCH_LOONGARCH64", "loong64"),
    "ppc64le": ("SCMP_ARCH_PPC64LE", "ppc64le"),
    "s390x": ("SCMP_ARCH_S390X", "s390x"),
}
"""uname's machine → libseccomp's name, Docker's name."""


def profile_from_docker(
    profile: dict[str, Any], capabilities: Iterable[str], arch: str, kernel: str
) -> dict[str, Any]:
    """linux.seccomp as `profile` means it for one container on one host.

    capabilities  the container's bounding set, CAP_ names
    arch, kernel  machine and release as uname(2) gives them
    Raises BadInput naming the place in the profile, also for rules that do not apply here.
    """
    _check(profile)
    return resolve(profile, capabilities, arch, kernel)


def resolve(
    profile: dict[str, Any], capabilities: Iterable[str], arch: str, kernel: str
) -> dict[str, Any]:
    """`profile_from_docker` for a profile that is known to be well formed: our own."""
    native, short = MACHINES.get(arch, ("", arch))
    facts = (frozenset(capabilities), short, version(kernel, "the kernel's release"))
    result: dict[str, Any] = {
        "defaultAction": profile["defaultAction"],
        "architectures": profile.get("architectures") or [],
        "syscalls": [
            _plain_rule(rule, index)
            for index, rule in enumerate(profile.get("syscalls") or [])
            if _applies(rule, index, *facts)
        ],
    }
    for entry in profile.get("archMap") or []:
        if entry["architecture"] == native:
            result["architectures"] = [native, *(entry.get("subArchitectures") or [])]
    if profile.get("flags") is not None:
        result["flags"] = profile["flags"]
    errno = _errno(profile, "defaultErrno", "defaultErrnoRet")
    if errno is not None:
        result["defaultErrnoRet"] = errno
    return result


def version(text: str, where: str) -> tuple[int, int]:
    """`6.18.44-fc` → (6, 18). Raises BadInput."""
    major, _, rest = text.partition(".")
    minor = rest.partition(".")[0].partition("-")[0]
    if not (major.isdecimal() and minor.isdecimal()):
        raise BadInput(f"{where}: {text!r} is not a kernel version like 4.8")
    return int(major), int(minor)


def _applies(
    rule: dict[str, Any],
    index: int,
    capabilities: frozenset[str],
    arch: str,
    kernel: tuple[int, int],
) -> bool:
    """Whether a rule counts here: every condition of `includes`, and none of `excludes`."""
    wanted, unwanted = rule.get("includes") or {}, rule.get("excludes") or {}
    if any(name in capabilities for name in unwanted.get("caps") or []):
        return False
    if any(name not in capabilities for name in wanted.get("caps") or []):
        return False
    if arch in (unwanted.get("arches") or []):
        return False
    if wanted.get("arches") and arch not in wanted["arches"]:
        return False
    where = f"syscalls[{index}]"
    least = wanted.get("minKernel")
    if least and kernel < version(least, f"{where}.includes.minKernel"):
        return False
    least = unwanted.get("minKernel")
    return not (least and kernel >= version(least, f"{where}.excludes.minKernel"))


def _plain_rule(rule: dict[str, Any], index: int) -> dict[str, Any]:
    names = rule.get("names") or [rule["name"]]
    plain: dict[str, Any] = {"names": names, "action": rule["action"]}
    if rule.get("args"):
        plain["args"] = rule["args"]
    errno = _errno(rule, "errno", "errnoRet", f"syscalls[{index}].")
    if errno is not None:
        plain["errnoRet"] = errno
    return plain


def _errno(table: dict[str, Any], name: str, number: str, where: str = "") -> int | None:
    """An errno given by name (podman) or by number (both); the name wins, as podman has it."""
    if table.get(name):
        import errno

        value = getattr(errno, str(table[name]), None)
        if not isinstance(value, int):
            raise BadInput(f"{where}{name}: {table[name]!r} is not the name of an errno")
        return value
    found: int | None = table.get(number)
    return found


def _check(profile: dict[str, Any]) -> None:
    from pyrun.oci import seccomp_compile

    if not isinstance(profile, dict):
        raise BadInput("the seccomp profile is not a JSON object")
    if profile.get("archMap") and profile.get("architectures"):
        raise BadInput("archMap: the profile has `architectures` too; only one of them may be used")
    seccomp_compile.action(profile, "defaultAction", "defaultErrnoRet", "defaultAction")
    for index, entry in enumerate(seccomp_compile.items(profile, "archMap", "archMap")):
        where = f"archMap[{index}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("architecture"), str):
            raise BadInput(f"{where}: has no `architecture`")
        for name in (
            entry["architecture"],
            *seccomp_compile.items(entry, "subArchitectures", where),
        ):
            seccomp_compile.architecture(name, where)
    for index, rule in enumerate(seccomp_compile.items(profile, "syscalls", "syscalls")):
        where = f"syscalls[{index}]"
        if not isinstance(rule, dict):
            raise BadInput(f"{where}: is not an object")
        if rule.get("name") and rule.get("names"):
            raise BadInput(f"{where}: has `name` and `names`; only one of them may be used")
        for side in ("includes", "excludes"):
            conditions = rule.get(side) or {}
            if not isinstance(conditions, dict):
                raise BadInput(f"{where}.{side}: is not an object")
            for kind in ("caps", "arches"):
                seccomp_compile.items(conditions, kind, f"{where}.{side}.{kind}")
            least = conditions.get("minKernel")
            if least is not None:
                version(str(least), f"{where}.{side}.minKernel")
        named = rule if rule.get("names") else {**rule, "names": [rule.get("name")]}
        seccomp_compile.parse_rule(named, where)
