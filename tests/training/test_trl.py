"""An adapted model in TRL's trainers: the steps, the loss and the files are those of lorica."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import lorica
from lorica.base.bundled import FOLDER
from lorica.core.site import ADAPTERS
from lorica.core.state import adapter_state
from lorica.errors import ConfigError

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # TRL's own warnings

ROWS = [
    {"prompt": f"Item {i}: the lamp is", "completion": f" on table {i}, far away." * (1 + i % 2)}
    for i in range(8)
]
PAIRS = [
    {"prompt": row["prompt"], "chosen": row["completion"], "rejected": " under the bed."}
    for row in ROWS
]
IDS = torch.arange(40, 64).view(2, 12)


def base() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)


def adapted(**settings: Any) -> Any:
    where = {"target_modules": "all-linear", **settings.pop("where", {})}
    return lorica.adapt(base(), lorica.Lora(r=4, **settings), seed=0, **where)


class Gradients(lorica.AdapterCallback):
    """Notes whose parameters have a gradient, before the first update."""

    names: tuple[str, ...] = ()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        super().on_pre_optimizer_step(args, state, control, **given)
        parameters = given["model"].named_parameters()
        self.names = self.names or tuple(k for k, p in parameters if p.grad is not None)


def settings(folder: Path, **own: Any) -> dict[str, Any]:
    plain = {
        "max_steps": 3,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "bf16": False,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
    }
    return {"output_dir": str(folder), **plain, **own}


def sft(model: Any, folder: Path, *, callback: Any = None, **own: Any) -> Any:
    return trl.SFTTrainer(
        model,
        trl.SFTConfig(**settings(folder, **own)),
        train_dataset=datasets.Dataset.from_list(ROWS),
        processing_class=AutoTokenizer.from_pretrained(FOLDER),
        callbacks=[callback or lorica.AdapterCallback()],
    )


def dpo(model: Any, folder: Path, *, reference: Any = None, **own: Any) -> Any:
    return trl.DPOTrainer(
        model,
        ref_model=reference,
        args=trl.DPOConfig(**settings(folder, **own)),
        train_dataset=datasets.Dataset.from_list(PAIRS),
        processing_class=AutoTokenizer.from_pretrained(FOLDER),
        callbacks=[lorica.AdapterCallback()],
    )


def losses(trainer: Any) -> list[float]:
    trainer.train()
    return [event["loss"] for event in trainer.state.log_history if "loss" in event]


def assert_same_adapter(model: Any, other: Any, atol: float = 1e-6) -> None:
    state, want = adapter_state(model), adapter_state(other)
    assert state.keys() == want.keys()
    for key in want:
        torch.testing.assert_close(state[key], want[key], atol=atol, rtol=0)


def distance(model: Any, other: Any) -> float:
    """Of two adapters as one vector; one number of it may be far, where Adam's step is a sign."""
    state, want = adapter_state(model), adapter_state(other)
    return math.hypot(*(float((state[key] - want[key]).norm()) for key in want))


