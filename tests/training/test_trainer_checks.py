"""What a foreign trainer does otherwise is an error before it does harm; the reference model."""

import types
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

import lorica
from lorica.errors import ConfigError, TrainingError
from lorica.training.trainer_checks import check_dropout, check_gradients, check_head
from tests.training.test_trainer_callback import IDS, ROWS, base


def adapted(**settings: Any) -> Any:
    where = settings.pop("where", {})
    return lorica.adapt(base(), lorica.Lora(r=2, **settings), seed=1, **where)


def with_fused_head(model: Any) -> Any:
    """`forward` replaced as TRL replaces it, and wrapped again as accelerate does."""

    def fused(self: Any, *args: Any, fused_lm_head: bool = False, **given: Any) -> Any:
        return type(self).forward(self, *args, **given)

    own = types.MethodType(fused, model)

    def autocast(*args: Any, **given: Any) -> Any:
        return own(*args, **given)

    autocast.__wrapped__ = own  # type: ignore[attr-defined]
    model.forward = autocast
    return model


def test_an_adapter_at_a_head_that_the_loss_passes_over_is_refused():
    for where in ({"target_modules": "all"}, {"modules_to_save": ["lm_head"]}):
        model = adapted(where=where)
        check_head(model, "default")  # transformers' own forward calls the layer
        with pytest.raises(ConfigError, match=r"lm_head.*neither used nor trained"):
            check_head(with_fused_head(model), "default")
    check_head(with_fused_head(adapted()), "default")


def test_dropout_that_a_trainer_turns_off_is_refused():
    off, on = types.SimpleNamespace(disable_dropout=True), types.SimpleNamespace()
    check_dropout(adapted(dropout=0.1), "default", on)
    check_dropout(adapted(), "default", off)
    with pytest.raises(ConfigError, match=r"dropout 0\.1"):
        check_dropout(adapted(dropout=0.1), "default", off)


def test_a_loss_that_does_not_depend_on_the_adapter_is_named():
    model = adapted()
    with pytest.raises(TrainingError, match="nothing would be trained"):
        check_gradients(model, "default")
    model(input_ids=IDS, labels=IDS).loss.backward()
    check_gradients(model, "default")


def trainer(model: nn.Module, folder: Any, optimizer: Any = None, **own: Any) -> Trainer:
    arguments = TrainingArguments(
        str(folder), max_steps=1, use_cpu=True, report_to=[], disable_tqdm=True, **own
    )
    return Trainer(
        model,
        arguments,
        train_dataset=ROWS,  # type: ignore[arg-type]
        callbacks=[lorica.AdapterCallback()],
        optimizers=(optimizer, None),
    )


@pytest.mark.parametrize("warmup", [0, 1])
def test_rates_of_its_own_need_an_optimizer_that_has_them(tmp_path, warmup):
    model = adapted(loraplus_lr_ratio=4.0)
    with pytest.raises(ConfigError, match="loraplus_lr_ratio"):
        trainer(model, tmp_path, warmup_steps=warmup).train()
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if name.endswith(end)], "lr": rate}
        for end, rate in ((".a", 0.01), (".b", 0.04))
    ]
    trainer(model, tmp_path, torch.optim.AdamW(groups), warmup_steps=warmup).train()


def test_the_reference_is_the_base_without_gradients_or_parameters():
    model = adapted()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_()
    reference = lorica.ReferenceModel(model)
    with torch.no_grad():
        assert torch.equal(reference(IDS).logits, base()(IDS).logits)
        assert torch.equal(reference.forward(IDS).logits, base()(IDS).logits)
        assert not torch.allclose(model(IDS).logits, base()(IDS).logits)
    assert not reference(IDS).logits.requires_grad and not list(reference.parameters())
    assert reference.state_dict().keys() == base().state_dict().keys()
    model.train()
    reference.eval()
    assert model.training
    with pytest.raises(ConfigError, match="has no adapter"):
        lorica.ReferenceModel(base())
