"""The entry: `python -m pyrun`, the console script and the launcher on root's PATH come here."""

import gc
import os
import sys


def main() -> None:
    """Run the command line, and leave without the interpreter's farewell.

    A command lives for milliseconds: collecting garbage, and taking every module down at the end,
    would be a tenth of them. Nothing of pyrun waits for atexit.
    """
    gc.disable()
    try:
        from pyrun.cli.main import cli

        cli()
        code = 0
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else 0
    except KeyboardInterrupt:  # while modules were being loaded: nothing was begun
        code = 130
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = code or 1  # the disk is full, or the reader has gone
    os._exit(code)


if __name__ == "__main__":
    main()
