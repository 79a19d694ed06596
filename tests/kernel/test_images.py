"""The images of images/ do what the official ones do. They run here without pyrun: unpacked by
umoci, entered with unshare and chroot, so that a failure means the recipe and nothing else."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

UNSHARE = ("unshare", "--mount", "--pid", "--net", "--fork", "--kill-child")

# What a runtime does for its container, as far as these programs need it.
ENTER = """
set -e
root=$1; shift
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/dev"
for device in null zero urandom; do
    touch "$root/dev/$device"; mount --bind "/dev/$device" "$root/dev/$device"
done
ln -s /proc/self/fd "$root/dev/fd"
ln -s /proc/self/fd/1 "$root/dev/stdout"
ln -s /proc/self/fd/2 "$root/dev/stderr"
ip link set lo up
cd /
exec env -i "PATH=$IMAGE_PATH" $IMAGE_ENV chroot "$root" "$@"
"""


class Running:
    """A program in its own mount, PID and network namespaces."""

    def __init__(self, root, log, command, environment):
        self.root = root
        self.log = log
        words = " ".join(f"{key}={value}" for key, value in environment.items())
        with open(log, "wb") as output:
            self.process = subprocess.Popen(
                [*UNSHARE, "bash", "-c", ENTER, "enter", str(root), *command],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"IMAGE_PATH": PATH, "IMAGE_ENV": words},
            )

    def run(self, *command):
        """Run a program of the host in the image's network."""
        net = f"--net=/proc/{self.process.pid}/ns/net"
        return subprocess.run(
            ["nsenter", net, *command], capture_output=True, text=True, timeout=30
        )

    def run_inside(self, *command):
        """Run a program of the image in the image's network."""
        return self.run("chroot", str(self.root), *command)

    def curl(self, *arguments):
        """Returns what was answered, the status code in the last line."""
        return self.run("curl", "-s", "-w", "\n%{http_code}", *arguments).stdout

    def init(self):
        """The process that is PID 1 inside."""
        path = f"/proc/{self.process.pid}/task/{self.process.pid}/children"
        return int(Path(path).read_text().split()[0])

    def wait_until(self, answers):
        deadline = time.monotonic() + 60
        while not answers():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def kill(self):
        """End everything inside: PID 1 takes its whole namespace with it.

        unshare's --kill-child is not enough: the kernel forgets the parent-death signal when the
        child changes its user, as mysqld does.
        """
        with contextlib.suppress(OSError, IndexError):
            os.kill(self.init(), signal.SIGKILL)
        self.process.kill()
        self.process.wait(30)

    def stop(self, number=signal.SIGTERM):
        os.kill(self.init(), number)
        return self.process.wait(30)


@pytest.fixture(scope="session")
def trees(tmp_path_factory):
    """A pristine tree of an image, by name."""
    made = {}

    def tree(name):
        if name not in made:
            build = subprocess.run(
                ["images/build", name], cwd=CHECKOUT, check=True, stdout=subprocess.PIPE, text=True
            )
            bundle = tmp_path_factory.mktemp(name) / "bundle"
            subprocess.run(
                ["umoci", "unpack", "--image", f"{build.stdout.strip()}:latest", str(bundle)],
                check=True,
                capture_output=True,
            )
            made[name] = bundle / "rootfs"
        return made[name]

    yield tree
    for root in made.values():
        shutil.rmtree(root.parent)


@pytest.fixture
def start(trees, tmp_path):
    """Start an image's program in a copy of its tree; everything ends with the test."""
    with contextlib.ExitStack() as stack:

        def begin(name, *command, root=None, **environment):
            if root is None:
                root = tmp_path / name
                subprocess.run(["cp", "-a", str(trees(name)), str(root)], check=True)
            running = Running(root, tmp_path / f"{name}.log", command, environment)
            stack.callback(running.kill)
            return running

        yield begin


def test_a_second_build_does_nothing():
    subprocess.run(["images/build", "busybox"], cwd=CHECKOUT, check=True, capture_output=True)
    done = subprocess.run(
        ["images/build", "busybox"], cwd=CHECKOUT, check=True, capture_output=True, text=True
    )
    assert done.stderr == ""
    assert Path(done.stdout.strip(), "index.json").is_file()


def test_another_cache_directory_gets_the_same_digest(tmp_path):
    index = []
    for name in ("one", "two"):
        done = subprocess.run(
            ["images/build", "busybox"],
            cwd=CHECKOUT,
            env=os.environ | {"PYRUN_IMAGE_CACHE": str(tmp_path / name)},
            check=True,
            capture_output=True,
            text=True,
        )
        index.append(Path(done.stdout.strip(), "index.json").read_text())
    assert index[0] == index[1]


def test_nginx_answers_logs_to_its_output_and_quits_on_sigquit(start):
    nginx = start("nginx", "/docker-entrypoint.sh", "nginx", "-g", "daemon off;")
    nginx.wait_until(lambda: nginx.curl("http://127.0.0.1/").endswith("200"))
    assert "Welcome to nginx!" in nginx.curl("http://127.0.0.1/")
    assert nginx.curl("http://127.0.0.1/missing").endswith("404")
    if Path("/proc/net/if_inet6").exists():
        assert nginx.curl("http://[::1]/").endswith("200")
    assert nginx.stop(signal.SIGQUIT) == 0
    log = nginx.log.read_text()
    assert '"GET / HTTP/1.1" 200' in log
    assert '/usr/share/nginx/html/missing" failed (2: No such file' in log


