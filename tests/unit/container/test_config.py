"""Options and an image to config.json: docker's rules, without touching the host."""

from __future__ import annotations

from typing import Any

import pytest

from pyrun.container.config import Host, Place, build, command, environment
from pyrun.container.options import Options, Volume
from pyrun.container.user import Identity
from pyrun.errors import BadInput
from pyrun.kernel import caps

HOST = Host(caps.mask(caps.NUMBERS), {"RLIMIT_NOFILE": (1024, 4096)}, 4, False)
PLACE = Place(
    {"mount": "", "network": "/run/netns/web", "pid": ""},
    "web",
    {"/etc/hosts": "/run/x/hosts"},
    "/run/x/shm",
    "web/web",
)


def image(**config: Any) -> dict[str, Any]:
    return {"config": config}


def made(options: Options, own: dict[str, Any] | None = None, host: Host = HOST) -> Any:
    return build(options, own or image(Cmd=["sh"]), PLACE, Identity(), host, {"/data": "/vol"})


@pytest.mark.parametrize(
    ("options", "own", "args"),
    [
        (Options("i"), {"Cmd": ["sh"]}, ["sh"]),
        (Options("i"), {"Entrypoint": ["e"], "Cmd": ["c"]}, ["e", "c"]),
        (Options("i", ("x",)), {"Entrypoint": ["e"], "Cmd": ["c"]}, ["e", "x"]),
        (Options("i", entrypoint=("o",)), {"Entrypoint": ["e"], "Cmd": ["c"]}, ["o"]),
        (Options("i", ("x",), entrypoint=("o",)), {"Cmd": ["c"]}, ["o", "x"]),
    ],
)
def test_command_is_chosen_as_docker_chooses(
    options: Options, own: dict[str, Any], args: list[str]
) -> None:
    assert command(options, image(**own)) == args


def test_an_image_without_command_is_said() -> None:
    with pytest.raises(BadInput, match="names no command"):
        command(Options("i"), image())


def test_environment_later_values_win() -> None:
    env = environment(
        Options("i", env=("A=user", "PATH=/mine")), image(Env=["A=image", "B=b"]), "web", "/root"
    )
    assert dict(entry.split("=", 1) for entry in env) == {
        "PATH": "/mine", "HOSTNAME": "web", "A": "user", "B": "b", "HOME": "/root",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (Options("i"), set(caps.DEFAULT)),
        (Options("i", cap_drop=("ALL",)), set()),
        (Options("i", cap_drop=("ALL",), cap_add=("CAP_KILL",)), {"CAP_KILL"}),
        (Options("i", cap_add=("ALL",)), set(caps.NUMBERS)),
        (Options("i", cap_add=("ALL",), cap_drop=("CAP_KILL",)), set(caps.NUMBERS) - {"CAP_KILL"}),
        (Options("i", privileged=True), set(caps.NUMBERS)),
    ],
)
def test_capabilities(options: Options, names: set[str]) -> None:
    granted = made(options)[0]["process"]["capabilities"]
    assert set(granted["bounding"]) == set(granted["effective"]) == names
    assert granted["inheritable"] == granted["ambient"] == []


def test_a_capability_this_host_cannot_give_is_an_error() -> None:
    poor = HOST._replace(bounding=caps.mask(caps.DEFAULT))
    with pytest.raises(BadInput, match="CAP_SYS_ADMIN"):
        made(Options("i", cap_add=("CAP_SYS_ADMIN",)), host=poor)


def test_rlimits_are_lowered_with_a_note() -> None:
    config, notes = made(Options("i", ulimits=(("RLIMIT_NOFILE", 9999, 9999),)))
    assert config["process"]["rlimits"] == [{"type": "RLIMIT_NOFILE", "soft": 4096, "hard": 4096}]
    assert "4096" in notes[0]


@pytest.mark.parametrize(
    "options",
    [
        Options("i", memory=1000),
        Options("i", cpus=5.0),
        Options("i", cpus=0.0),
        Options("i", cpu_shares=1),
        Options("i", memory_swap=1 << 30),
        Options("i", workdir="here"),
        Options("i", sysctls=(("kernel.panic", "1"),)),
        Options("i", devices=()).__class__("i", volumes=(Volume("tmpfs", "", "/a"),) * 2),
    ],
)
def test_limits_that_make_no_sense_are_refused(options: Options) -> None:
    with pytest.raises(BadInput):
        made(options)


def test_limits_become_linux_resources() -> None:
    config, _ = made(Options("i", memory=64 << 20, cpus=1.5, pids_limit=7, cpuset_cpus="0-1"))
    limits = config["linux"]["resources"]
    assert limits["memory"] == {"limit": 64 << 20}
    assert limits["cpu"] == {"period": 100000, "quota": 150000, "cpus": "0-1"}
    assert limits["pids"] == {"limit": 7}
    assert limits["devices"][0] == {"allow": False, "access": "rwm"}


def test_users_volumes_replace_what_stands_there_and_parents_come_first() -> None:
    volumes = (
        Volume("tmpfs", "", "/a/b"),
        Volume("bind", "/h", "/a"),
        Volume("bind", "/mine", "/etc/hosts"),
    )
    mounts = made(Options("i", volumes=volumes))[0]["mounts"]
    places = [mount["destination"] for mount in mounts]
    assert places.index("/a") < places.index("/a/b")
    assert places.count("/etc/hosts") == 1
    [hosts] = [mount for mount in mounts if mount["destination"] == "/etc/hosts"]
    assert hosts["source"] == "/mine"


def test_privileged_opens_the_doors() -> None:
    linux = made(Options("i", privileged=True))[0]["linux"]
    assert linux["maskedPaths"] == linux["readonlyPaths"] == []
    assert linux["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
