"""A second copy of the base's modules over the same tensors, to prepare adapters on.

Reading an adapter, checking it against the base and computing its numbers takes a while, and the
served model must not change meanwhile. The twin has modules, hooks and a config of its own; its
parameters, buffers and packed codes are those of the served model.
"""

import copy
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from lorica.base.fingerprint import Fingerprint, fingerprint
from lorica.core.bank import bank_of
from lorica.errors import ConfigError, listed

_FINGERPRINTS: WeakKeyDictionary[nn.Module, dict[int, tuple[Any, Fingerprint]]] = (
    WeakKeyDictionary()
)
"""Of twins, by the id of the tokenizer, which is kept beside its fingerprint."""


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
