"""Loading: what an archive holds is read, verified, unpacked, and made visible in one stroke.

Reading is in `layout.py` (and `archive.py`, `manifest.py` below it), the rest in `stage.py`.
"""

from __future__ import annotations

from pyrun.errors import BadInput
from pyrun.image import layout, reference, stage
from pyrun.image.archive import STDIN, open_input
from pyrun.image.blame import Blame
from pyrun.image.work import Work

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyrun.image.store import Image, ImageStore, Progress


def load(
    store: ImageStore, source: str, *, name: str = "", progress: Progress | None = None
) -> list[Image]:
    """See ImageStore.load."""
    wanted = reference.parse(name) if name else None
    if wanted and wanted.digest:
        raise BadInput(f"{name!r} has a digest: a digest names content and cannot be given")
    said = "standard input" if source == STDIN else source
    with Blame(f"cannot load {said}"), Work(store) as work:
        archive = open_input(source, work)
        try:
            candidates = layout.read(archive, source)
            if wanted:
                if len(candidates) > 1:
                    raise BadInput(
                        f"{len(candidates)} images in {source!r} cannot share the name {name!r}",
                        hint="leave --name out: they come with names of their own",
                    )
                candidates[0].names = [wanted.key]
            return stage.put(store, work, candidates, progress)
        finally:
            archive.close()
