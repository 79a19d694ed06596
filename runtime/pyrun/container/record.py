"""What pyrun remembers of containers and sandboxes, and how it is held against the kernel.

A container's directory under the root holds record.json (what was asked for), config.json (the
OCI bundle's), exit.json (how it ended) and the log; its directory under the run root holds
state.json (the process, while it lives). Nothing here changes the host but `claim` and `save`.
"""

from __future__ import annotations

import os

from pyrun.errors import BadInput, NotFound, PyrunError
from pyrun.kernel import process
from pyrun.store import records
from pyrun.store.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NAME_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


def check_name(name: str) -> str:
    """A name must serve as a file name, a hostname's base and an argument. Raises BadInput."""
    if not name or len(name) > 128 or not set(name) <= NAME_LETTERS or not name[0].isalnum():
        raise BadInput(
            f"{name!r} cannot be a name",
            hint="letters, digits, `_`, `.` and `-`, beginning with a letter or digit, "
            "at most 128 of them",
        )
    return name


def new_id() -> str:
    return os.urandom(32).hex()


# Words as docker has them, two lists of 64: a name is two of them and, if need be, a number.
LEFT = (
    "able amber brave brisk bright calm clear clever cosy crisp daring eager early easy fair fine "
    "firm fleet fond free fresh gentle glad golden good grand happy hardy humble jolly keen kind "
    "lively loyal lucky mellow merry mild modest neat noble patient plain polite proud pure quick "
    "quiet ready robust sharp silent simple smart solid sound steady still sunny sure swift tidy "
    "warm wise"
).split()
RIGHT = (
    "acorn anchor apple arrow badger beacon birch bridge brook cabin candle canyon cedar cliff "
    "cloud clover comet coral creek delta ember falcon fern field finch forest fox garden glade "
    "harbor hazel heron hill island kettle lantern lark maple meadow moss oak orchard otter owl "
    "pebble pine plum pond quartz raven reef river robin sail sparrow spruce stone summit swan "
    "thistle valley violet willow wren"
).split()


def random_name() -> str:
    left, right, number = os.urandom(3)
    return f"{LEFT[left % len(LEFT)]}-{RIGHT[right % len(RIGHT)]}-{number}"


# finding


def names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


