"""A fresh machine for the pages and the demo: the paths they name, and nobody else's pods.

Pages speak of /var/lib/pyrun and /run/netns, and of pods called `web`. So their commands run in
mount, network and pid namespaces of their own, with empty directories at those places. The pid
namespace also ends whatever a failing page leaves running.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]

BEGIN = """\
for directory in /var/lib/pyrun /run/pyrun /run/netns /root; do
    mkdir -p $directory
    mount -t tmpfs tmpfs $directory
done
ip link set lo up
"""

END = """\
{
    pyrun pod rm --force --all
    pyrun rm --force --all
    pyrun network rm
} >/dev/null 2>&1
"""


def command() -> list[str]:
    return [
        *("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"),
        *("bash", "-s"),
    ]


def environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": "/root", "LANG": "C.UTF-8", "TERM": "dumb"}


def run_in_world(
    script: str, *, interrupt_at: str = "", timeout: float = 120
) -> tuple[int, list[str]]:
    """Run a bash script in a world of its own. Returns its exit code and what it printed.

    interrupt_at  SIGINT, as of Ctrl-C, goes to everybody in it once this has been printed
    """
    process = subprocess.Popen(
        command(),
        cwd=CHECKOUT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    printed: list[str] = []
    with process:
        # A second shell, so that an `exit` in the script does not skip what ends the world; it
        # reads from a file, or the commands of the script would eat the rest of it.
        process.stdin.write(
            f"{BEGIN}cat >/root/script <<'END-OF-SCRIPT'\n{script}\nEND-OF-SCRIPT\n"
            f"trap : INT\ncd /root\nbash /root/script </dev/null\nstatus=$?\n{END}exit $status\n"
        )
        process.stdin.close()
        alarm = Alarm(process, timeout)
        try:
            for line in process.stdout:
                printed.append(line.rstrip("\n"))
                if interrupt_at and interrupt_at in line:
                    interrupt_at = ""
                    os.killpg(process.pid, signal.SIGINT)
        finally:
            alarm.off()
    return process.returncode, printed


class Alarm:
    """Ends a world that takes too long."""

    def __init__(self, process: subprocess.Popen[str], seconds: float) -> None:
        import threading

        self.timer = threading.Timer(seconds, process.kill)
        self.timer.start()

    def off(self) -> None:
        self.timer.cancel()
