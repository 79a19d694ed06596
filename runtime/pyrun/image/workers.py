"""Layers in parallel: one forked process each, as many at a time as there are processors.

Python runs one thread at a time, and making thousands of files is mostly Python, so processes it
is; inside each, threads read, decompress and hash (`stream.py`). A worker ends with os._exit and
says on a pipe what came of it: lines of JSON, progress first, the result last. It dies with its
parent, and keeps the work directory's lock as long as it lives.
"""

from __future__ import annotations

import os
import select
import signal

from pyrun.errors import BadInput, PyrunError, Unsupported
from pyrun.image import tar, unpack
from pyrun.image.archive import Place, SpaceGuard
from pyrun.image.stream import Flow, Source
from pyrun.kernel import const
from pyrun.kernel.libc import prctl
from pyrun.store import fastjson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyrun.image.store import Progress

PASSED_ON: dict[str, type[PyrunError]] = {"BadInput": BadInput, "Unsupported": Unsupported}


class Job:
    """One layer to verify and, where `rootfs` is set, to unpack into that new directory.

    digest, diff_id  what they must be; empty where nobody has said so yet
    blob             where the layer is copied to as it came
    label            what messages call it
    """

    __slots__ = ("blob", "diff_id", "digest", "label", "place", "rootfs", "strict")

    def __init__(
        self,
        place: Place,
        *,
        digest: str,
        diff_id: str,
        blob: str,
        rootfs: str,
        label: str,
        strict: bool = False,
    ) -> None:
        self.place = place
        self.digest = digest
        self.diff_id = diff_id
        self.blob = blob
        self.rootfs = rootfs
        self.label = label
        self.strict = strict


class Result:
    """What is true of a layer: its digests, its sizes, and the facts `settle.py` asks for."""

    __slots__ = ("diff_id", "digest", "facts", "gzip", "size", "zstd")

    def __init__(self, said: dict[str, Any]) -> None:
        self.digest: str = said["digest"]
        self.diff_id: str = said["diff_id"]
        self.size: int = said["size"]
        self.facts: dict[str, Any] = said["facts"]
        self.gzip: bool = said["gzip"]
        self.zstd: bool = said["zstd"]


def run(jobs: list[Job], progress: Progress | None = None) -> list[Result]:
    """Do all jobs and return their results in order. The first failure stops the others.

    Raises what the worker raised, if it was BadInput or Unsupported; PyrunError otherwise.
    """
    results: dict[int, Result] = {}
    running: dict[int, tuple[int, int, bytearray]] = {}  # pipe: job number, pid, text so far
    waiting = list(range(len(jobs)))[::-1]
    try:
        while waiting or running:
            while waiting and len(running) < len(os.sched_getaffinity(0)):
                number = waiting.pop()
                pipe, pid = _start(jobs[number])
                running[pipe] = (number, pid, bytearray())
            for pipe in select.select(list(running), [], [])[0]:
                number, pid, text = running[pipe]
                data = os.read(pipe, 65536)
                text += data
                if data:
                    _show(jobs[number], text, progress)
                    continue
                os.close(pipe)
                del running[pipe]
                _, status = os.waitpid(pid, 0)
                results[number] = _result(jobs[number], bytes(text), status)
                if progress:
                    size = jobs[number].place.size
                    progress(jobs[number].label, size, size)
    finally:
        for pipe, (_, pid, _) in running.items():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(pipe)
    return [results[number] for number in range(len(jobs))]


def _start(job: Job) -> tuple[int, int]:
    """Fork a worker. Returns the reading end of its pipe and its pid."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    parent = os.getpid()
    pid = os.fork()
    if pid:
        os.close(writing)
        return reading, pid
    try:
        prctl(const.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.umask(0)
        said = _work(job, writing)
    except PyrunError as error:
        said = {"error": error.message, "hint": error.hint, "kind": type(error).__name__}
    except BaseException as error:
        said = {"error": f"{type(error).__name__}: {error}", "hint": "", "kind": ""}
    text = memoryview(fastjson.dumps(said).encode())
    while text:
        text = text[os.write(writing, text) :]
    os._exit(0)


def _work(job: Job, pipe: int) -> dict[str, Any]:
    import hashlib

    place = job.place
    blob = os.open(job.blob, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    hash_ = hashlib.new(job.digest.partition(":")[0] or "sha256")
    source = Source(place.fd, place.offset, place.size, copy=blob, hash_=hash_)
    kind = source.peek()
    flow = Flow(source, job.diff_id.partition(":")[0] or "sha256")
    guard = SpaceGuard(os.path.dirname(job.blob))

    def next_chunk() -> bytes:
        chunk = flow.next_chunk()
        if guard.spend(len(chunk)):
            os.write(pipe, b"%d\n" % source.done)
        return chunk

    facts = unpack.Facts()
    try:
        if job.rootfs:
            os.mkdir(job.rootfs, 0o755)
            root = os.open(job.rootfs, os.O_DIRECTORY | os.O_RDONLY | os.O_CLOEXEC)
            reader = tar.Reader(next_chunk)
            facts = unpack.unpack(reader, root)
            if job.strict and not reader.ended:
                raise BadInput("the archive has no end mark: truncated")
        while next_chunk():
            pass
        diff_id = flow.finish()
    except BadInput as error:
        # A damaged blob fails somewhere in the middle; that its digest is wrong says more.
        if job.digest and _digest_of(job) != job.digest:
            raise BadInput(f"its digest is not {job.digest}: damaged or changed") from None
        raise error
    digest = f"{hash_.name}:{hash_.hexdigest()}"
    if job.digest and digest != job.digest:
        raise BadInput(f"its digest is {digest}, not {job.digest}")
    if job.diff_id and diff_id != job.diff_id:
        raise BadInput(f"its content has the digest {diff_id}; the config says {job.diff_id}")
    return {
        "digest": digest,
        "diff_id": diff_id,
        "size": source.done,
        "facts": facts.as_json(),
        "gzip": kind.startswith(b"\x1f\x8b"),
        "zstd": flow.size != source.done and not kind.startswith(b"\x1f\x8b"),
    }


def _digest_of(job: Job) -> str:
    import hashlib

    hash_ = hashlib.new(job.digest.partition(":")[0])
    source = Source(job.place.fd, job.place.offset, job.place.size, hash_=hash_)
    try:
        while source.read():
            pass
    except BadInput:
        return ""
    return f"{hash_.name}:{hash_.hexdigest()}"


def _show(job: Job, text: bytearray, progress: Progress | None) -> None:
    """Take the progress lines off `text`; they are digits alone."""
    while text[:1].isdigit() and b"\n" in text:
        line, _, rest = bytes(text).partition(b"\n")
        text[:] = rest
        if progress and int(line) < job.place.size:  # all read is not yet all written
            progress(job.label, int(line), job.place.size)


def _result(job: Job, text: bytes, status: int) -> Result:
    if not text:
        code = os.waitstatus_to_exitcode(status)
        raise PyrunError(
            f"{job.label}: the process that unpacked it died with status {code}",
            hint="a negative status is a signal; -9 without reason is often the OOM killer",
        )
    said = fastjson.loads(text.decode())
    if "error" in said:
        kind = PASSED_ON.get(said["kind"], PyrunError)
        raise kind(f"{job.label}: {said['error']}", hint=said["hint"])
    return Result(said)
