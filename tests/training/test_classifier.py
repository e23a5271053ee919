"""Sequence classification: the head is new, is trained, is saved, and comes back."""

import json

import torch

import lorica
from lorica.formats.open import open_adapter


def rows(shared, path, count=48):
    kinds = {"neg": "rt-polarity.neg", "pos": "rt-polarity.pos"}
    with path.open("w") as out:
        for label, name in kinds.items():
            text = (shared / "data/classify/rt-polarity" / name).read_text(encoding="latin-1")
            for line in text.splitlines()[: count // 2]:
                out.write(json.dumps({"text": line, "label": label}) + "\n")
    return path


def test_classifier_learns_saves_and_reloads(shared, stories, tmp_path):
    data = rows(shared, tmp_path / "reviews.jsonl")
    result = lorica.train(
        base=str(stories), data={"path": str(data), "validation": 0.25}, learning_rate=5e-3,
        max_steps=12, output=str(tmp_path / "run"), show=False,
    )  # fmt: skip
    assert any("padded" in line for line in result.lines)
    assert any("score" in line for line in result.lines)
    first = open_adapter(result.folder)
    second = open_adapter(result.folder)
    assert first.labels == ["neg", "pos"]
    ids = torch.randint(0, 500, (2, 9))
    assert torch.equal(first.model(ids).logits, second.model(ids).logits)
    with lorica.use(first.model):
        bare = first.model(ids).logits
    assert not torch.allclose(bare, second.model(ids).logits)
    assert result.figures["train_loss"] < 0.72
