"""What training comes to on a real base and real text, against figures fixed beforehand.

Tinyshakespeare but for its last 30 KB, 300 steps of 8 rows of 128 tokens; held out are those
30 KB. The loss that the run reports is computed once more by transformers alone.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import lorica
from lorica import cli
from tests.marks import at_length

HELD_OUT = 30_000  # bytes
LENGTH = 128

LIMITS = {
    "lora": ({"method": {"name": "lora", "r": 8}, "learning_rate": 5e-3}, 3.10),
    "full": ({"method": "full", "learning_rate": 1e-3}, 3.00),
    "dora": ({"method": {"name": "dora", "r": 8}, "learning_rate": 5e-3}, 3.11),
}


@pytest.fixture(scope="module")
def text(shared, tmp_path_factory) -> Path:
    """A folder with train.txt and held-out.txt."""
    whole = (shared / "data/text/tinyshakespeare/input.txt").read_bytes()
    folder = tmp_path_factory.mktemp("text")
    (folder / "train.txt").write_bytes(whole[:-HELD_OUT])
    (folder / "held-out.txt").write_bytes(whole[-HELD_OUT:])
    return folder


@torch.no_grad()
def loss_of(model_folder: Path, text: str) -> float:
    """Nats per token in blocks of 128, computed without any code of ours."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(model_folder)
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    total, count = 0.0, 0
    for start in range(0, len(ids), LENGTH):
        block = torch.tensor([ids[start : start + LENGTH]])
        if block.shape[1] > 1:
            logits = model(block).logits[0, :-1]
            total += F.cross_entropy(logits, block[0, 1:], reduction="sum").item()
            count += block.shape[1] - 1
    return total / count


@pytest.mark.slow
@pytest.mark.parametrize("method", at_length(list(LIMITS), ["lora", "full"]))
def test_held_out_loss(method, stories, text, tmp_path):
    settings, limit = LIMITS[method]
    data = {
        "path": str(text / "train.txt"),
        "validation": str(text / "held-out.txt"),
        "max_length": LENGTH,
        "overlong": "split",
    }
    result = lorica.train(
        base=str(stories),
        data=data,
        max_steps=300,
        micro_batch_size=8,
        output=str(tmp_path / "run"),
        show=False,
        **settings,
    )
    loss = result.figures["held_out_loss"]
    seconds = result.figures["seconds"]
    print(
        f"\n{method}: held out {loss['before']:.3f} -> {loss['after']:.3f} "
        f"(at most {limit}), {seconds:.0f} s"
    )
    assert result.figures["rows"]["validation"] > 100
    assert loss["after"] <= limit
    merged = tmp_path / "merged"
    assert cli.run(["merge", str(tmp_path / "run"), "--output", str(merged)]) == 0
    assert loss_of(merged, (text / "held-out.txt").read_text()) == pytest.approx(
        loss["after"], abs=2e-4
    )