def find(paths: Paths, kind: str, wanted: str) -> str:
    """The name of the container or sandbox (`kind` is "containers" or "sandboxes") that is
    called `wanted`, or whose id begins with it. Raises NotFound."""
    what = "container" if kind == "containers" else "pod"
    directory = paths.containers if kind == "containers" else paths.sandboxes
    if (
        "/" not in wanted
        and wanted not in ("", ".", "..")
        and os.path.isdir(f"{directory}/{wanted}")
    ):
        return wanted
    found = [
        target.partition("/")[2]
        for target in (
            os.readlink(f"{paths.ids}/{id_}")
            for id_ in names(paths.ids)
            if wanted and id_.startswith(wanted)
        )
        if target.startswith(f"{kind}/")
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise BadInput(f"{what} id {wanted!r} is ambiguous: {', '.join(found)}")
    raise NotFound(
        f"no such {what}: {wanted}",
        hint=f"`pyrun {'pod ' if what == 'pod' else ''}ps{'' if what == 'pod' else ' -a'}` "
        f"lists {what}s",
    )


def container(paths: Paths, name: str) -> dict[str, Any]:
    """The record of container `name`. Raises NotFound."""
    record = records.read(f"{paths.container(name)}/record.json")
    if record is None:
        raise NotFound(
            f"container {name} is only half made: its creation goes on, or was interrupted",
            hint=f"`pyrun rm -f {name}` removes what is there",
        )
    return dict(record)


def sandbox(paths: Paths, name: str) -> dict[str, Any]:
    """The record of sandbox `name`. Raises NotFound."""
    record = records.read(f"{paths.sandbox(name)}/record.json")
    if record is None:
        raise NotFound(
            f"pod {name} is only half made: its creation goes on, or was interrupted",
            hint=f"`pyrun pod rm -f {name}` removes what is there",
        )
    return dict(record)


def containers(paths: Paths) -> list[dict[str, Any]]:
    """All whole container records, oldest first."""
    found = [records.read(f"{paths.container(n)}/record.json") for n in names(paths.containers)]
    return sorted((r for r in found if r is not None), key=lambda r: float(r["created"]))


def sandboxes(paths: Paths) -> list[dict[str, Any]]:
    found = [records.read(f"{paths.sandbox(n)}/record.json") for n in names(paths.sandboxes)]
    return sorted((r for r in found if r is not None), key=lambda r: float(r["created"]))


def members(paths: Paths, sandbox_name: str) -> list[dict[str, Any]]:
    """The containers of a sandbox, in the order they were added; half-made ones left out."""
    record = records.read(f"{paths.sandbox(sandbox_name)}/record.json") or {"members": []}
    found = [records.read(f"{paths.container(name)}/record.json") for name in record["members"]]
    return [r for r in found if r is not None]


def users_of_image(paths: Paths, image_id: str) -> list[str]:
    """Names of the containers made from an image."""
    return [r["name"] for r in containers(paths) if r["image"] == image_id]


# state, held against the kernel


class Status:
    """How a container is. word: created | running | paused | exited | broken.

    pid is 0 unless it runs; code is None unless it ended; times are seconds since the epoch.
    """

    __slots__ = ("code", "finished", "oom", "pid", "started", "ticks", "word")

    def __init__(self, word: str, **facts: Any) -> None:
        self.word = word
        self.pid: int = facts.get("pid", 0)
        self.ticks: int = facts.get("ticks", 0)
        self.started: float = facts.get("started", 0.0)
        self.finished: float = facts.get("finished", 0.0)
        self.code: int | None = facts.get("code")
        self.oom: bool = facts.get("oom", False)

    @property
    def running(self) -> bool:
        return self.word in ("running", "paused")


def status(paths: Paths, name: str) -> Status:
    """Files are memory, the kernel is the truth: running means that exactly this process lives."""
    state = records.read(f"{paths.container_run(name)}/state.json")
    if state and process.is_alive(state["pid"], state["ticks"]):
        return Status("paused" if state.get("paused") else "running", **state)
    directory = paths.container(name)
    ended = (
        records.read(f"{directory}/exit.json")
        or records.read(f"{directory}/started")  # the disk was full
        or records.read(f"{paths.container_run(name)}/exit.json")
    )
    if ended and (not state or ended.get("started") == state.get("started")):
        return Status("exited", **ended)
    if state:
        # The process is gone and nobody wrote down how: the supervisor died as well.
        return Status("exited", code=255, started=state["started"], finished=0.0)
    if not os.path.exists(f"{paths.container(name)}/record.json"):
        return Status("broken")
    if os.path.exists(f"{paths.container(name)}/started"):
        return Status("exited", code=255)  # it ran when the machine went down
    return Status("created")


def sandbox_state(paths: Paths, name: str) -> dict[str, Any]:
    """Addresses and supervisor of a sandbox that is up, or {} where it is not."""
    return dict(records.read(f"{paths.sandbox_run(name)}/state.json") or {})


def supervisor_alive(paths: Paths, name: str) -> bool:
    state = sandbox_state(paths, name)
    return bool(state) and process.is_alive(*state.get("supervisor", (0, 0)))


def is_up(paths: Paths, name: str) -> bool:
    """Whether all of a sandbox is there: its supervisor lives, and what made it came to its end."""
    return os.path.exists(f"{paths.sandbox_run(name)}/up") and supervisor_alive(paths, name)


# changing


def claim(kind_directory: str, name: str, what: str) -> None:
    """Take a name: makes the object's directory. Raises Conflict."""
    records.take_name(kind_directory, name, what)


def save(directory: str, record: dict[str, Any]) -> None:
    """Write record.json; `sync` makes it durable, when the container already runs."""
    records.write(f"{directory}/record.json", record, durable=False)


def sync(*directories: str) -> None:
    """Make the files of objects durable: a power cut from now on finds them whole.

    The last step of a plan, so that no start waits for the disk. What a power cut leaves of an
    earlier moment is a half-made object, which `rm -f` removes.
    """
    for directory in directories:
        for name in ("record.json", "config.json", "."):
            try:
                fd = os.open(f"{directory}/{name}", os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


def link_id(ids: str, id_: str, target: str) -> None:
    os.makedirs(ids, 0o711, exist_ok=True)
    os.symlink(target, f"{ids}/{id_}")


def unlink_id(ids: str, target: str, id_: str = "") -> None:
    """Remove the id link that points at `target`; the id may be unknown to a half-made object."""
    for name in [id_] if id_ else names(ids):
        try:
            if os.readlink(f"{ids}/{name}") == target:
                os.unlink(f"{ids}/{name}")
        except FileNotFoundError:
            continue


def add_member(directory: str, name: str) -> None:
    """Add `name` to the members in the sandbox record. The caller holds the sandbox's lock.

    Raises NotFound where the sandbox has been removed since the caller looked.
    """
    record = records.read(f"{directory}/record.json")
    if record is None:
        raise NotFound(f"no such pod: {os.path.basename(directory)}: it has just been removed")
    if name not in record["members"]:
        record["members"].append(name)
        save(directory, record)


def drop_member(directory: str, name: str) -> None:
    record = records.read(f"{directory}/record.json")
    if record is not None and name in record["members"]:
        record["members"].remove(name)
        save(directory, record)


def command_text(args: list[str]) -> str:
    text = " ".join(args)
    return text if len(text) <= 30 else text[:29] + "…"


def require_running(paths: Paths, name: str) -> Status:
    found = status(paths, name)
    if not found.running:
        raise PyrunError(
            f"container {name} is not running ({found.word})",
            hint=f"`pyrun start {name}` starts it",
        )
    return found
