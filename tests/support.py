"""A pyrun of the tests' own beside whatever else runs on this host, and what the kernel says of it.

A `Node` has its own roots, and with them its own bridge, nftables table, address range and cgroups.
`traces` lists everything on the host that bears its marks; the leak check of `conftest.py`
compares two such lists.
"""

from __future__ import annotations

import ctypes
import fcntl
import itertools
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import sysconfig
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyrun.cgroup import api as cgroup
from pyrun.container import sandbox
from pyrun.network import link
from pyrun.store.paths import Paths

DEADLINE = 20.0
"""Seconds after which something that should happen at once has not happened."""

RUNTIME = str(Path(__file__).parent.parent / "runtime")
ENTRY = (
    f"import sys; sys.path += [{RUNTIME!r}, {sysconfig.get_path('purelib')!r}]; "
    "from pyrun.__main__ import main; main()"
)
PYRUN = (sys.executable, "-IS", "-c", ENTRY)
"""The command as script/setup's launcher runs it, with the interpreter of these tests."""


def wait_until(truth: Callable[[], Any], what: str, seconds: float = DEADLINE) -> Any:
    """The first true value of `truth`. For what gives no event to wait for."""
    end = time.monotonic() + seconds
    while not (value := truth()):
        assert time.monotonic() < end, f"did not happen in {seconds:g} s: {what}"
        time.sleep(0.005)
    return value


def read(path: str | Path) -> str:
    return Path(path).read_text(encoding="utf-8", errors="replace")


