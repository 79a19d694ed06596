"""The Vagrantfile is valid Ruby and valid for Vagrant. Booting a box is not possible in CI."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "vagrant"


def run(*command, **environment):
    return subprocess.run(
        command,
        cwd=FOLDER,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_vagrantfile_is_ruby():
    done = run("ruby", "-c", "Vagrantfile")
    assert done.returncode == 0, done.stderr


def test_the_provisioning_script_is_bash():
    done = run("bash", "-n", "provision.sh")
    assert done.returncode == 0, done.stderr


# Where the distribution has no package of Vagrant these tests do not exist.
if shutil.which("vagrant"):

    @pytest.mark.parametrize(
        ("box", "nodes"), [("debian/bookworm64", "1"), ("bento/ubuntu-24.04", "2")]
    )
    def test_vagrant_accepts_it(tmp_path, box, nodes):
        done = run(
            *("vagrant", "validate", "-p"),
            PYRUN_BOX=box,
            PYRUN_NODES=nodes,
            VAGRANT_HOME=str(tmp_path / "home"),
            VAGRANT_DOTFILE_PATH=str(tmp_path / "dot"),
            VAGRANT_CHECKPOINT_DISABLE="1",
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def test_a_number_of_nodes_that_makes_no_sense_is_refused(tmp_path):
        done = run(
            *("vagrant", "validate", "-p"),
            PYRUN_NODES="7",
            VAGRANT_HOME=str(tmp_path / "home"),
            VAGRANT_DOTFILE_PATH=str(tmp_path / "dot"),
            VAGRANT_CHECKPOINT_DISABLE="1",
        )
        assert done.returncode != 0
        assert "PYRUN_NODES is 1 or 2, not 7" in done.stdout + done.stderr
