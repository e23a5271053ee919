"""Methods from the command line: each learns, is killed, goes on to the same bits, and loads."""

import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lorica.core.adapter import Method
from lorica.data.config import DataConfig
from lorica.data.load import load_data as load_rows
from lorica.evaluation.loss import mean_loss
from lorica.formats import commit
from lorica.formats.open_adapter import open_adapter
from lorica.training.checkpoint import steps
from tests.marks import at_length

STEPS, KILLED_AFTER = 40, 20
WEIGHTS = "adapter/adapter_model.safetensors"
RATES = {
    "aflora": 1e-2,
    "bottleneck": 2e-3,
    "full": 1e-3,
    "hyperlora": 3e-3,
    "ia3": 2e-2,
    "llama_adapter": 1e-2,
    "lora_fa": 2e-2,
    "mora": 2e-3,
    "prefix_tuning": 1e-2,
    "prompt_tuning": 1e-2,
    "vera": 2e-2,
}
"""Learning rates at which a few steps are enough; 5e-3 where none is named."""
EXTRA = {
    "alora": {"method.r": 2, "method.rounds": 2},  # it tries every rank
    "blora": {"method.zero_start": "true"},
    "double_lora": {"method.start_second": 10},
}
WITH_STATE = ["adalora", "aflora", "alora", "full", "hyperlora"]
"""Methods that keep most beside a LoRA for a resume or a file; `make test-full` has every one."""
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["lorica.training.train", "lorica.cli.train", "torch"])


def run(words: list[str]) -> None:
    """In a process of its own: one command line."""
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    from lorica.cli import run

    raise SystemExit(run(words))


def start(*words: Any) -> Any:
    process = FORK.Process(target=run, args=([str(word) for word in words],))
    process.start()
    return process


def finish(process: Any) -> None:
    process.join(240)
    assert process.exitcode == 0


def flags(name: str, stories: Path, text: Path) -> list[Any]:
    known = Method.named(name).__dataclass_fields__
    settings: dict[str, Any] = {
        "base": stories,
        "data": text,
        "data.max_length": 64,
        "data.validation": 0.1,
        "data.overlong": "split",
        "method": name,
        "max_steps": STEPS,
        "save_steps": 10,
        "keep_checkpoints": 9,
        "micro_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "weight_decay": 0.01,
        "learning_rate": RATES.get(name, 5e-3),
    }
    settings |= {k: v for k, v in EXTRA.get(name, {}).items() if k.split(".")[1] in known}
    return [word for key, value in settings.items() for word in (f"--{key}", value)]


@pytest.fixture(scope="module")
def text(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    whole = (shared / "data/text/tinyshakespeare/input.txt").read_text()
    path = tmp_path_factory.mktemp("text") / "shakespeare.jsonl"
    # Two conditions, for the method that makes its adapter from one; others name them unused.
    rows = [
        {"text": whole[3_000 * i : 3_000 * (i + 1)], "condition": f"part {i % 2}"}
        for i in range(20)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", at_length(Method.names(), WITH_STATE))
def test_a_method_from_the_command_line(name, stories, text, tmp_path):
    words = flags(name, stories, text)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    first = start("train", *words, "--output", whole)
    second = start("train", *words, "--output", killed)
    while second.is_alive() and len(steps(killed / "checkpoints")) < KILLED_AFTER // 10:
        time.sleep(0.01)
    second.kill()  # SIGKILL
    second.join()
    finish(first)
    at = commit.read_json(steps(killed / "checkpoints")[-1] / "state.json")["progress"]["step"]
    assert KILLED_AFTER <= at < STEPS, "it was not killed on its way"
    finish(start("train", "--resume", killed))
    assert (killed / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()

    results = commit.read_json(whole / "results.json")
    before, after = results["held_out_loss"]["before"], results["held_out_loss"]["after"]
    assert after < before - 0.05
    opened = open_adapter(whole)
    rows = load_rows(
        DataConfig(path=str(text), max_length=64, validation=0.1, overlong="split"),
        opened.tokenizer,
        seed=0,
        max_length=opened.max_length,
    )
    assert mean_loss(opened.model, rows.validation) == pytest.approx(after, abs=1e-5)
    print(f"\n{name}: {before:.3f} -> {after:.3f}, killed at {at}, lines {results['lines']}")
