"""SIGKILL at any moment loses at most the steps since the newest checkpoint.

Each run is killed four times and then let end. A moment is a wait after the start, a
wait after a step, a checkpoint that is being written, or the end, where adapter, figures and
picture are written. Two runs go on side by side.
"""

import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from lorica.formats import commit
from lorica.training.checkpoint import steps
from lorica.training.run import read_events
from tests.marks import at_length
from tests.training.rows import write_rows

STEPS, RUNS, KILLS = 60, at_length(5, 3), 4
WEIGHTS = "adapter/adapter_model.safetensors"


@dataclass(frozen=True)
class Moment:
    """kind: start, step, writing or end; from: the step it is looked for; wait: seconds more."""

    kind: str
    after: int
    wait: float


@dataclass
class Life:
    """What was seen of one run."""

    kills: list[Moment]
    halves: int = 0  # kills that left something half written
    checkpoints: int = 0  # that were read after a kill


def moments(seed: int) -> list[Moment]:
    """Four moments in the order of a run's life; the first or the last may be special."""
    draw = random.Random(seed)
    found = []
    for part in range(KILLS):
        after = part * STEPS // KILLS + draw.randrange(1, STEPS // KILLS)
        kind = draw.choice(["step", "writing"])
        if part == 0 and seed % 2:
            kind = "start"
        if part == KILLS - 1 and seed % 3 == 0:
            kind, after = "end", STEPS
        wait = {"start": 5.0, "step": 0.05, "writing": 0.004, "end": 0.3}[kind]
        found.append(Moment(kind, after, draw.uniform(0, wait)))
    return found


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "lorica", "train", *map(str, words)]


def start(folder: Path, words: list[str]) -> subprocess.Popen[str]:
    """A new run, or, where the last kill came after its begin, the same one again."""
    if (folder / "config.yaml").is_file():
        words = command("--resume", folder)
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        words, env=quiet, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def come(moment: Moment, folder: Path) -> bool:
    """Whether the run has come to where the wait of the moment begins."""
    log = folder / "events.jsonl"
    if moment.kind == "start":
        return True
    if not log.is_file() or f'"step": {moment.after},' not in log.read_text():
        return False
    return moment.kind != "writing" or any(
        name.startswith(commit.STAGING) for name in os.listdir(folder / "checkpoints")
    )


def kill(process: subprocess.Popen[str], moment: Moment, folder: Path) -> None:
    deadline = time.monotonic() + 120
    with process:
        try:
            while not come(moment, folder):
                assert process.poll() is None, f"it ended before {moment}: {process.communicate()}"
                assert time.monotonic() < deadline, f"{moment} did not come"
                time.sleep(0.0005)
            time.sleep(moment.wait)
        finally:
            process.kill()
        _, said = process.communicate(timeout=60)
    assert process.returncode == -9, f"{moment}: {process.returncode} {said}"


def readable(folder: Path) -> int:
    """Read all that is in place; how many checkpoints there are."""
    found = steps(folder / "checkpoints")
    for path in found:
        state = commit.read_json(path / "state.json")
        commit.check_digests(path, state["files"])
        assert all(commit.read_tensors(path / n) for n in state["files"])
    if (folder / "adapter").exists():
        manifest = commit.read_json(folder / "adapter/manifest.json")
        commit.check_digests(folder / "adapter", manifest["files"])
    if (folder / "results.json").exists():
        commit.read_json(folder / "results.json")
    return len(found)


def live(folder: Path, words: list[str], seed: int) -> Life:
    """One run with its kills, up to its end."""
    life = Life(moments(seed))
    for moment in life.kills:
        kill(start(folder, words), moment, folder)
        life.checkpoints += readable(folder)
        life.halves += any(p.name.startswith(commit.STAGING) for p in folder.rglob("*"))
    assert "Traceback" not in finish(folder, words)
    return life


def finish(folder: Path, words: list[str]) -> str:
    """Start a run, or go on with it, and wait for its good end; what it says on the way."""
    with start(folder, words) as process:
        _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_runs_end_with_the_bits_of_the_whole_one(stories, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", 60)
    settings = [
        "--base",
        stories,
        "--data",
        rows,
        "--max_steps",
        STEPS,
        "--save_steps",
        2,
        "--method.r",
        4,
        "--method.dropout",
        0.1,
        "--learning_rate",
        5e-3,
        "--eval_steps",
        20,
        "--output",
    ]
    folders = [tmp_path / f"run{seed}" for seed in range(RUNS)]
    with ThreadPoolExecutor(2) as pool:
        whole = pool.submit(finish, tmp_path / "whole", command(*settings, tmp_path / "whole"))
        lives = list(
            pool.map(
                lambda seed: live(folders[seed], command(*settings, folders[seed]), seed),
                range(RUNS),
            )
        )
        whole.result()
    want = (tmp_path / "whole" / WEIGHTS).read_bytes()
    figures = commit.read_json(tmp_path / "whole/results.json")
    for folder in folders:
        assert (folder / WEIGHTS).read_bytes() == want, folder.name
        own = commit.read_json(folder / "results.json")
        for key in ("steps", "tokens", "train_loss", "held_out_loss"):
            assert own[key] == figures[key], (folder.name, key)
        assert not [p for p in folder.rglob("*") if p.name.startswith((".staging", ".replaced"))]
        assert read_events(folder)[-1]["event"] == "end"
    kinds = [moment.kind for each in lives for moment in each.kills]
    assert set(kinds) == {"start", "step", "writing", "end"}
    halves = sum(each.halves for each in lives)
    read = sum(each.checkpoints for each in lives)
    print(
        f"\n{len(kinds)} kills ({', '.join(f'{kinds.count(k)} {k}' for k in sorted(set(kinds)))}): "
        f"{halves} left something half written, {read} checkpoints read"
    )
    assert halves >= RUNS // 2