def status_of(pid: int | str) -> dict[str, str]:
    """/proc/PID/status."""
    lines = read(f"/proc/{pid}/status").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def namespace(pid: int | str, kind: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def running(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Node:
    """One pyrun: its roots, its environment, and the ways to run it."""

    _numbers = itertools.count()

    def __init__(self, root: Path, run_root: Path) -> None:
        self.paths = Paths(str(root), str(run_root))
        # A range out of 10.192.0.0/10 chosen by pid, so that several test runs go side by side.
        number = (os.getpid() << 2 | next(self._numbers) & 3) & 0x3FFF
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": "/root",
            "PYRUN_ROOT": self.paths.root,
            "PYRUN_RUN_ROOT": self.paths.run_root,
            "PYRUN_POD_CIDR": f"10.{192 + (number >> 8)}.{number & 255}.0/24",
            "PYRUN_POD_CIDR6": f"fd66:6b:{os.getpid() & 0xFFFF:x}:{number:x}::/64",
        }
        self.names = (f"t{number:x}-{count}" for count in itertools.count())
        self.layout = cgroup.host_layout()

    def __call__(
        self,
        *args: str | Path,
        input: str | None = None,
        check: bool = True,
        env: dict[str, str] | None = None,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run `pyrun ARGS` to its end. With `check` an exit code other than 0 fails the test."""
        done = subprocess.run(
            [*PYRUN, *map(str, args)],
            env={**self.env, **(env or {})},
            stdin=subprocess.DEVNULL if input is None else None,
            input=input,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=timeout,
        )
        assert not check or done.returncode == 0, f"pyrun {args}: {done.returncode}\n{done.stderr}"
        return done

    def out(self, *args: str | Path, **options: Any) -> str:
        """What `pyrun ARGS` printed, without the last newline."""
        return str(self(*args, **options).stdout).removesuffix("\n")

    def fails(self, code: int, *args: str | Path, **options: Any) -> str:
        """The error of a `pyrun ARGS` that must end with `code`; never a traceback."""
        done = self(*args, check=False, **options)
        assert done.returncode == code, f"{done.returncode}, not {code}: {done.stderr}"
        assert "Traceback" not in done.stderr
        return str(done.stderr)

    def spawn(self, *args: str | Path, **options: Any) -> subprocess.Popen[bytes]:
        """`pyrun ARGS` in the background, with pipes."""
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE,
                   "stderr": subprocess.PIPE, **options}  # fmt: skip
        return subprocess.Popen([*PYRUN, *map(str, args)], env=self.env, **options)

    def start(self, *args: str | Path, name: str = "") -> str:
        """`run -d ARGS` under a name of its own. Returns the name."""
        name = name or next(self.names)
        self("run", "-d", "--name", name, *args)
        return name

    # the kernel's word

    def cgroup(self, name: str, controller: str, sandbox_name: str = "") -> Path:
        """The directory of a container's cgroup in the hierarchy that has `controller`."""
        path = sandbox.cgroup_path(self.paths, self.layout, sandbox_name or name, name)
        return Path(self.layout.controllers[controller].directory(path))

    def limit(self, name: str, controller: str, v1: str, v2: str) -> str:
        """The text of a limit's file, whichever version the controller has here."""
        version = self.layout.controllers[controller].version
        return read(self.cgroup(name, controller) / (v1 if version == 1 else v2)).strip()

    def pids(self, name: str, sandbox_name: str = "") -> list[int]:
        """The processes in a container's cgroup."""
        try:
            return [
                int(pid)
                for pid in read(self.cgroup(name, "pids", sandbox_name) / "cgroup.procs").split()
            ]
        except FileNotFoundError:
            return []

    def pid(self, name: str, sandbox_name: str = "") -> int:
        """The container's first process: the one whose parent is outside."""
        pids = self.pids(name, sandbox_name)
        return next(pid for pid in pids if int(status_of(pid)["PPid"]) not in pids)

    def supervisor(self, name: str) -> int:
        """The pid of a sandbox's supervisor, found by the name it has given itself."""
        wanted = f"pyrun:{name}"[:15]
        return next(p for p, _ in self.processes() if read(f"/proc/{p}/comm").strip() == wanted)

    def processes(self) -> Iterator[tuple[int, list[str]]]:
        """Supervisors and CLIs of this node: (pid, command line)."""
        for entry in os.listdir("/proc"):
            if not entry.isdecimal():
                continue
            try:
                words = read(f"/proc/{entry}/cmdline").split("\0")[:-1]
                own = self.paths.run_root in words or (
                    f"PYRUN_RUN_ROOT={self.paths.run_root}\0" in read(f"/proc/{entry}/environ")
                )
            except OSError:  # it has ended, or is none of ours
                continue
            if own and words:
                yield int(entry), words

    def traces(self) -> set[str]:
        """Everything on the host that this node has made and that a removal must take away."""
        roots = (f"{self.paths.root}/", f"{self.paths.run_root}/")
        found = set()
        for line in read("/proc/self/mountinfo").splitlines():
            fields = line.split(" ")
            if fields[4].startswith(roots) or any(root in line for root in roots):
                found.add(f"mount {fields[4]}")
        bridge = self.paths.bridge
        for name in os.listdir("/sys/class/net"):
            try:
                master = os.path.basename(os.readlink(f"/sys/class/net/{name}/master"))
            except OSError:
                master = ""
            if master == bridge:
                found.add(f"link {name}")
        found |= {f"nft {line.strip()}" for line in self.nft_elements()}
        for hierarchy in [*self.layout.hierarchies(), *self.layout.named.values()]:
            top = hierarchy.directory(f"{self.layout.base()}/{self.paths.tag}")
            found |= {f"cgroup {path}" for path, _, _ in os.walk(top) if path != top}
            for path, _, files in os.walk(top):
                if "cgroup.procs" in files:
                    found |= {f"process {pid} in a cgroup" for pid in lines(f"{path}/cgroup.procs")}
        found |= {f"process {pid}: {' '.join(words)[-200:]}" for pid, words in self.processes()}
        for top, kept in (
            (self.paths.root, ("cache", "images", "layers", "network.json")),
            (self.paths.run_root, ("network.lock", "boot.lock", "boot_id")),
        ):
            for path, directories, names in os.walk(top):
                if path == top:
                    directories[:] = [name for name in directories if name not in kept]
                    names = [name for name in names if name not in kept]
                found |= {f"file {path}/{name}" for name in names}
                if path.count("/") - top.count("/") >= 1:
                    found |= {f"file {path}/{name}/" for name in directories}
        return found

    def nft_elements(self) -> list[str]:
        """The elements of the node's nftables sets and maps: published ports, pods."""
        if not os.path.exists(f"/sys/class/net/{self.paths.bridge}"):
            return []
        text = subprocess.run(
            ["nft", "list", "ruleset"], capture_output=True, text=True, check=False
        ).stdout
        table = re.search(rf"^table \w+ {self.paths.nft_table} \{{$.*?^}}$", text, re.M | re.S)
        return re.findall(r"elements = \{(.*?)\}", table.group(), re.S) if table else []

    # tidying up

    def remove_everything(self) -> None:
        """`rm -f` for every container and pod there is, whole or not."""
        containers = names(self.paths.containers)
        if containers:
            self("rm", "-f", *containers, check=False)
        for name in names(self.paths.sandboxes):
            self("rm", "-f", name, check=False)
            self("pod", "rm", "-f", name, check=False)

    def tear_down(self) -> None:
        """Remove the node itself. Fails where anything of it stays."""
        self.remove_everything()
        self("network", "rm")
        wait_until(lambda: not self.traces(), f"nothing of {self.paths.run_root} is left")
        assert not os.path.exists(f"/sys/class/net/{self.paths.bridge}")
        assert self.paths.nft_table not in running("nft", "list", "tables")
        for hierarchy in [*self.layout.hierarchies(), *self.layout.named.values()]:
            top = hierarchy.directory(f"{self.layout.base()}/{self.paths.tag}")
            if os.path.isdir(top):
                os.rmdir(top)
        shutil.rmtree(self.paths.run_root)
        shutil.rmtree(self.paths.root)


def names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


def lines(path: str) -> list[str]:
    try:
        return read(path).splitlines()
    except OSError:
        return []


def veth(node: Node, name: str) -> str:
    return link.host_name(node.paths, name)


@contextmanager
def reaped(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Whatever happens in the block, the process is gone and its pipes are closed afterwards."""
    try:
        yield process
    finally:
        process.kill()
        process.wait(DEADLINE)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass


class Terminal:
    """`pyrun ARGS` on a terminal of its own, for a `with` block; the test is the one who types."""

    def __init__(self, node: Node, *args: str, rows: int = 33, columns: int = 77) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(rows, columns, wake=False)
        self.before = termios.tcgetattr(self.slave)
        self.seen = b""
        slave = self.slave
        self.process = subprocess.Popen(
            [*PYRUN, *args],
            env={**node.env, "TERM": "dumb"},
            stdin=slave, stdout=slave, stderr=slave,
            preexec_fn=lambda: own_terminal(slave),
        )  # fmt: skip

    def resize(self, rows: int, columns: int, *, wake: bool = True) -> None:
        # The kernel itself sends SIGWINCH to the terminal's foreground group.
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, data: bytes) -> None:
        os.write(self.master, data)

    def expect(self, wanted: bytes, seconds: float = DEADLINE) -> bytes:
        """Read until `wanted` has come. Returns what came before; it is not seen again."""
        end = time.monotonic() + seconds
        while wanted not in self.seen:
            left = end - time.monotonic()
            ready, _, _ = select.select([self.master], [], [], max(left, 0))
            assert ready, f"the terminal never showed {wanted!r}; it shows {self.seen!r}"
            self.seen += os.read(self.master, 65536)
        before, _, self.seen = self.seen.partition(wanted)
        return before

    def wait(self, seconds: float = DEADLINE) -> int:
        """The exit code; reads on meanwhile, since a full terminal would block the process."""
        end = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < end, f"still running; it shows {self.seen!r}"
            if select.select([self.master], [], [], 0.01)[0]:
                self.seen += os.read(self.master, 65536)
        while select.select([self.master], [], [], 0)[0]:
            self.seen += os.read(self.master, 65536)
        return self.process.returncode

    @property
    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.slave)[3] & termios.ICANON

    @property
    def is_as_before(self) -> bool:
        return termios.tcgetattr(self.slave) == self.before

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(DEADLINE)
        os.close(self.master)
        os.close(self.slave)


def own_terminal(slave: int) -> None:
    """In the child: a session of its own with this terminal."""
    os.setsid()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)


def compiled(directory: Path, source: str, name: str = "probe") -> Path:
    """A static program for use inside a container, where there is no libc."""
    code = directory / f"{name}.c"
    code.write_text(source)
    program = directory / name
    running("gcc", "-static", "-O1", "-o", str(program), str(code))
    return program


def unshare_here(flags: int) -> None:
    """unshare(2), for a child process between fork and exec."""
    if ctypes.CDLL(None, use_errno=True).unshare(flags):
        raise OSError(ctypes.get_errno(), "unshare")


def words(text: str) -> Sequence[str]:
    return text.split()
