"""Every architecture from training to files: lorica's figures beside plain transformers and PEFT.

For each base: the first loss is that of transformers row by row, 8 x 1 rows give the adapter of
1 x 8, a batch of prompts writes what each writes alone, PEFT reads the folder as lorica does (or a
notice says that it cannot), and the merged model is the adapted one.
"""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch.nn import functional as F

import lorica
from lorica.data.config import DataConfig
from lorica.data.load import load_data
from lorica.formats.merge import merge_to
from lorica.formats.open_adapter import open_adapter
from lorica.generation.generate import generate
from lorica.training.run import read_events
from tests.base.architectures import BASES, tiny, tokenizer, write

peft = pytest.importorskip("peft")
CONVERSATION = [
    {"prompt": "the cat " * (1 + i % 3), "completion": " sat on the mat " + "and ran " * (i % 4)}
    for i in range(8)
]
PROMPTS = ["the cat", "the dog ran to the", "what is the answer"]


def plain_loss(name: str, rows: Path) -> tuple[float, list[list[int]]]:
    """Nats per label token of transformers, each row alone; and the rows' tokens."""
    examples = load_data(
        DataConfig(path=str(rows), validation=0.0), tokenizer(), seed=0, max_length=None
    ).train
    nats, count = 0.0, 0
    for example in examples:
        with torch.no_grad():
            logits = tiny(name)(input_ids=torch.tensor([list(example.ids)])).logits[0]
        learned = [t for t in range(1, len(example.ids)) if example.learned[t]]
        targets = torch.tensor([example.ids[t] for t in learned])
        nats += F.cross_entropy(logits[[t - 1 for t in learned]], targets, reduction="sum").item()
        count += len(learned)
    return nats / count, [list(example.ids) for example in examples]


def adapter(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter/adapter_model.safetensors")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BASES)
def test_an_architecture_from_training_to_files(name, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in CONVERSATION))
    base = write(tmp_path / "base", name)
    settings = {
        "base": str(base),
        "data": {"path": str(rows), "validation": 0},
        "learning_rate": 0.01,
        "method": {"name": "lora", "r": 4},
        "max_steps": 3,
        "schedule": "constant",
        "warmup_ratio": 0.0,
        "show": False,
    }
    done = lorica.train(**settings, micro_batch_size=8, output=str(tmp_path / "a"))
    first = next(e["loss"] for e in read_events(done.folder) if e["event"] == "step")
    want, ids = plain_loss(name, rows)
    assert first == pytest.approx(want, abs=2e-4)

    lorica.train(
        **settings, micro_batch_size=1, gradient_accumulation_steps=8, output=str(tmp_path / "b")
    )
    whole, parts = adapter(tmp_path / "a"), adapter(tmp_path / "b")
    for key, tensor in whole.items():
        torch.testing.assert_close(tensor, parts[key], atol=2e-3, rtol=0, msg=key)

    opened = open_adapter(tmp_path / "a")
    row = torch.tensor([ids[0]])
    with torch.no_grad():
        adapted = opened.model(input_ids=row).logits
    merge_to(tmp_path / "a", tmp_path / "m")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    theirs = None
    if not any("PEFT cannot read" in line for line in done.notices):
        theirs = peft.PeftModel.from_pretrained(tiny(name), str(tmp_path / "a/adapter"))
    for model in (merged, theirs):
        if model is not None:
            with torch.no_grad():
                logits = model.eval()(input_ids=row).logits
            torch.testing.assert_close(logits, adapted, atol=2e-4, rtol=2e-4)

    some = [p for p in PROMPTS if name != "llama_dynamic" or len(p) < 12]
    alone = [generate(opened, [p], max_new_tokens=9).tokens[0] for p in some]
    assert generate(opened, some, max_new_tokens=9).tokens == alone
