"""`pyrun completion`: what a shell needs to complete pyrun's commands, options and names.

click does the work: the script printed here makes the shell call `pyrun` with `_PYRUN_COMPLETE`
set, and click answers with candidates instead of running anything. The names of what exists come
from the types in `named.py`.
"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command(epilog='Example: eval "$(pyrun completion bash)"')
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def completion(shell: str) -> None:
    """Print the script that teaches SHELL to complete commands, options and names."""
    from pyrun.cli.main import root

    found = get_completion_class(shell)
    assert found is not None  # click has one for each of our choices
    print(found(root, {}, "pyrun", "_PYRUN_COMPLETE").source())
