"""transformers' Trainer keeps the adapter: in save_model, checkpoints and a resume."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
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
from lorica.core.bank import bank_of
from lorica.core.draws import drawing
from lorica.core.state import adapter_state
from lorica.errors import ConfigError, FileError, TrainingError
from lorica.training.trainer_record import RECORD
from tests.marks import slow_but

IDS = torch.randint(3, 60, (12, 9), generator=torch.Generator().manual_seed(8))
ROWS = [{"input_ids": row, "labels": row} for row in IDS]


def base() -> nn.Module:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
    )
    with drawing(0):
        return LlamaForCausalLM(config).eval()


def trainer(
    folder: Path, *, callback: bool = True, steps: int = 4, r: int = 2, **settings: Any
) -> Trainer:
    model = lorica.adapt(base(), lorica.Lora(r=r), seed=1)
    plain = {"learning_rate": 0.05, "save_strategy": "steps", "save_steps": 2}
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        seed=3,
        dataloader_pin_memory=False,
        **{**plain, **settings},
    )
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
        tmp_path,
        steps=6,
        learning_rate=3.0,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
    )
    run.train()
    best = run.state.best_model_checkpoint
    assert best is not None
    assert torch.equal(logits(loaded(Path(best))), logits(run.model))
    assert run.evaluate()["eval_loss"] == pytest.approx(run.state.best_metric)


def test_a_checkpoint_of_another_adapter_is_refused(tmp_path, checkpoint):
    other = trainer(tmp_path, r=3)
    with pytest.raises(FileError, match="Trainer's checkpoint does not fit"):
        other.train(resume_from_checkpoint=str(checkpoint))


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
    assert bank_of(model).specs == {}
    assert torch.equal(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "whole")), logits(base())
    )


def nudge_base(model: nn.Module) -> None:
    with torch.no_grad():
        model.get_submodule("model.layers.0.mlp.down_proj").weight[0, 0] += 1  # type: ignore[operator]


def resumed(
    folder: Path,
    checkpoint: Path,
    method: lorica.Lora | lorica.Dora,
    *,
    name: str = "default",
    seed: int = 1,
    on: Callable[[nn.Module], None] = lambda model: None,
) -> None:
    """Go on from a checkpoint, in another output folder."""
    run = trainer(folder)
    model = base()
    on(model)
    lorica.adapt(model, method, name=name, seed=seed)
    again = Trainer(
        model,
        run.args,
        train_dataset=ROWS,
        callbacks=[lorica.AdapterCallback()],  # type: ignore[arg-type]
    )
    again.train(resume_from_checkpoint=str(checkpoint))


OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "alpha": (r"method.alpha +\S+ -> 64", {"method": lorica.Lora(r=2, alpha=64)}),
    "rslora": ("method.use_rslora +False -> True", {"method": lorica.Lora(r=2, use_rslora=True)}),
    "dropout": ("method.dropout +0.0 -> 0.5", {"method": lorica.Lora(r=2, dropout=0.5)}),
    "seed": ("seed +1 -> 2", {"seed": 2}),
    "base": ("base_weights +model.layers.0.mlp.down_proj.weight", {"on": nudge_base}),
    "config": (
        "base_config +rms_norm_eps",
        {"on": lambda model: setattr(model.config, "rms_norm_eps", 0.1)},
    ),
    "dtype": ("dtype +'float32' -> 'bfloat16'", {"on": lambda model: model.bfloat16()}),
    "name": ("adapter +'default' -> 'other'", {"name": "other"}),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """After two steps; its name is that of the step."""
    folder = tmp_path_factory.mktemp("stopped")
    trainer(folder, steps=2).train()
    return folder / "checkpoint-2"


@pytest.mark.parametrize("what", slow_but(("alpha", "base"), OTHERS))
def test_a_resume_with_another_function_is_refused(tmp_path, checkpoint, what):
    message, change = OTHERS[what]
    with pytest.raises(TrainingError, match=message):
        resumed(tmp_path, checkpoint, **{"method": lorica.Lora(r=2), **change})


def test_a_resume_with_the_same_function_is_not(tmp_path, checkpoint):
    resumed(tmp_path, checkpoint, lorica.Lora(r=2))


EDITS: dict[str, tuple[str, Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]]] = {
    "one number": (
        "changed .*adapters.default",
        lambda t: {k: v + (k.endswith("default.b")) for k, v in t.items()},
    ),
    "all": ("not what was saved", lambda t: {k: v * 0 + 1 for k, v in t.items()}),
    "dtype": ("not what was saved", lambda t: {k: v.half() for k, v in t.items()}),
    "part": ("not what was saved", lambda t: dict(list(t.items())[-3:])),
    "empty": ("not all tensors", lambda t: {}),
    "foreign": ("not all tensors", lambda t: {"foo.bar": torch.ones(2)}),
    "record alone": ("not what was saved", lambda t: {RECORD: t[RECORD]}),
    "record cut": ("not what was saved", lambda t: {**t, RECORD: t[RECORD][:-9]}),
}


@pytest.mark.parametrize("what", EDITS)
def test_a_resume_from_a_checkpoint_that_was_edited_is_refused(tmp_path, checkpoint, what):
    file = shutil.copytree(checkpoint, tmp_path / checkpoint.name) / "model.safetensors"
    message, edit = EDITS[what]
    save_file(edit(load_file(file)), file, metadata={"format": "pt"})
    with pytest.raises(TrainingError, match=message):
        trainer(tmp_path).train(resume_from_checkpoint=True)


def test_a_checkpoint_without_a_record_is_a_warning(tmp_path):
    run = trainer(tmp_path, callback=False, steps=2)
    with pytest.warns(UserWarning, match="ignores the adapter"):
        run.train()
    with pytest.warns(UserWarning, match="cannot be checked"):
        trainer(tmp_path).train(resume_from_checkpoint=True)
    late = trainer(tmp_path, callback=False)
    late.add_callback(lorica.AdapterCallback())
    with pytest.raises(TrainingError, match="added after the Trainer was created"):
        late.train(resume_from_checkpoint=True)


def test_two_trainers_of_one_model_resume(tmp_path):
    first = trainer(
        tmp_path, steps=2, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True
    )
    first.train()
    callback: Any = lorica.AdapterCallback()
    Trainer(first.model, first.args, callbacks=[callback], eval_dataset=ROWS[:4])  # type: ignore[arg-type]
    first.args.max_steps = 4
    first.train(resume_from_checkpoint=True)
    assert first.state.global_step == 4
