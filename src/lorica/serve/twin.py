"""A second copy of the base's modules over the same tensors, to prepare adapters on.

Reading an adapter, checking it against the base and computing its numbers takes a while, and the
served model must not change meanwhile. The twin has modules, hooks and a config of its own; its
parameters, buffers and packed codes are those of the served model.
"""

import copy
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lorica.base.fingerprint import Fingerprint, fingerprint
from lorica.core.bank import bank_of
from lorica.core.site import sites_of
from lorica.errors import ConfigError, listed

_FINGERPRINTS: WeakKeyDictionary[nn.Module, dict[int, tuple[Any, Fingerprint]]] = (
    WeakKeyDictionary()
)
"""Of twins, by the id of the tokenizer, which is kept beside its fingerprint."""
_LAYERS: WeakKeyDictionary[nn.Module, frozenset[str]] = WeakKeyDictionary()


def twin(model: nn.Module) -> nn.Module:
    """A copy of the module tree of `model` that shares every tensor with it.

    `model` is frozen by this: nothing else in it changes, now or when the twin is adapted.
    Raises: ConfigError if `model` has adapters, which the copy would have as well.
    """
    if names := bank_of(model).specs:
        raise ConfigError(
            f"the model has adapters: {listed(names)}.",
            fix="make the twin of the base before adapters are attached to it",
        )
    model.requires_grad_(False)
    shared: dict[int, Any] = {}
    for module in model.modules():
        own = [*vars(module).values(), *module._parameters.values(), *module._buffers.values()]
        shared |= {id(tensor): tensor for tensor in own if isinstance(tensor, Tensor)}
    return copy.deepcopy(model, shared)


def fingerprint_of(model: nn.Module, tokenizer: Any) -> Fingerprint:
    """The fingerprint of a twin, computed once: hashing reads every weight of the base."""
    known = _FINGERPRINTS.setdefault(model, {})
    if id(tokenizer) not in known:
        known[id(tokenizer)] = tokenizer, fingerprint(model, tokenizer=tokenizer)
    return known[id(tokenizer)][1]


@torch.no_grad()
def layers_of_rows(model: nn.Module) -> frozenset[str]:
    """The linear layers of a twin whose input has the rows of the batch, (B, T, I), tried once.

    In a layer of experts the tokens of all rows lie in one list, or are sent to where they belong.
    """
    if model not in _LAYERS:
        shapes: dict[str, torch.Size] = {}

        def note(name: str) -> Any:
            return lambda module, args, options: shapes.update(
                {name: next(iter((*args, *options.values()))).shape}
            )

        handles = [
            site.module.register_forward_pre_hook(note(site.name), with_kwargs=True)
            for site in sites_of(model)
        ]
        try:
            model(
                input_ids=torch.zeros(
                    2, 3, dtype=torch.long, device=next(model.parameters()).device
                )
            )
        finally:
            for handle in handles:
                handle.remove()
        _LAYERS[model] = frozenset(
            name for name, shape in shapes.items() if len(shape) == 3 and shape[0] == 2
        )
    return _LAYERS[model]
