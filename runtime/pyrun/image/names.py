"""Names in an archive: which file beneath the root they mean, without asking the file system."""

from __future__ import annotations

from pyrun.errors import BadInput


def clean(name: bytes) -> bytes:
    """`./usr//bin/x/` → `usr/bin/x`; the root is empty. Raises BadInput for a name that leaves it.

    A leading slash means the layer's root: it is what the name is below in the container too.
    """
    if name.startswith(b"./"):
        name = name[2:]
    name = name.strip(b"/")
    if (
        b".." in name
        or b"//" in name
        or b"/./" in name
        or name[:2] in (b".", b"./")
        or (name.endswith(b"/."))
    ):
        parts: list[bytes] = []
        for part in name.split(b"/"):
            if part == b"..":
                if not parts:
                    raise BadInput("the name leaves the root directory of the layer")
                parts.pop()
            elif part not in (b"", b"."):
                parts.append(part)
        name = b"/".join(parts)
    if b"\0" in name:
        raise BadInput("a name with a NUL in it")
    return name
