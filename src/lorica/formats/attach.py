"""Attach an adapter that was read from a folder to a model; `load` reads and attaches.

Attaching is strict: a tensor missing, left over or misshaped, or another base, is an error that
names it, and leaves the model as it was.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from lorica.base.fingerprint import Fingerprint
from lorica.core.attach import activate, detach
from lorica.core.attach import attach as attach_spec
from lorica.core.bank import Spec, bank_of
from lorica.core.blocks import innermost
from lorica.core.initialization import skip_initialization
from lorica.core.state import load_adapter_state
from lorica.core.targets import without_dead
from lorica.errors import FileError, listed
from lorica.formats.adapter_file import AdapterFile, read
from lorica.formats.adapter_folder import CONFIG, MANIFEST
from lorica.formats.base_check import check_base
from lorica.formats.peft.layout import config_of


def load(
    model: nn.Module,
    path: str | Path,
    name: str = "default",
    *,
    tokenizer: Any = None,
    allow_base: str | None = None,
) -> list[str]:
    """Attach the adapter in folder `path` to `model` as `name`, and make it the active one.

    path: of an adapter, or of a run.
    allow_base: the grade that is accepted beyond "same" and "same but quantised":
        "same shapes", or "different".

    Returns: notices on what could not be verified.
    Raises: FileError if the folder is damaged or does not fit; BaseError if the base is
        another one. The model is unchanged when it raises.
    """
    return attach(model, read(path), name, tokenizer=tokenizer, allow_base=allow_base)


def attach(
    model: nn.Module,
    file: AdapterFile,
    name: str = "default",
    *,
    tokenizer: Any = None,
    allow_base: str | None = None,
    here: Fingerprint | None = None,
) -> list[str]:
    """Attach `file` to `model` as the active adapter `name`. In place.

    here: the fingerprint of `model`, with its tokenizer; None: it is computed, from every weight.
    Returns, raises: as `load`.
    """
    spec, notices = _checked(model, file, tokenizer, allow_base, here)
    active, block = bank_of(model).route.names, innermost(bank_of(model))
    route = block and block.route
    with nullcontext() if file.manifest is None else skip_initialization():
        attach_spec(model, spec, name)
    try:
        _fill(model, file, name)
    except BaseException:
        detach(model, name)
        activate(model, *active)
        if block is not None:
            block.route = route
        raise
    bank_of(model).driven.add(name)
    return notices


def _checked(
    model: nn.Module,
    file: AdapterFile,
    tokenizer: Any,
    allow_base: str | None,
    here: Fingerprint | None,
) -> tuple[Spec, list[str]]:
    """What to attach of `file`, and notices. Raises: BaseError if `model` is another base."""
    if file.base is not None:
        whole = file.spec.targets.modules_to_save
        return file.spec, check_base(
            file.base, model, tokenizer, whole=whole, allow_base=allow_base, here=here
        )
    assert file.layout is not None  # a folder without a manifest is translated to PEFT's names
    targets, notices = without_dead(model, file.spec.targets, file.spec.method.kinds)
    notices = [*file.notices, *notices]
    notices.append(f"{file.folder} has no {MANIFEST}: its base cannot be verified")
    return replace(file.spec, targets=targets), notices + file.layout.notices(model)


def _fill(model: nn.Module, file: AdapterFile, name: str) -> None:
    """Copy the tensors of `file` into adapter `name`. In place. Raises: FileError."""
    tensors, source = dict(file.tensors), str(file.weights)
    if file.layout is not None:
        if file.manifest is not None:
            _check_agrees(file.config, config_of(file.layout, model, name, ""), file.folder)
        tensors = file.layout.read(model, name, tensors, file.config, source)
    load_adapter_state(model, tensors, name, source=source)


def _check_agrees(config: Mapping[str, Any], written: Mapping[str, Any], folder: Path) -> None:
    """Raises: FileError if adapter_config.json contradicts the manifest.

    written: the config that `save` writes for the manifest's adapter. Keys that only other
    writers know are not compared.
    """
    free = {"base_model_name_or_path", "inference_mode", "task_type"}  # others may set them
    differ = {
        key: f"{config.get(key)!r:.80} in {CONFIG}, {value!r:.80} by {MANIFEST}"
        for key, value in written.items()
        if key not in free and key in config and _comparable(config[key]) != _comparable(value)
    }
    if differ:
        raise FileError(
            f"the files of {folder} contradict each other: {listed(differ)}.",
            **differ,
            fix=f"copy the folder again, or delete {MANIFEST} if {CONFIG} is right",
        )


def _comparable(value: Any) -> Any:
    """A value for comparison: names in any order; none of them is None."""
    if isinstance(value, list | tuple):
        return sorted(map(str, value)) or None
    return None if value in ("", {}) else value
