"""Use an adapter in transformers' `Trainer`: it saves, resumes and keeps the best as an adapter.

    trainer = Trainer(model, args, callbacks=[lorica.AdapterCallback()], ...)

A Trainer saves with `model.save_pretrained` and reads back with `model.load_state_dict`. The whole
model that it would write has the adapter under names that `from_pretrained` passes over: what is
loaded from it is the base. A callback has no hook for either, so this one replaces two functions
of the model that it is given:

    model.save_pretrained(folder)    writes the adapter folder (and, in a checkpoint, a small
                                     model.safetensors with the adapter's tensors alone and a record
                                     of its settings and base, which the Trainer reads back)
    model.load_state_dict(state)     of the adapter's tensors: strict; of others: as it was

After `lorica.detach` or `lorica.merge` both are the model's own again.
"""

import os
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from lorica.core.bank import attached, bank_of, spec_of
from lorica.core.site import ADAPTERS
from lorica.core.state import adapter_state, load_adapter_state
from lorica.errors import ConfigError, TrainingError, listed
from lorica.formats import commit
from lorica.formats.adapter_folder import MANIFEST
from lorica.formats.save import save
from lorica.training.trainer_checks import check_dropout, check_gradients, check_head, check_rates
from lorica.training.trainer_record import RECORD, check_record, read_record, record_of

TENSORS = "model.safetensors"


class AdapterCallback(TrainerCallback):
    """Let a Trainer save and load the active adapter of its model instead of the whole model.

    Raises: ConfigError, before the first step, if not one adapter is active, or its method has a
        schedule, which a Trainer does not drive, or rates or dropout that it has not.
        TrainingError, before the first step after resume_from_checkpoint, if the checkpoint's
        adapter or base is another one, or was changed; before the first update, if the loss does
        not depend on the adapter.
    """

    gradients_checked = False

    def on_init_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        install(given["model"], given.get("processing_class"))

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        model, tokenizer = given["model"], given.get("processing_class")
        late = not isinstance(vars(model).get("load_state_dict"), Loader)
        loader = install(model, tokenizer)
        if state.global_step > 0:
            check_resumed(model, loader, tokenizer, late=late)
        loader.forget()
        name = active_adapter(model)
        check_dropout(model, name, args)
        check_head(model, name)
        check_rates(model, name, given.get("optimizer"))
        self.gradients_checked = bool(args.deepspeed)  # it keeps the gradients elsewhere

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if not self.gradients_checked:
            check_gradients(given["model"], active_adapter(given["model"]))
            self.gradients_checked = True

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        install(given["model"], given.get("processing_class")).forget()  # the best checkpoint


class Loader:
    """`load_state_dict` of a model that a Trainer trains an adapter of; keeps what it was given.

    record: of the checkpoint. complete: it had every tensor of the active adapter.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.forget()

    def forget(self) -> None:
        self.record: dict[str, Any] | None = None
        self.complete = False

    def __call__(self, state_dict: Mapping[str, Tensor], *args: Any, **options: Any) -> Any:
        """What `load_state_dict` does: the adapter's own tensors are read strictly.

        Raises: FileError if names or shapes are not those of the adapter, or a number is not
            finite; TrainingError if a tensor of a checkpoint is not what was saved.
        """
        self.forget()
        model, bank = self.model, bank_of(self.model)
        tensors = {key: tensor for key, tensor in state_dict.items() if key != RECORD}
        if RECORD in state_dict:
            self.record = read_record(state_dict[RECORD], tensors)
        self.complete = all(tensors_of(model, n).keys() <= tensors.keys() for n in bank.route.names)
        names = {
            key.split(f".{ADAPTERS}.")[1].partition(".")[0] if f".{ADAPTERS}." in key else None
            for key in tensors
        }
        (name,) = names if len(names) == 1 else (None,)
        if name is None or name not in bank.specs:
            return type(model).load_state_dict(model, tensors, *args, **options)
        plain = {
            key.replace(f".{ADAPTERS}.{name}.", "."): tensor for key, tensor in tensors.items()
        }
        load_adapter_state(model, plain, name, source="the Trainer's checkpoint")
        return _IncompatibleKeys([], [])


def check_resumed(model: nn.Module, loader: Loader, tokenizer: Any, *, late: bool) -> None:
    """Check the state of a resumed Trainer. late: it was loaded before the callback was added.

    Warns if the checkpoint has no record. Raises: TrainingError.
    """
    name = active_adapter(model)
    if late:
        raise TrainingError(
            "the callback was added after the Trainer was created, and cannot check what a resume "
            "has loaded.",
            fix="Trainer(..., callbacks=[lorica.AdapterCallback()])",
        )
    if loader.record is not None:
        check_record(loader.record, model, name, tokenizer)
    if not loader.complete:
        raise TrainingError(
            f"the Trainer's checkpoint has not all tensors of adapter {name!r}: training would go "
            "on from a fresh adapter.",
            fix="resume from a checkpoint of this adapter, or start a new run",
        )
    if loader.record is None:
        warnings.warn(
            "the Trainer's checkpoint was saved without lorica.AdapterCallback: that its adapter "
            "has the settings and the base of this one cannot be checked.",
            stacklevel=2,
        )


def install(model: nn.Module, tokenizer: Any = None) -> Loader:
    """Put the two functions in place. In place; once is enough. Returns: load_state_dict."""
    name = active_adapter(model)
    method = spec_of(model, name).method
    if method.schedule(attached(model, name).adapters, 10**6, 1) is not None:
        raise ConfigError(
            f"{method.name} trains by a schedule, which transformers' Trainer does not drive.",
            fix="train with lorica.train",
        )
    foreign: Any = model
    foreign.save_pretrained = partial(save_adapter, model, tokenizer=tokenizer)
    loader = vars(model).get("load_state_dict")
    if not isinstance(loader, Loader):
        loader = foreign.load_state_dict = Loader(model)
    return loader


def active_adapter(model: nn.Module) -> str:
    """The name of the one active adapter. Raises: ConfigError if there is another number."""
    active = bank_of(model).route.names
    if len(active) != 1:
        raise ConfigError(
            f"a Trainer saves one adapter, and {len(active)} are active: {listed(active)}.",
            fix="lorica.activate(model, NAME)",
        )
    return active[0]


def save_adapter(
    model: nn.Module,
    save_directory: str | Path,
    *,
    tokenizer: Any = None,
    is_main_process: bool = True,
    state_dict: Mapping[str, Tensor] | None = None,
    **options: Any,
) -> None:
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
    save(model, staging, name, tokenizer=tokenizer)
    if path.name.startswith(f"{PREFIX_CHECKPOINT_DIR}-"):
        tensors = tensors_of(model, name)
        record = record_of(commit.read_json(staging / MANIFEST), name, tensors)
        commit.write_tensors(staging / TENSORS, {**tensors, RECORD: record})
    # The manifest comes last: its digests tell a folder that a kill left half written.
    for file in sorted(staging.iterdir(), key=lambda file: file.name == MANIFEST):
        os.replace(file, path / file.name)
    staging.rmdir()


def tensors_of(model: nn.Module, name: str) -> dict[str, Tensor]:
    """The adapter's tensors under the names that they have in the model, each once."""
    own = {id(tensor) for tensor in adapter_state(model, name).values()}
    tensors: dict[str, Tensor] = {}
    for key, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in own:
            own.remove(id(tensor))
            tensors[key] = tensor
    return tensors