@pytest.mark.parametrize("name", ["lora", "dora", "prompt_tuning"])
def test_sft_takes_the_steps_of_lorica_train(name, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    lorica.train(
        base="bundled",
        data={"path": str(rows), "validation": 0},
        method={"name": name},
        micro_batch_size=8,
        max_steps=3,
        learning_rate=1e-3,
        schedule="constant",
        warmup_steps=0,
        dtype="float32",
        seed=0,
        output=str(tmp_path / "run"),
        show=False,
    )
    events = map(json.loads, (tmp_path / "run/events.jsonl").read_text().splitlines())
    want = [event["loss"] for event in events if event["event"] == "step"]
    model = lorica.adapt(base(), lorica.method(name), seed=0)
    assert losses(sft(model, tmp_path / "sft")) == pytest.approx(want, abs=1e-4)
    other, fresh = base(), lorica.adapt(base(), lorica.method(name), seed=0)
    lorica.load(other, tmp_path / "run")
    assert distance(model, other) < 0.01 * distance(model, fresh)


@pytest.mark.parametrize("checkpointing", [True, False])
def test_only_the_adapter_gets_gradients_and_the_base_stays(tmp_path, checkpointing):
    model, callback = adapted(), Gradients()
    losses(sft(model, tmp_path, callback=callback, gradient_checkpointing=checkpointing))
    assert len(callback.names) == len(adapter_state(model))
    assert all(f".{ADAPTERS}." in name for name in callback.names)
    for name, tensor in base().named_parameters():
        assert torch.equal(tensor, model.get_parameter(name))


def test_activation_checkpointing_changes_nothing(tmp_path):
    plain, checkpointed, reentrant = adapted(), adapted(), adapted()
    losses(sft(plain, tmp_path, gradient_checkpointing=False))
    losses(sft(checkpointed, tmp_path, gradient_checkpointing=True))
    own = {"use_reentrant": True}
    losses(sft(reentrant, tmp_path, gradient_checkpointing_kwargs=own))
    assert_same_adapter(checkpointed, plain)
    assert_same_adapter(reentrant, plain)


@torch.no_grad()
def test_checkpoints_and_the_final_model_are_adapter_folders(tmp_path):
    model = adapted()
    trainer = sft(model, tmp_path, save_strategy="steps", save_steps=3)
    with torch.enable_grad():
        losses(trainer)
    trainer.save_model(str(tmp_path / "final"))
    for folder in (tmp_path / "checkpoint-3", tmp_path / "final"):
        other = base().eval()
        assert lorica.load(other, folder) == []
        assert torch.equal(other(IDS).logits, model.eval()(IDS).logits)


def test_a_resumed_sft_is_the_unbroken_one(tmp_path):
    model, whole = adapted(), adapted()
    saving = {"save_strategy": "steps", "save_steps": 2}
    losses(sft(whole, tmp_path / "whole", max_steps=4))
    losses(sft(model, tmp_path / "run", max_steps=2, **saving))
    again = adapted()
    trainer = sft(again, tmp_path / "run", max_steps=4, **saving)
    trainer.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-2"))
    assert_same_adapter(again, whole)


def test_dpo_begins_at_the_base_and_is_the_dpo_of_a_second_copy(tmp_path):
    model, other = adapted(), adapted()
    reference = lorica.ReferenceModel(model)
    assert not list(reference.parameters())
    own = losses(dpo(model, tmp_path / "own", reference=reference))
    assert own[0] == pytest.approx(math.log(2), abs=1e-6) and own[-1] < 0.5
    copied = losses(dpo(other, tmp_path / "copy", reference=base()))
    assert own == pytest.approx(copied, abs=1e-5)
    assert_same_adapter(model, other, atol=1e-5)


def test_the_reference_of_a_trained_adapter_is_the_base_and_not_its_start(tmp_path):
    first = adapted()
    trainer = dpo(first, tmp_path / "first", reference=lorica.ReferenceModel(first))
    losses(trainer)
    trainer.save_model(str(tmp_path / "adapter"))
    model, other = base(), base()
    lorica.load(model, tmp_path / "adapter")
    lorica.load(other, tmp_path / "adapter")
    own = losses(dpo(model, tmp_path / "own", reference=lorica.ReferenceModel(model)))
    copied = losses(dpo(other, tmp_path / "copy", reference=base()))
    assert own == pytest.approx(copied, abs=1e-5) and own[0] < 0.5


def test_log_probabilities_computed_before_training_are_the_same(tmp_path):
    model, ahead = adapted(), adapted()
    own = losses(dpo(model, tmp_path / "own", reference=lorica.ReferenceModel(model)))
    reference = lorica.ReferenceModel(ahead)
    trainer = dpo(ahead, tmp_path / "ahead", reference=reference, precompute_ref_log_probs=True)
    assert losses(trainer) == pytest.approx(own, abs=1e-5)


def test_what_trl_would_pass_over_is_refused_before_the_first_step(tmp_path):
    heads = ({"target_modules": "all"}, {"modules_to_save": ["lm_head"]})
    for where in heads:
        with pytest.raises(ConfigError, match="neither used nor trained"):
            sft(adapted(where=where), tmp_path).train()
    model = adapted(dropout=0.1)
    with pytest.raises(ConfigError, match="disable_dropout does not reach"):
        dpo(model, tmp_path, reference=lorica.ReferenceModel(model)).train()
    with pytest.raises(ConfigError, match="loraplus_lr_ratio"):
        sft(adapted(loraplus_lr_ratio=4.0), tmp_path).train()


def test_peft_reads_what_a_dpo_saved(tmp_path):
    peft = pytest.importorskip("peft")
    model = adapted()
    trainer = dpo(model, tmp_path, reference=lorica.ReferenceModel(model))
    losses(trainer)
    trainer.save_model(str(tmp_path / "final"))
    assert load_file(tmp_path / "final/adapter_model.safetensors")
    other = peft.PeftModel.from_pretrained(base().eval(), str(tmp_path / "final"))
    with torch.no_grad():
        want = model.eval()(IDS).logits
        torch.testing.assert_close(other(IDS).logits, want, atol=1e-4, rtol=1e-4)
