"""mysql: MariaDB from Debian's packages, with the official image's environment variables."""

from __future__ import annotations

import shutil
from pathlib import Path

from ingredients import beside, unpack_debian

from pyrun.image import embedded
from pyrun.image.write import Entry, Layer, directory, symlink, tree

IMAGE = "docker.io/library/mysql:latest"
CONFIG = {
    "config": {
        "Env": [f"PATH={embedded.PATH}"],
        "Entrypoint": ["docker-entrypoint.sh"],
        "Cmd": ["mysqld"],
        "ExposedPorts": {"3306/tcp": {}},
        "Volumes": {"/var/lib/mysql": {}},
        "Labels": {"org.opencontainers.image.source": "debian:mariadb-server-core"},
    }
}

# The cores are the programs without init scripts and Perl. mariadb-client is taken for mysqladmin
# and mysqldump alone: what it depends on is for its Perl scripts.
PACKAGES = ["mariadb-server-core", "mariadb-client-core", "tzdata", "libc-bin"]
ALONE = ["mariadb-client"]

# Nobody reads these in a container.
NOT_NEEDED = """
    etc/init.d etc/cron.d etc/cron.daily usr/share/doc usr/share/man usr/share/info usr/share/locale
    usr/share/lintian usr/share/bash-completion usr/share/doc-base usr/share/menu usr/share/perl5
    usr/share/gcc usr/share/gdb usr/include var/lib/dpkg usr/lib/locale
""".split()

# MySQL's names, which newer MariaDB packages keep apart.
MYSQL_NAMES = {
    "usr/sbin/mysqld": "mariadbd",
    "usr/bin/mysql": "mariadb",
    "usr/bin/mysqladmin": "mariadb-admin",
    "usr/bin/mysqldump": "mariadb-dump",
}


def layers(work: Path) -> list[Layer]:
    root = unpack_debian(PACKAGES, ALONE, work)
    for name in NOT_NEEDED:
        shutil.rmtree(root / name, ignore_errors=True)
    add_busybox(root)
    for name, target in MYSQL_NAMES.items():
        if not (root / name).is_symlink() and not (root / name).exists():
            (root / name).symlink_to(target)
    # The server's own files change more often than the libraries below them.
    base: list[Entry] = []
    server: list[Entry] = []
    for entry in tree(str(root)):
        (server if "maria" in entry.path or "mysql" in entry.path else base).append(entry)
    there = {entry.path for entry in base}
    base += [entry for entry in embedded.skeleton() if entry.path not in there]
    return [
        Layer(base, "pyrun: libraries from Debian and busybox"),
        Layer(server, "pyrun: MariaDB from Debian"),
        Layer(
            [
                directory("docker-entrypoint-initdb.d"),
                directory("var/lib/mysql", 0o755, uid=999, gid=999),
                directory("run/mysqld", 0o755, uid=999, gid=999),
                symlink("var/run", "/run"),
                *beside(__file__),
            ],
            "pyrun: configuration and entry point",
        ),
    ]


def add_busybox(root: Path) -> None:
    """A shell and its tools for the entry point, wherever Debian's tree has none of that name."""
    program = embedded.find_busybox()
    assert program, "script/setup installs busybox-static"
    shutil.copy(program, root / "usr/bin/busybox")
    for entry in embedded.busybox_entries(program):
        name = Path(entry.path).name
        if not any((root / folder / name).exists() for folder in ("usr/bin", "usr/sbin")):
            (root / "usr/bin" / name).symlink_to("busybox")
