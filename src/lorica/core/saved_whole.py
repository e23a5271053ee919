"""What an adapted model says when it is saved whole.

`save_pretrained` writes the adapter's tensors under names that `from_pretrained` passes over: what
is loaded from that folder is the base. So it warns, for as long as the model has adapters.
"""

import warnings
from functools import partial
from typing import Any

from torch import nn

REPLACED = ("save_pretrained", "load_state_dict")
"""Functions that may stand on an adapted model in place of its own."""


def warn_when_saved(model: nn.Module) -> None:
    """Let `save_pretrained`, where a model has it, warn from now on. In place."""
    if callable(getattr(type(model), "save_pretrained", None)):
        vars(model)["save_pretrained"] = partial(_save_whole, model)


def give_back(model: nn.Module) -> None:
    """The model's own functions again. In place."""
    for name in REPLACED:
        vars(model).pop(name, None)


def _save_whole(model: Any, *args: Any, **options: Any) -> Any:
    warnings.warn(
        "save_pretrained writes the whole model, and from_pretrained passes over the adapter in "
        "it: what is loaded from there is the base. Save the adapter with lorica.save(model, "
        "folder), or fold it into the weights first with lorica.merge(model); for transformers' "
        "Trainer there is callbacks=[lorica.AdapterCallback()].",
        stacklevel=2,
    )
    return type(model).save_pretrained(model, *args, **options)
