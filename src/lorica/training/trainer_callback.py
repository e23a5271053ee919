"""An adapter in transformers' `Trainer`: saved, taken up again and kept at its best as an adapter.

    trainer = Trainer(model, args, callbacks=[lorica.AdapterCallback()], ...)

A Trainer saves with `model.save_pretrained` and reads back with `model.load_state_dict`. The whole
model that it would write has the adapter under names that `from_pretrained` passes over: what is
loaded from it is the base. A callback has no say in either, so this one puts two functions in their
place on the model that it is given, and says so here:

    model.save_pretrained(folder)    writes the adapter folder (and, in a checkpoint, a small
                                     model.safetensors with the adapter's tensors alone, which the
                                     Trainer reads back)
    model.load_state_dict(state)     of the adapter's tensors: strict; of others: as it was

After `lorica.detach` or `lorica.merge` both are the model's own again.
"""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from lorica.core.drive import adapters_of
from lorica.core.port import spec_of, switch_of
from lorica.core.site import PORT
from lorica.core.state import adapter_state, load_adapter_state
from lorica.errors import ConfigError, listed
from lorica.formats import commit, folder

TENSORS = "model.safetensors"


class AdapterCallback(TrainerCallback):
    """Let a Trainer save and load the active adapter of its model instead of the whole model.

    Raises: ConfigError, before the first step, if not one adapter is active, or its method has a
        schedule, which a Trainer does not drive.
    """

    def on_init_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        install(given["model"], given.get("processing_class"))

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        install(given["model"], given.get("processing_class"))  # it was added after the start


def install(model: nn.Module, tokenizer: Any = None) -> None:
    """Put the two functions in place. In place; once is enough."""
    name = active_adapter(model)
    method = spec_of(model, name).method
    if method.schedule(adapters_of(model, name), 10**6, 1) is not None:
        raise ConfigError(
            f"{method.name} moves what it trains by a schedule, which transformers' Trainer does "
            "not drive.",
            fix="train with lorica.train",
        )
    foreign: Any = model
    foreign.save_pretrained = partial(save_adapter, model, tokenizer=tokenizer)
    foreign.load_state_dict = partial(load_tensors, model)


def active_adapter(model: nn.Module) -> str:
    """The name of the one active adapter. Raises: ConfigError if there is another number."""
    active = switch_of(model).active
    if len(active) != 1:
        raise ConfigError(
            f"a Trainer saves one adapter, and {len(active)} are active: {listed(active)}.",
            fix="lorica.activate(model, NAME)",
        )
    return active[0]


def save_adapter(
    model: nn.Module, save_directory: str | Path, *, tokenizer: Any = None,
    is_main_process: bool = True, state_dict: Mapping[str, Tensor] | None = None, **options: Any,
) -> None:  # fmt: skip
    """What `save_pretrained` does on a model that a Trainer trains an adapter of.

    The files join those that are in the folder.
    """
    if state_dict:
        raise ConfigError(
            "the Trainer gives the tensors of a sharded model (FSDP, DeepSpeed), which the adapter "
            "cannot be taken from.",
            fix="train with lorica.train, or on one device a process",
        )
    if not is_main_process:
        return
    path, name = Path(save_directory), active_adapter(model)
    staging = path / f"{commit.STAGING}{uuid4().hex[:8]}"
    path.mkdir(parents=True, exist_ok=True)
    folder.save(model, staging, name, tokenizer=tokenizer)
    if path.name.startswith(f"{PREFIX_CHECKPOINT_DIR}-"):
        commit.write_tensors(staging / TENSORS, tensors_of(model, name))
    # The manifest comes last: its digests tell a folder that a kill left half written.
    for file in sorted(staging.iterdir(), key=lambda file: file.name == folder.MANIFEST):
        os.replace(file, path / file.name)
    staging.rmdir()


def tensors_of(model: nn.Module, name: str) -> dict[str, Tensor]:
    """The adapter's tensors under the names that they have in the model, each once."""
    kept = {id(tensor) for tensor in adapter_state(model, name).values()}
    found: dict[str, Tensor] = {}
    for key, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in kept:
            kept.remove(id(tensor))
            found[key] = tensor
    return found


def load_tensors(
    model: nn.Module, state_dict: Mapping[str, Tensor], *args: Any, **options: Any
) -> Any:
    """What `load_state_dict` does: the adapter's own tensors are read strictly.

    Raises: FileError if names or shapes are not those of the adapter, or a number is not finite.
    """
    names = {key.split(f".{PORT}.")[1].partition(".")[0] if f".{PORT}." in key else None
             for key in state_dict}  # fmt: skip
    (name,) = names if len(names) == 1 else (None,)
    if name is None or name not in switch_of(model).specs:
        return type(model).load_state_dict(model, state_dict, *args, **options)
    plain = {key.replace(f".{PORT}.{name}.", "."): tensor for key, tensor in state_dict.items()}
    load_adapter_state(model, plain, name, source="the Trainer's checkpoint")
    return _IncompatibleKeys([], [])
