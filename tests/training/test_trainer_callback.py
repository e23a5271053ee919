"""transformers' Trainer keeps the adapter: in save_model, checkpoints and a resume."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_callback import TrainerCallback

import lorica
from lorica.core.draws import drawing
from lorica.core.port import switch_of
from lorica.core.state import adapter_state
from lorica.errors import ConfigError, FileError, TrainingError

IDS = torch.randint(3, 60, (12, 9), generator=torch.Generator().manual_seed(8))
ROWS = [{"input_ids": row, "labels": row} for row in IDS]


def base() -> nn.Module:
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32,
    )  # fmt: skip
    with drawing(0):
        return LlamaForCausalLM(config).eval()


def trainer(
    folder: Path, *, callback: bool = True, steps: int = 4, r: int = 2, **settings: Any
) -> Trainer:
    model = lorica.adapt(base(), lorica.Lora(r=r), seed=1)
    plain = {"learning_rate": 0.05, "save_strategy": "steps", "save_steps": 2}
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=4, use_cpu=True,
        report_to=[], disable_tqdm=True, logging_strategy="no", seed=3, dataloader_pin_memory=False,
        **{**plain, **settings},
    )  # fmt: skip
    callbacks: list[TrainerCallback] = [lorica.AdapterCallback()] if callback else []
    return Trainer(
        model,
        arguments,
        train_dataset=ROWS,
        eval_dataset=ROWS[:4],
        callbacks=callbacks,  # type: ignore[arg-type]
    )


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(IDS).logits


def loaded(folder: Path) -> nn.Module:
    model = base()
    assert lorica.load(model, folder) == []
    return model


def test_save_model_and_every_checkpoint_hold_the_adapter(tmp_path):
    run = trainer(tmp_path)
    run.train()
    run.save_model()
    assert not torch.equal(logits(run.model), logits(base()))
    assert torch.equal(logits(loaded(tmp_path)), logits(run.model))
    assert torch.equal(logits(loaded(tmp_path / "checkpoint-4")), logits(run.model))
    assert not torch.equal(logits(loaded(tmp_path / "checkpoint-2")), logits(run.model))
    assert not (tmp_path / "model.safetensors").exists()
    size = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert size < 20_000
    with pytest.raises((OSError, ValueError)):  # no base that looks like the tuned model
        AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-4", local_files_only=True)


def test_without_it_the_model_says_what_is_lost(tmp_path):
    run = trainer(tmp_path, callback=False, save_strategy="no")
    run.train()
    with pytest.warns(UserWarning, match="AdapterCallback"):
        run.save_model()
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(base()))  # what the warning is about
    lorica.merge(run.model)  # type: ignore[arg-type]
    run.model.save_pretrained(tmp_path / "merged")  # type: ignore[union-attr]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(merged), logits(run.model), atol=1e-5)


@pytest.mark.slow
def test_a_resumed_run_is_the_unbroken_one(tmp_path):
    whole = trainer(tmp_path / "whole", steps=6)
    whole.train()
    trainer(tmp_path / "cut", steps=6).train()
    again = trainer(tmp_path / "cut", steps=6)
    again.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-2"))
    want, got = (adapter_state(run.model) for run in (whole, again))  # type: ignore[arg-type]
    assert all(torch.equal(want[key], got[key]) for key in want)


def test_the_best_checkpoint_is_the_adapter_in_the_end(tmp_path):
    run = trainer(
        tmp_path, steps=6, learning_rate=3.0, eval_strategy="steps", eval_steps=2,
        load_best_model_at_end=True, metric_for_best_model="eval_loss",
    )  # fmt: skip
    run.train()
    best = run.state.best_model_checkpoint
    assert best is not None
    assert torch.equal(logits(loaded(Path(best))), logits(run.model))
    assert run.evaluate()["eval_loss"] == pytest.approx(run.state.best_metric)


def test_a_checkpoint_of_another_adapter_is_refused(tmp_path):
    trainer(tmp_path, steps=2).train()
    other = trainer(tmp_path, r=3)
    with pytest.raises(FileError, match="Trainer's checkpoint does not fit"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_weights_that_went_wrong_are_not_saved(tmp_path):
    run = trainer(tmp_path, learning_rate=1e38)
    with pytest.raises(TrainingError, match="not saved"):
        run.train()
    assert not list(tmp_path.glob("checkpoint-*/adapter*"))


def test_what_a_trainer_cannot_do_is_refused_before_the_first_step(tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    for model, what in (
        (base(), "0 are active"),
        (lorica.adapt(base(), lorica.method("adalora", r=2)), "schedule"),
        (lorica.adapt(lorica.adapt(base(), lorica.Lora()), lorica.Lora(), name="b"), "2 are"),
    ):
        if what == "2 are":
            lorica.activate(model, "default", "b")
        with pytest.raises(ConfigError, match=what):
            Trainer(model, arguments, callbacks=[lorica.AdapterCallback()])  # type: ignore[arg-type]


def test_added_later_it_is_there_when_training_begins(tmp_path):
    run = trainer(tmp_path, callback=False, steps=2)
    run.add_callback(lorica.AdapterCallback())
    run.train()
    assert torch.equal(logits(loaded(tmp_path / "checkpoint-2")), logits(run.model))


def test_the_models_own_functions_come_back(tmp_path):
    run = trainer(tmp_path, steps=2)
    model: Any = run.model
    twin = copy.deepcopy(model)
    twin.save_pretrained(tmp_path / "twin")
    assert torch.equal(logits(loaded(tmp_path / "twin")), logits(twin))
    model.load_state_dict(model.state_dict())  # all of it, as ever
    lorica.detach(model)
    assert not {"save_pretrained", "load_state_dict"} & vars(model).keys()
    model.save_pretrained(tmp_path / "whole")
    assert switch_of(model).specs == {}
    assert torch.equal(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "whole")), logits(base())
    )
