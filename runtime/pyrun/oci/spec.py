"""The runtime specification's config.json: the defaults that every container starts from.

Opencontainers runtime-spec 1.2, config.md and config-linux.md. Pure data: this module touches
nothing. `container/config.py` fills in what the user asked for; `oci/initplan.py` turns the
result into steps.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

OCI_VERSION = "1.2.0"

MASKED_PATHS = (
    "/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys",
    "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug",
    "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
)  # fmt: skip
"""Files that tell about the host, or about other containers (kcore, keys, timer_list)."""

READONLY_PATHS = (
    "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
)  # fmt: skip
"""Files through which a container could change the host."""

DEVICES = (
    ("/dev/null", 1, 3), ("/dev/zero", 1, 5), ("/dev/full", 1, 7),
    ("/dev/random", 1, 8), ("/dev/urandom", 1, 9), ("/dev/tty", 5, 0),
)  # fmt: skip
"""config-linux.md, Default Devices: character devices every container has."""


def default_mounts() -> list[dict[str, Any]]:
    """The file systems of the kernel and of /dev. /dev/shm and cgroup are the caller's choice."""
    return [
        {
            "destination": "/proc",
            "type": "proc",
            "source": "proc",
            "options": ["nosuid", "noexec", "nodev"],
        },
        {
            "destination": "/dev",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
        },
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        },
        {
            "destination": "/sys",
            "type": "sysfs",
            "source": "sysfs",
            "options": ["nosuid", "noexec", "nodev", "ro"],
        },
        {
            "destination": "/dev/mqueue",
            "type": "mqueue",
            "source": "mqueue",
            "options": ["nosuid", "noexec", "nodev"],
        },
    ]


def device_rules() -> list[dict[str, Any]]:
    """What the device cgroup allows by default: config-linux.md, Allowed Device list.

    mknod of anything (it is the opening that is guarded), the default devices, ptys.
    """

    def allow(kind: str, major: int | None, minor: int | None, access: str) -> dict[str, Any]:
        rule: dict[str, Any] = {"allow": True, "type": kind, "access": access}
        if major is not None:
            rule["major"] = major
        if minor is not None:
            rule["minor"] = minor
        return rule

    return [
        {"allow": False, "access": "rwm"},
        allow("c", None, None, "m"),
        allow("b", None, None, "m"),
        *(allow("c", major, minor, "rwm") for _, major, minor in DEVICES),
        allow("c", 5, 2, "rwm"),  # /dev/ptmx
        allow("c", 136, None, "rwm"),  # /dev/pts/*
    ]


def skeleton() -> dict[str, Any]:
    """A config.json that lacks only root, process.args and the namespaces' paths."""
    return {
        "ociVersion": OCI_VERSION,
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": [],
            "env": [],
            "cwd": "/",
            "capabilities": {},
            "rlimits": [],
            "noNewPrivileges": False,
        },
        "root": {"path": "rootfs", "readonly": False},
        "hostname": "",
        "mounts": default_mounts(),
        "annotations": {},
        "linux": {
            "namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "cgroup"}],
            "resources": {"devices": device_rules()},
            "maskedPaths": list(MASKED_PATHS),
            "readonlyPaths": list(READONLY_PATHS),
            "sysctl": {},
            "devices": [],
        },
    }
