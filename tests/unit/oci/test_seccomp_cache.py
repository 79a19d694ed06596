"""The cache of compiled filters: found again, and never trusted when it is not what was written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyrun.errors import BadInput
from pyrun.oci import seccomp, seccomp_compile

PROFILE = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "syscalls": [{"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"}],
}


def forbid_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(profile: object) -> bytes:
        raise AssertionError("compiled again")

    monkeypatch.setattr(seccomp_compile, "compile_profile", refuse)


def test_second_use_of_a_profile_compiles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = seccomp.compiled(PROFILE, f"{tmp_path}/cache")
    forbid_compiling(monkeypatch)
    assert seccomp.compiled(dict(PROFILE), f"{tmp_path}/cache") == path
    assert seccomp.load(path) and len(seccomp.load(path)) % 8 == 0


def test_only_root_can_write_the_cache(tmp_path: Path) -> None:
    path = seccomp.compiled(PROFILE, f"{tmp_path}/cache")
    assert os.stat(path).st_mode & 0o7777 == 0o600
    assert os.stat(f"{tmp_path}/cache").st_mode & 0o7777 == 0o700
    assert os.listdir(f"{tmp_path}/cache") == [os.path.basename(path)]


def test_every_change_of_the_profile_is_another_file(tmp_path: Path) -> None:
    profiles = [
        PROFILE,
        {**PROFILE, "defaultErrnoRet": 38},
        {**PROFILE, "flags": []},
        {**PROFILE, "architectures": ["SCMP_ARCH_X86"]},
        {**PROFILE, "syscalls": []},
    ]
    assert len({seccomp.compiled(profile, str(tmp_path)) for profile in profiles}) == len(profiles)


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "extend", "swap", "directory"])
def test_damaged_file_is_noticed_and_made_again(tmp_path: Path, damage: str) -> None:
    path = seccomp.compiled(PROFILE, str(tmp_path))
    program = seccomp.load(path)
    data = bytearray(Path(path).read_bytes())
    if damage == "flip":
        data[-3] ^= 1
    elif damage == "truncate":
        del data[-8:]
    elif damage == "empty":
        data.clear()
    elif damage == "extend":
        data += bytes(8)
    elif damage == "swap":  # a valid file, but another profile's
        other = {"defaultAction": "SCMP_ACT_ALLOW"}
        data = bytearray(Path(seccomp.compiled(other, str(tmp_path))).read_bytes())
    Path(path).write_bytes(data)
    if damage == "directory":
        os.unlink(path)
        os.mkdir(path)
        with pytest.raises(OSError):
            seccomp.compiled(PROFILE, str(tmp_path))
        return
    with pytest.raises(BadInput, match="checksum"):
        seccomp.load(path)
    assert seccomp.compiled(PROFILE, str(tmp_path)) == path
    assert seccomp.load(path) == program


def test_file_that_others_can_write_is_not_used(tmp_path: Path) -> None:
    path = seccomp.compiled(PROFILE, str(tmp_path))
    os.chmod(path, 0o666)
    with pytest.raises(BadInput, match="others can write"):
        seccomp.load(path)
    seccomp.compiled(PROFILE, str(tmp_path))
    assert os.stat(path).st_mode & 0o7777 == 0o600


def test_link_in_the_place_of_a_file_is_replaced_not_followed(tmp_path: Path) -> None:
    path = seccomp.compiled(PROFILE, f"{tmp_path}/cache")
    target = tmp_path / "target"
    os.rename(path, target)
    os.symlink(target, path)
    assert seccomp.compiled(PROFILE, f"{tmp_path}/cache") == path
    assert not os.path.islink(path)


def test_flags_travel_with_the_program(tmp_path: Path) -> None:
    log = {**PROFILE, "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"]}
    assert seccomp.load_flags(seccomp.compiled(log, str(tmp_path))) == 2
    assert seccomp.load_flags(seccomp.compiled({**PROFILE, "flags": []}, str(tmp_path))) == 0
    # Without the key: SECCOMP_FILTER_FLAG_SPEC_ALLOW.
    assert seccomp.load_flags(seccomp.compiled(PROFILE, str(tmp_path))) == 4


def test_wrong_profile_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    with pytest.raises(BadInput):
        seccomp.compiled({"defaultAction": "SCMP_ACT_PERHAPS"}, f"{tmp_path}/cache")
    assert not os.path.exists(f"{tmp_path}/cache")


def test_containers_that_start_together_compile_side_by_side(tmp_path: Path) -> None:
    code = (
        "from pyrun.oci import seccomp\n"
        f"print(seccomp.load(seccomp.compiled({PROFILE!r}, {str(tmp_path)!r})).hex())\n"
    )
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.environ["PATH"]}
    together = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
        for _ in range(8)
    ]
    answers = {process.communicate()[0] for process in together}
    assert len(answers) == 1 and answers != {b""}
    assert len(os.listdir(tmp_path)) == 1


def test_hit_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pyrun.oci import seccomp, seccomp_default\n"
        f"path = seccomp.compiled(seccomp_default.default_profile([]), {str(tmp_path)!r})\n"
        "seccomp.load(path)\n"
        "print(*sorted(sys.modules))\n"
    )
    loaded = ""
    for _ in range(2):
        loaded = subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            text=True,
            env={"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.environ["PATH"]},
        ).stdout
    modules = set(loaded.split())
    heavy = {"pyseccomp", "ctypes", "hashlib", "json", "typing", "pyrun.oci.seccomp_compile"}
    # What site brings in before our first line (editable installs) is not ours to answer for.
    before = set(
        subprocess.run(
            [sys.executable, "-c", "import sys; print(*sys.modules)"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()
    )
    assert not (modules - before) & heavy
