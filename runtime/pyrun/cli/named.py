"""Types of arguments that name a container, a pod or an image: what a shell can complete.

Any text is taken; the verbs say what does not exist. While a line is being completed click asks
the type for candidates instead (`completion.py`), and these look into the store.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from pyrun.store.paths import Paths

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    Text = click.ParamType[str]
else:
    Text = click.ParamType  # became generic after click 8.1


class Named(Text):
    def __init__(self, kind: str) -> None:
        self.name = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        given = ctx.find_root().params
        paths = Paths(given.get("root") or "", given.get("run_root") or "")
        taken = ctx.params.get(param.name or "") or ()
        left = sorted(set(self.names(paths)) - set([taken] if isinstance(taken, str) else taken))
        return [CompletionItem(name) for name in left if name.startswith(incomplete)]

    def names(self, paths: Paths) -> Iterable[str]:
        from pyrun.container import record

        if self.name == "container":
            return record.names(paths.containers)
        if self.name == "pod":
            return [one["name"] for one in record.sandboxes(paths) if one["pod"]]
        from pyrun.image import reference
        from pyrun.image.store import ImageStore

        images = ImageStore(paths).images()
        return [reference.familiar(name) for image in images for name in image.names]


CONTAINER, POD, IMAGE = Named("container"), Named("pod"), Named("image")
