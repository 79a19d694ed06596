"""Every help ends with an example, and the examples run as they stand."""

from __future__ import annotations

import click
import pytest

from docs.test_pages import COMMANDS
from docs.world import CHECKOUT, run_in_world


def examples(command: click.Command) -> list[str]:
    """What stands behind `Example:`; several are parted by ` · `, a note follows three blanks."""
    _, _, text = (command.epilog or "").partition(":")
    return [part.partition("   (")[0].strip() for part in text.split(" · ") if part.strip()]


ALL = [(name, example) for name, command in COMMANDS.items() for example in examples(command)]

ON_A_TERMINAL = {"pyrun exec -it web sh"}
"""They need one; what they do is tested with one in `tests/cli`."""

NOTHING = "true"
CONTAINER = "pyrun run -d --name web busybox sleep 1000"
ENDS_SOON = "pyrun run -d --name web busybox sh -c 'echo hello; sleep 0.5'"
POD = "pyrun pod create --name web --container 'busybox sleep 1000'"
LAYOUT = (
    f"{CHECKOUT}/.venv/bin/python3 -c 'from pyrun.image.embedded import make_busybox; "
    'make_busybox("layout")\' && tar -C layout -cf nginx.tar .'
)
POD_FILE = """cat > pod.yaml <<'END'
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  restartPolicy: Never
  containers: [{name: one, image: busybox, args: [sleep, "1000"]}]
END"""

BEFORE = {
    "pyrun pod create -f pod.yaml": POD_FILE,
    "pyrun pod logs": "pyrun pod create --name web --container 'busybox echo hello'",
    "pyrun pod create": NOTHING,
    "pyrun pod ps": POD,
    "pyrun pod prune": NOTHING,
    "pyrun pod start": f"{POD}; pyrun pod stop -t 0 web",
    "pyrun pod": POD,
    "pyrun start": "pyrun create --name web busybox true",
    "pyrun unpause": f"{CONTAINER}; pyrun pause web",
    "pyrun wait": ENDS_SOON,
    "pyrun attach": ENDS_SOON,
    "pyrun logs": ENDS_SOON,
    "pyrun run": NOTHING,
    "pyrun create": NOTHING,
    "pyrun ps": CONTAINER,
    "pyrun image load": LAYOUT,
    "pyrun image rm": "pyrun image tag busybox localhost/mine:1",
    "pyrun image unmount": "pyrun image mount busybox",
    "pyrun image import": "mkdir -p rootfs/bin && cp /bin/busybox rootfs/bin/sh",
    "pyrun image": NOTHING,
    "pyrun network": NOTHING,
    "pyrun completion": NOTHING,
}
"""What must be there first, by the beginning of the command; the first that fits is taken."""


def preparation(name: str, example: str) -> str:
    for beginning, commands in BEFORE.items():
        if example.startswith(beginning):
            return commands
    return next((found for begin, found in BEFORE.items() if name.startswith(begin)), CONTAINER)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_an_example(name: str) -> None:
    command = COMMANDS[name]
    context = click.Context(command, info_name=name, terminal_width=300, max_content_width=300)
    last = command.get_help(context).splitlines()[-1].strip()
    assert last.startswith(("Example: ", "Examples: "))
    assert examples(command)


def test_examples_run() -> None:
    """All in one world: making one takes longer than running an example."""
    wanted = [(name, example) for name, example in ALL if example not in ON_A_TERMINAL]
    lines = ["pyrun run --rm busybox true", "pyrun image tag busybox nginx"]
    for number, (name, example) in enumerate(wanted):
        quoted = "'" + example.replace("'", "'\\''") + "'"
        lines += [
            f"{{\n{preparation(name, example)}\n}} >/dev/null || echo cannot prepare {number}",
            f"eval {quoted}; code=$?; echo; echo example {number} ends with $code",
            "pyrun pod rm --force --all >/dev/null; pyrun rm --force --all >/dev/null",
        ]
    _, printed = run_in_world("\n".join(lines))
    text = "\n".join(printed)
    assert "cannot prepare" not in text, text
    wrong = [
        example
        for number, (_, example) in enumerate(wanted)
        if f"example {number} ends with 0" not in printed
    ]
    assert not wrong, text


def test_only_what_needs_a_terminal_is_left_out() -> None:
    assert {example for _, example in ALL} >= ON_A_TERMINAL
