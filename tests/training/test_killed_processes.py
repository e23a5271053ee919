"""A process of a run that fails ends all of them, with its reason; torchrun's restart goes on."""

import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests import small_base as small
from tests.marks import at_length, slow_but
from tests.training.launch import environment, torchrun
from tests.training.rows import adapter, same, write_rows

SCRIPT = str(Path(__file__).with_name("fault_script.py"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A base, and rows; those of process 1 are others, and so is its base."""
    root = tmp_path_factory.mktemp("processes")
    small.write(root / "base0")
    shutil.copytree(root / "base0", root / "base1")
    config = root / "base1/config.json"
    config.write_text(config.read_text().replace('"rope_theta": 10000.0', '"rope_theta": 5000.0'))
    assert config.read_text() != (root / "base0/config.json").read_text()
    write_rows(root / "rows0.jsonl", 40)
    write_rows(root / "rows1.jsonl", 41)
    write_rows(root / "only0.jsonl", 40)
    return root


def words(folder: Path, output: Path, *more: str) -> list[str]:
    plain = ["train", "--base", f"{folder}/base0", "--data.path", f"{folder}/rows0.jsonl"]
    plain += ["--data.validation", "0.1", "--method.r", "4", "--method.dropout", "0.1"]
    plain += ["--learning_rate", "5e-3", "--max_steps", "6", "--micro_batch_size", "4"]
    return [*plain, "--save_steps", "2", "--eval_steps", "2", "--output", str(output), *more]


ALL_MOMENTS = [
    ("killed before the first checkpoint", 1, []),
    ("killed in a step", 1, ["--shard", "true"]),
    ("killed in an evaluation", 0, []),
    ("killed in a checkpoint", 0, ["--shard", "true"]),
    ("killed at the end", 0, []),
]
MOMENTS = at_length(ALL_MOMENTS, [ALL_MOMENTS[i] for i in (0, 1, 3)])


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """The adapters of runs that were never stopped, by their flags."""
    adapters = {}

    def train(*flags: str):
        if flags not in adapters:
            output = tmp_path_factory.mktemp("whole") / "run"
            done = torchrun(SCRIPT, "none", "0", *words(folder, output, *flags))
            assert done.returncode == 0, done.stderr[-3000:]
            adapters[flags] = adapter(output)
        return adapters[flags]

    return train


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "rank", "flags"), MOMENTS, ids=[m[0] for m in MOMENTS])
def test_a_restart_goes_on_to_the_same_bits(folder, tmp_path, whole, fault, rank, flags):
    command = [SCRIPT, fault, str(rank), *words(folder, tmp_path / "run", *flags)]
    done = torchrun(*command, flags=["--max-restarts=1"])
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Signal 9" in done.stderr or "exitcode: -9" in done.stderr, done.stderr[-3000:]
    assert same(adapter(tmp_path / "run"), whole(*flags))
    events = (tmp_path / "run/events.jsonl").read_text()
    assert ('"event": "resume"' in events) == (fault != "killed before the first checkpoint")


BROKEN = {
    "other rows": ("none", 0, ["--data.path", "{folder}/rows{rank}.jsonl"], 2, "rows"),
    "other base": ("none", 0, ["--base", "{folder}/base{rank}"], 2, "base"),
    "other setting": ("none", 0, ["--seed", "{rank}"], 2, "seed"),
    "other version": ("other version", 1, [], 2, "0.0.1 in process 1"),
    "no rows in one": ("none", 0, ["--data.path", "{folder}/only{rank}.jsonl"], 3, "only1.jsonl"),
    "disk full": ("disk full", 0, [], 4, "No space left"),
    "bug": ("bug", 1, [], 70, "planted"),
}


@pytest.mark.parametrize(("name"), slow_but(["other rows"], BROKEN))
def test_what_is_wrong_in_one_process_ends_all_and_is_said_once(folder, tmp_path, name):
    fault, rank, flags, status, reason = BROKEN[name]
    flags = [flag.replace("{folder}", str(folder)) for flag in flags]
    command = [SCRIPT, fault, str(rank), *words(folder, tmp_path / "run", *flags)]
    done = torchrun(*command, timeout=240)
    assert done.returncode == 1  # torchrun's
    assert re.search(rf"exitcode\s*: {status}\b", done.stderr), done.stderr[-3000:]
    errors = re.findall(r"^process \d of 2:\n(?:.*Error: |this is a bug).*", done.stderr, re.M)
    assert len(errors) == 1, done.stderr[-3000:]
    assert reason in done.stderr.partition(errors[0])[1] + done.stderr.partition(errors[0])[2]
    assert not (tmp_path / "run/adapter").exists()


@pytest.mark.slow
def test_a_run_of_another_launch_is_not_continued_by_a_restart(folder, tmp_path):
    output = tmp_path / "run"
    assert torchrun(SCRIPT, "none", "0", *words(folder, output)).returncode == 0
    before = adapter(output)
    command = [SCRIPT, "none", "0", *words(folder, output)]
    done = torchrun(*command, flags=["--max-restarts=1"])
    assert done.returncode == 1
    assert "is not overwritten" in done.stderr
    assert same(adapter(output), before)


@pytest.mark.slow
def test_a_port_in_use_is_named(folder, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        own = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_PORT": str(port)}
        done = subprocess.run(
            [sys.executable, "-m", "lorica", *words(folder, tmp_path / "run")],
            env=environment(MASTER_ADDR="127.0.0.1", **own),
            capture_output=True,
            text=True,
            timeout=200,
        )
    assert done.returncode == 4, done.stderr[-2000:]
    assert f"port {port} is in use" in done.stderr


@pytest.mark.slow
def test_a_killed_process_ends_the_others(folder, tmp_path):
    """torchrun names it; the others say that it has ended, unless torchrun stops them first."""
    command = [SCRIPT, "killed in a step", "1", *words(folder, tmp_path / "run", "--shard", "true")]
    done = torchrun(*command)
    assert done.returncode == 1
    assert re.search(r"exitcode\s*: -9", done.stderr), done.stderr[-3000:]
    assert "this is a bug" not in done.stderr
    assert done.stderr.count("another process of this run has ended") <= 1
