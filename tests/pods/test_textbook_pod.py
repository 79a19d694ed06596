"""The pod learners meet first, from tests/data, with real servers from images/: nginx, MariaDB and
an S3 server behind one address. What is claimed of it is asked over the network and in /proc."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from pod_lab import SLEEPER, addresses, make, member_pid

from support import Node, namespace, wait_until

CHECKOUT = Path(__file__).resolve().parents[2]
POD = "multi-container-pod"
SIGNED = ("--aws-sigv4", "aws:amz:us-east-1:s3", "-u", "minio:minio123")
TEXT = (CHECKOUT / "tests/data/multi-container-pod.yaml").read_text()
Images = Callable[..., None]
START = 120.0
"""Seconds that a server may take to start on a busy machine."""


@pytest.fixture
def images(node: Node) -> Images:
    """Builds images (cached between test runs) and loads them into the node's store."""

    def load(*names: str) -> None:
        for name in names:
            layout = subprocess.run(
                ["images/build", name], cwd=CHECKOUT, check=True, stdout=subprocess.PIPE, text=True
            ).stdout.strip()
            node("image", "load", "-i", layout)

    return load


def curl(*arguments: str | Path) -> tuple[str, int]:
    """(what was answered, status); (…, 0) where nobody answers."""
    done = subprocess.run(
        ["curl", "-s", "-m", "20", "-w", "\n%{http_code}", *map(str, arguments)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    text, _, status = done.stdout.rpartition("\n")
    return text, int(status)


def hosted(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def page_appears_only_when_written(pyrun: Node, member: str) -> None:
    for address in addresses(pyrun, POD):
        url = f"http://{hosted(address)}/"
        wait_until(lambda url=url: curl(url)[1] == 404, "nginx answers, with no page", START)
    html = Path(f"/proc/{member_pid(pyrun, POD, member)}/root/usr/share/nginx")
    assert os.listdir(html) == [], "the emptyDir hides what the image has there"
    write = "cd /usr/share/nginx && mkdir html && echo hello > html/index.html"
    pyrun("exec", f"{POD}-{member}", "sh", "-c", write)
    for address in addresses(pyrun, POD):
        assert curl(f"http://{hosted(address)}/") == ("hello\n", 200)


def objects_are_stored(pyrun: Node, member: str, tmp_path: Path) -> None:
    base = f"http://{addresses(pyrun, POD)[0]}:9000"
    wait_until(lambda: curl(f"{base}/minio/health/live")[1] == 200, "the S3 server answers", START)
    note = tmp_path / "note"
    note.write_text("an object")
    assert curl(*SIGNED, "-X", "PUT", f"{base}/bucket")[1] == 200
    assert curl(*SIGNED, "-T", note, f"{base}/bucket/note")[1] == 200
    assert curl(*SIGNED, f"{base}/bucket/note") == ("an object", 200)
    assert curl(*SIGNED[:3], "minio:wrong-password", f"{base}/bucket/note")[1] == 403
    storage = Path(f"/proc/{member_pid(pyrun, POD, member)}/root/storage")
    assert list((storage / "objects").iterdir())
    volume = Path(pyrun.paths.sandbox(POD)) / "volumes/storage"
    assert os.path.samestat(os.stat(storage), os.stat(volume)), "it is the pod's emptyDir"


def reach_s3_from(pyrun: Node, member: str) -> None:
    url = "http://127.0.0.1:9000/minio/health/live"
    pyrun("exec", f"{POD}-{member}", "wget", "-q", "-O", "/dev/null", url)


def all_see_one_address(pyrun: Node, members: tuple[str, ...]) -> None:
    pids = [member_pid(pyrun, POD, member) for member in members]
    assert len({namespace(pid, "net") for pid in pids}) == 1
    for member in members:
        seen = pyrun.out("exec", f"{POD}-{member}", "ip", "address", "show", "eth0")
        for address in addresses(pyrun, POD):
            assert f" {address}/" in seen


def environment(pid: int) -> dict[str, str]:
    words = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(word.split("=", 1) for word in words if "=" in word)


def test_nginx_s3_and_busybox(pyrun: Node, images: Images, tmp_path: Path) -> None:
    """The textbook pod with a sleeping busybox in the place of its database."""
    images("nginx", "minio")
    text = TEXT.replace("image: mysql", 'image: busybox\n      args: [sleep, "1000"]')
    (tmp_path / "pod.yaml").write_text(text)
    assert pyrun.out("pod", "create", "-f", tmp_path / "pod.yaml") == POD
    all_see_one_address(pyrun, ("container1", "container2", "container3"))
    page_appears_only_when_written(pyrun, "container1")
    objects_are_stored(pyrun, "container3", tmp_path)
    for member in ("container1", "container2"):
        reach_s3_from(pyrun, member)
    variables = environment(member_pid(pyrun, POD, "container3"))
    assert (variables["TZ"], variables["LANG"]) == ("Asia/Seoul", "ko_KR.utf8")
    [facts] = json.loads(pyrun.out("pod", "inspect", POD))
    assert facts["namespace"] == "multi-container"
    assert facts["labels"] == {"app": POD}
    # Another pod reaches it by its address.
    make(pyrun, "guest", SLEEPER)
    four = addresses(pyrun, POD)[0]
    assert pyrun.out("exec", "guest-busybox", "wget", "-q", "-O-", f"http://{four}/") == "hello"
    # nginx tells who asked: the guest's own address.
    guest = addresses(pyrun, "guest")[0]
    wait_until(lambda: guest in pyrun.out("logs", f"{POD}-container1"), "the access log")
    # Pages and objects are the pod's, not its processes'.
    pyrun("pod", "restart", "-t", "5", POD)
    four = addresses(pyrun, POD)[0]
    wait_until(lambda: curl(f"http://{four}/") == ("hello\n", 200), "the page is back", START)
    url = f"http://{four}:9000/bucket/note"
    wait_until(lambda: curl(*SIGNED, url) == ("an object", 200), "the object is back", START)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_textbook_pod(pyrun: Node, images: Images, tmp_path: Path) -> None:
    images("nginx", "mysql", "minio")
    out = pyrun.out("pod", "create", "-f", CHECKOUT / "tests/data/multi-container-pod.yaml")
    assert out == POD
    all_see_one_address(pyrun, ("container1", "container2", "container3"))
    page_appears_only_when_written(pyrun, "container1")
    objects_are_stored(pyrun, "container3", tmp_path)
    reach_s3_from(pyrun, "container1")

    def query(password: str) -> subprocess.CompletedProcess[str]:
        return pyrun(
            "exec", f"{POD}-container2", "mysql", "-uroot", f"-p{password}", "-h127.0.0.1",
            "-N", "-e", "select 6 * 7", check=False,
        )  # fmt: skip

    wait_until(lambda: query("root").returncode == 0, "mysql lets root in", START)
    assert query("root").stdout == "42\n"
    wrong = query("wrong")
    assert wrong.returncode == 1
    assert "Access denied" in wrong.stderr
    pyrun("pod", "stop", POD)
    [facts] = json.loads(pyrun.out("pod", "inspect", POD))
    codes = {member["name"]: member["exit_code"] for member in facts["containers"]}
    assert codes[f"{POD}-container1"] == codes[f"{POD}-container2"] == 0, (
        "they end in an orderly way"
    )
