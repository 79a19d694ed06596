"""busybox: the embedded image, written as a recipe so that `images/build all` has it too."""

from __future__ import annotations

from pathlib import Path

from pyrun.image import embedded
from pyrun.image.write import Layer

IMAGE = embedded.NAME
CONFIG = embedded.CONFIG


def layers(work: Path) -> list[Layer]:
    return [embedded.busybox_layer()]