def test_nginx_takes_pages_and_settings_from_the_official_places(start, trees, tmp_path):
    root = tmp_path / "mine"
    subprocess.run(["cp", "-a", str(trees("nginx")), str(root)], check=True)
    (root / "etc/nginx/conf.d/default.conf").unlink()
    (root / "etc/nginx/conf.d/mine.conf").write_text("server { listen 8081; root html; }\n")
    (root / "etc/nginx/html").mkdir()
    (root / "etc/nginx/html/index.html").write_text("mine")
    nginx = start("nginx", "/docker-entrypoint.sh", "nginx", "-g", "daemon off;", root=root)
    nginx.wait_until(lambda: nginx.curl("http://127.0.0.1:8081/") == "mine\n200")


def test_minio_stores_objects_for_those_who_know_the_secret(start, tmp_path):
    (tmp_path / "object").write_text("hello")
    arguments = ("server", "--console-address", ":9001", "/storage")
    minio = start(
        "minio",
        "/usr/bin/docker-entrypoint.sh",
        *arguments,
        MINIO_ACCESS_KEY="minio",
        MINIO_SECRET_KEY="minio123",
    )
    base = "http://127.0.0.1:9000"
    minio.wait_until(lambda: minio.curl(f"{base}/minio/health/live").endswith("200"))
    signed = ("--aws-sigv4", "aws:amz:us-east-1:s3", "-u", "minio:minio123")
    assert minio.curl(*signed, "-X", "PUT", f"{base}/bucket").endswith("200")
    path = f"{base}/bucket/a/b"
    assert minio.curl(*signed, "-T", str(tmp_path / "object"), path).endswith("200")
    assert minio.curl(*signed, path) == "hello\n200"
    assert minio.curl(*signed[:3], "minio:wrong-secret", path).endswith("403")
    assert minio.curl(path).endswith("403")
    assert list((minio.root / "storage/objects").iterdir())
    minio.stop()

    # Other names for the same variables, and what was stored is still there.
    again = start(
        "minio",
        *("minio", "server", "/storage"),
        root=minio.root,
        MINIO_ROOT_USER="minio",
        MINIO_ROOT_PASSWORD="minio123",
    )
    again.wait_until(lambda: again.curl(*signed, path) == "hello\n200")


def mysql_query(server, query, *arguments):
    client = ("mysql", "-h", "127.0.0.1", "-N", "-B", "-e", query)
    return server.run_inside(*client, *arguments)


def wait_for_mysql(server, *login):
    server.wait_until(lambda: mysql_query(server, "SELECT 1", *login).returncode == 0)


@pytest.fixture
def mysql(start):
    def begin(root=None, **environment):
        return start("mysql", "docker-entrypoint.sh", "mysqld", root=root, **environment)

    return begin


@pytest.mark.slow
def test_mysql_has_the_accounts_that_its_variables_say(mysql):
    server = mysql(
        MYSQL_ROOT_PASSWORD="root", MYSQL_DATABASE="app", MYSQL_USER="me", MYSQL_PASSWORD="a'b\\c"
    )
    wait_for_mysql(server, "-uroot", "-proot")
    wrong = mysql_query(server, "SELECT 1", "-uroot", "-pwrong")
    assert wrong.returncode == 1
    assert "Access denied" in wrong.stderr
    assert mysql_query(server, "SELECT 1", "-uroot").returncode == 1
    mine = mysql_query(server, "CREATE TABLE t (a INT); SHOW TABLES", "-ume", "-pa'b\\c", "app")
    assert mine.stdout == "t\n"
    users = mysql_query(server, "SELECT user, host FROM mysql.user", "-uroot", "-proot").stdout
    assert sorted(users.splitlines()) == [
        "mariadb.sys\tlocalhost",
        "me\t%",
        "root\t%",
        "root\tlocalhost",
    ]
    environment = Path(f"/proc/{server.init()}/environ").read_bytes()
    assert b"PASSWORD" not in environment
    assert server.stop() == 0

    # The database is there now: the variables make no second one.
    again = mysql(root=server.root, MYSQL_ROOT_PASSWORD="other")
    wait_for_mysql(again, "-uroot", "-proot")


@pytest.mark.slow
def test_mysql_without_any_password_option_says_which_there_are(mysql):
    server = mysql()
    assert server.process.wait(30) == 1
    assert "set one of MYSQL_ROOT_PASSWORD" in server.log.read_text()
    assert list((server.root / "var/lib/mysql").iterdir()) == []


@pytest.mark.slow
def test_mysql_makes_a_password_and_runs_the_files_of_initdb(mysql, trees, tmp_path):
    root = tmp_path / "mine"
    subprocess.run(["cp", "-a", str(trees("mysql")), str(root)], check=True)
    folder = root / "docker-entrypoint-initdb.d"
    (folder / "1.sql").write_text("CREATE TABLE t (a INT); INSERT INTO t VALUES (42);")
    (folder / "2.sh").write_text("echo in $MYSQL_DATABASE\n")
    server = mysql(root=root, MYSQL_RANDOM_ROOT_PASSWORD="yes", MYSQL_DATABASE="odd-name")
    server.wait_until(lambda: b"port: 3306" in server.log.read_bytes())
    log = server.log.read_text(errors="replace")
    assert "in odd-name\n" in log
    password = log.split("GENERATED ROOT PASSWORD: ")[1].split()[0]
    said = mysql_query(server, "SELECT a FROM t", "-uroot", f"-p{password}", "odd-name")
    assert said.stdout == "42\n"


@pytest.mark.slow
def test_mysql_whose_first_start_was_cut_off_begins_again(mysql):
    server = mysql(MYSQL_ROOT_PASSWORD="root")
    data = server.root / "var/lib/mysql"
    server.wait_until(lambda: (data / "ibdata1").exists())
    assert (data / ".half-made").exists()
    server.kill()
    again = mysql(root=server.root, MYSQL_ROOT_PASSWORD="root")
    wait_for_mysql(again, "-uroot", "-proot")
    assert not (data / ".half-made").exists()
