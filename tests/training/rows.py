"""Small runs on a real base, for the tests of this folder."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import lorica
from lorica.core.draws import drawing
from lorica.training import loop
from lorica.training.state import RunState

WORDS = ["cat", "dog", "bird", "fish", "tree", "house", "river", "stone", "cloud", "field"]


def write_rows(path: Path, count: int = 40) -> Path:
    """prompt/completion rows of different lengths."""
    rows = [
        {
            "prompt": f"Once {WORDS[i % 10]} " * (1 + i % 4),
            "completion": f"the {WORDS[(i * 3) % 10]} ran to {WORDS[(i * 7) % 10]} " * (1 + i % 3),
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(base: Path, folder: Path, **changed: Any) -> dict[str, Any]:
    """A run of six steps; `changed` stands over it."""
    data = folder / "rows.jsonl"
    if not data.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(data)
    plain = {
        "base": str(base),
        "data": {"path": str(data), "validation": 0.1},
        "method": {"name": "lora", "r": 4},
        "learning_rate": 5e-3,
        "max_steps": 6,
        "micro_batch_size": 8,
        "save_steps": 3,
        "output": str(folder / "run"),
    }
    return {**plain, **changed}


class Interrupted(Exception):
    """Stands for whatever ends a process."""


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int, **config: Any) -> None:
    """Train, and fail in the middle of step `at` (counted from 0), before the optimizer."""
    update = loop.apply_update

    def apply_update(state: RunState, *arguments: Any) -> None:
        if state.progress.step == at:
            raise Interrupted
        update(state, *arguments)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(loop, "apply_update", apply_update)
        lorica.train(**config, show=False)


def adapter(run: Path) -> dict[str, Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def farthest(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[k] - second[k]).abs().max()) for k in first)


ROUNDING = 2e-4 * 6 / 20
"""How far apart runs of six steps at 2e-4 may come that differ in the shapes of their batches.

Products of other shapes round otherwise, each processor in its way, and AdamW divides a gradient
by its own size: an entry whose gradient is mostly rounding moves by up to the rate a step. This is
a twentieth of what an entry may move; a wrong mask or mean moves some entry by more.
"""


LONGEST = 172  # products in a sum of stories260K: the width of its MLP; of the tiny base 48


def rounding_apart(first: dict, second: dict, run: dict) -> bool:
    """Two adapters of a run differ by the order of float32 sums, and by no more.

    A gradient is a sum; another order changes it by up to eps times its length. AdamW divides by
    the gradient's size, so the error of a weight is that share of the largest move, rate * steps.
    A weight whose gradient is almost zero may be farther off, so the mean square is compared.
    """
    assert first.keys() == second.keys()
    off = torch.cat([(first[key] - second[key]).double().flatten() for key in first])
    move = run["learning_rate"] * run["max_steps"]
    return off.square().mean().sqrt().item() <= torch.finfo(torch.float32).eps * LONGEST * move


def tiny_base(folder: Path, **config: Any) -> Path:
    """A random Llama of two layers with the bundled base's tokenizer; `config` stands over ours."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from lorica.base.load import load_tokenizer

    tokenizer = load_tokenizer("bundled")
    plain = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,
    }
    with drawing(0):
        model = LlamaForCausalLM(LlamaConfig(**plain | config))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
