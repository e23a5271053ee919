"""A warning from `save_pretrained` of an adapted model.

It writes the adapter's tensors under names that `from_pretrained` ignores, so that the folder loads
as the base. The warning is there for as long as the model has adapters.
"""

import warnings
from functools import partial
from typing import Any

from torch import nn

REPLACED = ("save_pretrained", "load_state_dict")
"""Functions of a model that may be replaced while it has adapters."""


def warn_when_saved(model: nn.Module) -> None:
    """Let `save_pretrained` warn from now on, if the model has it. In place."""
    if callable(getattr(type(model), "save_pretrained", None)):
        vars(model)["save_pretrained"] = partial(_save_whole, model)


def restore_functions(model: nn.Module) -> None:
    """Give the model its own functions back. In place."""
    for name in REPLACED:
        vars(model).pop(name, None)


def _save_whole(model: Any, *args: Any, **options: Any) -> Any:
    warnings.warn(
        "save_pretrained writes the whole model, and from_pretrained ignores the adapter in it: "
        "the folder loads as the base. Save the adapter with lorica.save(model, folder), or merge "
        "it first with lorica.merge(model). For transformers' Trainer pass "
        "callbacks=[lorica.AdapterCallback()].",
        stacklevel=2,
    )
    return type(model).save_pretrained(model, *args, **options)
