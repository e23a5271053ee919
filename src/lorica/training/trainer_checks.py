"""What a foreign trainer does otherwise than the adapter asks for, named before it does harm.

transformers' Trainer has one learning rate. TRL's trainers turn dropout off by setting `p` of every
nn.Dropout, and compute the loss from `lm_head.weight` itself, past the layer and its adapter (trl
1.16, trainer/utils.py: disable_dropout_in_model, add_fused_lm_head).
"""

from typing import Any

import torch
from torch import nn

from lorica.base.model_view import model_view
from lorica.core.bank import attached, spec_of
from lorica.core.rates import rates_of
from lorica.core.state import adapter_state
from lorica.errors import ConfigError, TrainingError, listed


def check_rates(model: nn.Module, name: str, optimizer: torch.optim.Optimizer | None) -> None:
    """Raises: ConfigError if tensors of the adapter have rates of their own, and not in the
    optimizer."""
    factors = rates_of(model, 1.0, name)
    if optimizer is None or len(set(factors.values())) < 2:
        return
    rates = {
        id(tensor): group.get("initial_lr", group["lr"])  # lr may be that of a warm-up, 0
        for group in optimizer.param_groups
        for tensor in group["params"]
    }
    units = {
        round(rates[id(tensor)] / factors[key], 12)
        for key, tensor in adapter_state(model, name).items()
        if id(tensor) in rates and key in factors
    }
    if len(units) > 1:
        method = spec_of(model, name).method.name
        raise ConfigError(
            f"the {method} has learning rates that differ (loraplus_lr_ratio), and the Trainer's "
            "optimizer has others.",
            fix="pass an optimizer with a parameter group for each rate, "
            "Trainer(optimizers=(optimizer, None)), or train with lorica.train",
        )


def check_dropout(model: nn.Module, name: str, args: Any) -> None:
    """Raises: ConfigError if the trainer is to train without dropout, and the adapter has some."""
    dropout = getattr(spec_of(model, name).method, "dropout", 0.0)
    if dropout and getattr(args, "disable_dropout", False):
        raise ConfigError(
            f"the adapter has dropout {dropout:g}, which the trainer's disable_dropout does not "
            "reach.",
            fix="adapt with dropout=0, or pass disable_dropout=False",
        )


def check_head(model: nn.Module, name: str) -> None:
    """Raises: ConfigError if the adapter acts at the output head, and the trainer computes its loss
    from the weight of the head."""
    heads = _sites_at_head(model, name)
    if heads and _has_fused_head(model):
        raise ConfigError(
            f"the adapter acts at {listed(heads)}, and the trainer computes the loss from the "
            "weight of the head: it would be neither used nor trained.",
            fix="leave the head out of target_modules and modules_to_save, or train with "
            "lorica.train",
        )


def check_gradients(model: nn.Module, name: str) -> None:
    """Before the first update. Raises: TrainingError if no tensor of the adapter has a gradient."""
    trained = [
        parameter
        for module in attached(model, name).every.values()
        for parameter in module.parameters()
        if parameter.requires_grad
    ]
    if all(parameter.grad is None for parameter in trained):
        raise TrainingError(
            "no tensor of the adapter got a gradient: nothing would be trained.",
            fix="activate the adapter before training: lorica.activate(model, NAME)",
        )


def _sites_at_head(model: nn.Module, name: str) -> list[str]:
    adapter, head = attached(model, name), model_view(model).output_head
    return [site for site in adapter.every if adapter.sites[site].module is head]


def _has_fused_head(model: nn.Module) -> bool:
    """Whether TRL replaced the model's `forward` by one with a loss of its own."""
    forward = vars(model).get("forward")
    while forward is not None:
        function = getattr(forward, "__func__", forward)
        if "fused_lm_head" in (getattr(function, "__kwdefaults__", None) or {}):
            return True
        forward = getattr(function, "__wrapped__", None)
    return False
