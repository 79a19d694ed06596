"""Boots a Linux with cgroup v2 as an ordinary program: User-mode Linux, for the `v2` tests.

Debian's `user-mode-linux` is a Linux 6.1 that needs neither KVM nor an image: its root is the
host's, read-only (hostfs), so checkout and .venv are simply there. It boots in two seconds. It has
the controllers cpu, io, memory and pids, overlay, bridge, veth and BPF; it lacks cpuset, PSI and
the nft ip families, has one CPU, and a fork costs 30 to 100 ms. `init.sh` is its process 1,
`xstate.c` a patch for CPUs newer than it.

`run()` runs a shell script inside, `run_tests()` runs pytest. By hand:

    .venv/bin/python tests/vm/uml.py [--systemd] [TEST…]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent.parent

BEGIN, END = "vm: report begins", "vm: report ends"

TESTS = """
cd "$VM_CHECKOUT"
export PYRUN_IN_VM=1 PYTHONDONTWRITEBYTECODE=1
mkdir -p /run/vm/tmp
{python} -m pytest -p no:cacheprovider --basetemp=/run/vm/tmp/pytest \\
    --junitxml=/run/vm/report.xml {arguments}
status=$?
echo '{begin}'; cat /run/vm/report.xml; echo; echo '{end}'
(exit $status)
"""


class Outcome:
    """What came of the tests inside: the names of those that passed, failed, were skipped."""

    def __init__(self, output: str) -> None:
        self.output = output
        self.passed: list[str] = []
        self.failed: list[str] = []
        self.skipped: list[str] = []
        report = output.partition(BEGIN)[2].partition(END)[0].strip()
        if not report:
            raise RuntimeError(f"the VM ended without a report:\n{output}")
        for case in ElementTree.fromstring(report).iter("testcase"):
            name = f"{case.get('classname')}::{case.get('name')}"
            kinds = {child.tag for child in case}
            if kinds & {"failure", "error"}:
                self.failed.append(name)
            elif "skipped" in kinds:
                self.skipped.append(name)
            else:
                self.passed.append(name)

    def summary(self) -> str:
        return (
            f"in the VM: {len(self.passed)} passed, {len(self.failed)} failed, "
            f"{len(self.skipped)} skipped"
        )

    def story(self) -> str:
        """What pytest printed inside, without the report."""
        return self.output.partition(BEGIN)[0]


def missing() -> str:
    """What this host lacks for the VM, as a sentence; empty when it can boot."""
    if os.uname().machine != "x86_64":
        return f"user-mode-linux does not exist for {os.uname().machine}"
    for program in ("linux.uml", "gcc", "modprobe", "setpriv", "unshare"):
        if not shutil.which(program):
            return f"{program} is not installed (script/setup --dev)"
    return ""


def run(script: str, *, systemd: bool = False, timeout: float = 600) -> str:
    """Boot, run `script` with bash as root, power off; what it printed, with `vm: exit N` last.

    Raises TimeoutError, with the output so far, when the VM takes longer than `timeout` seconds.
    """
    with tempfile.TemporaryDirectory(prefix="pyrun-vm-") as directory:
        wrapper = f"{directory}/xstate.so"
        subprocess.run(
            ["gcc", "-O2", "-shared", "-fPIC", "-o", wrapper, str(HERE / "xstate.c"), "-ldl"],
            check=True,
        )
        Path(directory, "run").write_text(script)
        with open(f"{directory}/output", "w+b") as output:
            vm = subprocess.Popen(
                command(directory, wrapper, systemd),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
            try:
                vm.wait(timeout)
            except subprocess.TimeoutExpired:
                raise TimeoutError(f"the VM ran for {timeout:g} s:\n{text(output.name)}") from None
            finally:
                if vm.poll() is None:
                    vm.kill()
                    vm.wait()
        return text(output.name)


def command(directory: str, wrapper: str, systemd: bool) -> list[str]:
    """The words that start User-mode Linux."""
    environment = ["env", "-i", f"LD_PRELOAD={wrapper}", "TMPDIR=/dev/shm", "PATH=/usr/bin:/bin"]
    kernel = ["linux.uml", "mem=2G", "quiet", "rootfstype=hostfs", "rootflags=/", "ro"]
    kernel += [f"init={HERE}/init.sh", "con=null", "con0=null,fd:2", "con1=fd:0,fd:1"]
    kernel += [f"uml_dir={directory}", "umid=vm"]
    kernel += [f"VM_CHECKOUT={CHECKOUT}", f"VM_RUN={directory}/run"]
    # A pid namespace, so that the VM with all its processes ends when this one ends, however; and
    # a shell in it as process 1, since signals an init process has no handler for are lost.
    shell = ["sh", "-c", '"$@"; exit $?', "vm"]
    return [
        *("setpriv", "--pdeathsig=KILL", "unshare", "--pid", "--fork", "--kill-child=KILL"),
        *environment,
        *shell,
        *kernel,
        *(["VM_SYSTEMD=1"] if systemd else []),
    ]


def text(path: str) -> str:
    return Path(path).read_text(errors="replace").replace("\r\n", "\n")


def marked_files() -> list[str]:
    """The test files with a `v2` mark. Collecting all the others would take the VM a minute."""
    tests = (CHECKOUT / "tests").rglob("test_*.py")
    return sorted(str(p.relative_to(CHECKOUT)) for p in tests if "mark.v2" in p.read_text())


def run_tests(*paths: str, systemd: bool = False, timeout: float = 600) -> Outcome:
    """Run pytest inside: the given paths, or all `v2`-marked tests. Raises TimeoutError."""
    arguments = list(paths) or ["-m", "v2", *marked_files()]
    script = TESTS.format(
        python=sys.executable, arguments=" ".join(arguments), begin=BEGIN, end=END
    )
    return Outcome(run(script, systemd=systemd, timeout=timeout))


def main() -> int:
    arguments = sys.argv[1:]
    systemd = "--systemd" in arguments
    outcome = run_tests(*(a for a in arguments if a != "--systemd"), systemd=systemd)
    print(outcome.story())
    print(outcome.summary())
    return 1 if outcome.failed or outcome.skipped or not outcome.passed else 0


if __name__ == "__main__":
    sys.exit(main())
