"""A run that failed before its first checkpoint does not block the same command given again."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import lorica
from lorica.errors import ConfigError, ResourceError, TrainingError
from lorica.training.run import Run
from tests.training.rows import settings

BASE = Path("bundled")


@pytest.mark.slow
def test_the_same_command_trains_after_a_run_that_failed_at_once(tmp_path):
    with pytest.raises(TrainingError):
        lorica.train(**settings(BASE, tmp_path, learning_rate=1e38, max_steps=3), show=False)
    assert (tmp_path / "run").is_dir()
    again = lorica.train(**settings(BASE, tmp_path, max_steps=1), show=False)
    assert any("held a run without a checkpoint" in line for line in again.notices)


def test_a_killed_start_gives_way(tmp_path):
    config = settings(BASE, tmp_path, max_steps=1)
    run = Run(tmp_path / "run")
    code = (
        "import sys, json, os, signal\n"
        "from lorica.training.run import Run\n"
        "from pathlib import Path\n"
        "run = Run(Path(sys.argv[1])); run.create('seed: 1'); run.log('start')\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(run.folder)], env=os.environ)
    assert killed.returncode == -signal.SIGKILL
    assert lorica.train(**config, show=False).figures["steps"] == 1


@pytest.mark.parametrize("what", ["checkpoint", "adapter", "a file of the user's"])
def test_a_run_with_something_to_lose_stays(tmp_path, what):
    run = Run(tmp_path / "run")
    run.create("seed: 1")
    name = {"checkpoint": "checkpoints/step-00000001", "adapter": "adapter"}.get(what, "notes.txt")
    (run.folder / name).mkdir()
    with pytest.raises(ConfigError, match="is not overwritten"):
        Run(run.folder).create("seed: 2")
    assert (run.folder / name).is_dir()


def test_a_run_that_is_training_stays(tmp_path):
    run = Run(tmp_path / "run")
    run.create("seed: 1")
    code = (
        "import sys\nfrom pathlib import Path\nfrom lorica.training.run import Run\n"
        "run = Run(Path(sys.argv[1]))\n"
        "with run.lock():\n    print('locked', flush=True)\n    sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(run.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout and other.stdout.readline() == b"locked\n"
    try:
        with pytest.raises(ResourceError, match="another process"):
            Run(run.folder).create("seed: 2")
    finally:
        other.communicate()
    assert run.is_run
