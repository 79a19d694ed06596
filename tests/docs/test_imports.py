"""The hot paths load nothing heavy: each lean module is imported alone in a bare interpreter.

`import typing` alone costs as much as half a container start, and one careless line at the top
of one module brings it back for every verb. `-I -S` is how the launcher and the supervisor run:
without `site`, with the libraries' directory put on the path by hand (python-prctl costs 1 ms).
"""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

RUNTIME = Path(__file__).parents[2] / "runtime"

LEAN = (
    "errors.py",
    "kernel/**/*.py",
    "store/**/*.py",
    "explain/steps.py",
    "cgroup/**/*.py",
    "oci/**/*.py",
    "container/supervisor.py",
)

HEAVY = frozenset(
    "argparse click dataclasses enum json logging pathlib pyroute2 re socket subprocess typing "
    "yaml".split()
)

TRACE = """
import builtins, sys
heavy, path, module = sys.argv[1].split(), sys.argv[2], sys.argv[3]
sys.path[:0] = path.split(":")
real, trail = builtins.__import__, []

def tracing(name, globals=None, *rest, **more):
    trail.append((globals or {}).get("__name__", "?"))
    if name in heavy and name not in sys.modules:
        print(name, "imported by", ", imported by ".join(reversed(trail[1:])))
    try:
        return real(name, globals, *rest, **more)
    finally:
        trail.pop()

builtins.__import__ = tracing
__import__(module)
loaded = set(heavy) & set(sys.modules)
"""


def modules(*patterns: str) -> list[str]:
    """Dotted names of the modules that match, those of later issues included as they come."""
    paths = {path for pattern in patterns for path in (RUNTIME / "pyrun").glob(pattern)}
    names = [path.relative_to(RUNTIME).with_suffix("").parts for path in paths]
    return sorted(".".join(name) for name in names if name[-1] != "__init__")


def heavy_imports(module: str, heavy: frozenset[str] = HEAVY) -> list[str]:
    """`enum imported by signal, imported by pyrun.x`, for every heavy module `module` loads."""
    code = TRACE + "for name in sorted(loaded): print(name, 'is loaded')\n"
    # -B: this must not write byte code beside the sources.
    path = f"{RUNTIME}:{sysconfig.get_path('platlib')}"
    words = [sys.executable, "-I", "-S", "-B", "-c", code, " ".join(heavy), path, module]
    result = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.mark.parametrize("module", modules(*LEAN))
def test_lean_modules_load_nothing_heavy(module: str) -> None:
    assert not heavy_imports(module)


def test_reading_the_pod_room_does_not_load_yaml() -> None:
    assert not heavy_imports("pyrun.pod.kubeyaml", frozenset(("yaml", "difflib", "dataclasses")))


def test_the_check_names_the_importer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "careless.py").write_text("import signal\n")
    monkeypatch.setitem(globals(), "RUNTIME", tmp_path)
    assert heavy_imports("careless") == [
        "enum imported by signal, imported by careless",
        "enum is loaded",
    ]
