"""Start a new run from the adapter of another run, or of PEFT: `init_from`.

The adapter is read and checked as for any use. Its settings must equal those of the new run where
they enter the forward pass. Then its tensors replace the fresh start.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from lorica.base.load import LoadedModel
from lorica.core.attach import activate, detach
from lorica.core.bank import Spec, attached, spec_of
from lorica.core.state import adapter_state, load_adapter_state
from lorica.data.load import Data
from lorica.data.prompt_format import format_notices
from lorica.errors import ConfigError, FileError, listed
from lorica.formats.adapter_file import AdapterFile, read
from lorica.formats.attach import attach
from lorica.formats.open_adapter import head_rows

TRAINING_ONLY = {"dropout", "init", "loraplus_lr_ratio"}
"""Settings of methods without an effect on the forward pass of a trained adapter."""
SOURCE = "init_from"
MAX_NAMED = 12
"""Classes that a message names at most."""


def start_from(base: LoadedModel, path: str, name: str, data: Data) -> list[str]:
    """Copy the trained tensors at `path`, a run or an adapter, into adapter `name`. In place.

    Returns: notices. Raises: ConfigError if its settings are not those of adapter `name`, its
    classes are not those of the rows, or its method has a schedule, which cannot start from a
    trained adapter; FileError, BaseError as for loading.
    """
    model, method = base.model, spec_of(base.model, name).method
    if method.schedule(attached(model, name).adapters, 10**6, 1) is not None:
        raise ConfigError(
            f"init_from: {method.name} has a schedule, which cannot start from a trained adapter.",
            fix=f"lorica export {path} --to lora --output DIR, and start a lora run from DIR",
        )
    file = read(path)
    notices = _check_rows(base, file, data)
    notices += attach(model, file, SOURCE, tokenizer=base.tokenizer)
    try:
        _check_settings(base, path, name)
        load_adapter_state(model, adapter_state(model, SOURCE), name, source=path)
    except FileError as error:
        raise ConfigError(
            f"init_from: {path} has other targets or ranks than this run.",
            **error.facts,
            fix=_fix(path),
        ) from None
    finally:
        detach(model, SOURCE)
        activate(model, name)
    return [f"training begins with the adapter of {path}", *notices]


def _check_rows(base: LoadedModel, file: AdapterFile, data: Data) -> list[str]:
    """Compare the classes and the prompt format of the adapter with those of the rows.

    Returns: notices. Raises: ConfigError if the rows have other classes, or another number.
    """
    notices = []
    if file.manifest is not None:
        notices = format_notices(file.prompt_format, data.prompt_format, base.tokenizer)
    return notices if data.labels is None else notices + _check_classes(base, file, data.labels)


def _check_classes(base: LoadedModel, file: AdapterFile, ours: list[str]) -> list[str]:
    """Each output of the adapter's head must stay the class that it was trained for.

    ours: the classes of the rows.
    """
    theirs, path = file.labels, file.folder
    if theirs == ours:
        return []
    outputs = head_rows(file, base.path) if theirs is None else []
    if theirs is None and set(outputs) <= {len(ours)}:
        notice = (
            f"{path} does not name its classes; the outputs of its head are taken as "
            f"{listed(ours, MAX_NAMED)}, in this order"
        )
        return [notice] if outputs else []
    reordered = theirs is not None and sorted(theirs) == sorted(ours)
    raise ConfigError(
        f"init_from: {path} has "
        f"{'its classes in another order' if reordered else 'other classes'} than the rows.",
        adapter=listed(theirs, MAX_NAMED) if theirs else f"{outputs[0]} classes without names",
        rows=f"{len(ours)} classes: {listed(ours, MAX_NAMED)}",
        fix="label the rows with all classes of the adapter and no others, or leave out init_from",
    )


def _check_settings(base: LoadedModel, path: str, name: str) -> None:
    ours, theirs = (spec_of(base.model, n) for n in (name, SOURCE))
    if ours.method.name != theirs.method.name:
        raise ConfigError(
            f"init_from: {path} is an adapter of {theirs.method.name}, and the run trains "
            f"{ours.method.name}.",
            fix=_fix(path),
        )
    own, other = _forward_settings(ours), _forward_settings(theirs)
    wrong = [key for key in own if own[key] != other[key]]
    if wrong:
        raise ConfigError(
            f"init_from: {path} has other settings of {ours.method.name} than this run.",
            **{key: f"{other[key]} there, {own[key]} here" for key in wrong},
            fix=_fix(path),
        )


def _forward_settings(spec: Spec) -> dict[str, Any]:
    """The settings that the forward pass depends on; an alpha that is not given is 2 r."""
    settings = {k: v for k, v in asdict(spec.method).items() if k not in TRAINING_ONLY}
    if "alpha" in settings and settings["alpha"] is None:
        settings["alpha"] = 2.0 * settings["r"]
    return {**settings, "alpha_pattern": dict(spec.targets.alpha_pattern)}


def _fix(path: str) -> str:
    if not (Path(path) / "config.yaml").is_file():
        return f"give this run the method and targets that `lorica info {path}` shows"
    return f"use its settings: lorica train {path}/config.yaml --init_from {path} --output NEW"
