"""Write an adapter folder: in PEFT's layout where PEFT knows the method, and with our manifest."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lorica.base.classifier import names_of
from lorica.base.fingerprint import fingerprint
from lorica.core.bank import spec_of
from lorica.core.drive import check_driven
from lorica.core.site import ADAPTERS
from lorica.core.state import adapter_state, not_finite
from lorica.data.classes import class_names_fault
from lorica.data.prompt_format import PromptFormat
from lorica.errors import ConfigError, TrainingError, listed
from lorica.formats import commit
from lorica.formats.adapter_folder import (
    CARD,
    CONFIG,
    MANIFEST,
    WEIGHTS,
    can_be_replaced,
    is_adapter,
)
from lorica.formats.card import card, edited_card
from lorica.formats.manifest import Manifest
from lorica.formats.peft.layout import config_of
from lorica.formats.peft.layouts import layout_for, peft_notices


class PeftWarning(UserWarning):
    """PEFT would not adapt the layers that an adapter is on; lorica reads it all the same."""


def save(
    model: nn.Module,
    path: str | Path,
    name: str = "default",
    *,
    tokenizer: Any = None,
    base_path: str | None = None,
    labels: list[str] | None = None,
    trained: Mapping[str, Any] | None = None,
    prompt_format: PromptFormat | None = None,
    with_tokenizer: bool = False,
    warn: bool = True,
) -> Path:
    """Write adapter `name` as a folder, whole or not at all.

    tokenizer: its vocabulary and chat template enter the fingerprint when it is given.
    base_path: where the base was loaded from; None: as the model's config says.
    labels: class names of a sequence classifier, in the order of its outputs; None: as its config
        says.
    trained: what the model card says of the data, the settings and the figures.
    prompt_format: how the rows were written as text; chat, generate and eval read it.
    with_tokenizer: write `tokenizer` into the folder, because it is not the base's own.

    An adapter folder at `path` is replaced. Raises: ResourceError if `path` holds something else,
    or cannot be written; ConfigError if the adapter was trained without its schedule, or `labels`
    are not names of classes; TrainingError if a tensor has a NaN or an infinity in it. The folder
    at `path` stays as it was when it raises. Warns, if `warn`, that PEFT would not read the
    adapter as it is.
    """
    path, spec = Path(path), spec_of(model, name)
    check_driven(model, name)
    check_finite(model, path, name)
    labels = names_of(model) if labels is None else labels
    if labels is not None and (fault := class_names_fault(labels)):
        raise ConfigError(f"labels are not the names of classes: {fault}.", labels=listed(labels))
    whole = spec.targets.modules_to_save
    base = fingerprint(model, path=base_path or "", tokenizer=tokenizer, whole=whole)
    with commit.folder(path, replace=can_be_replaced(path)) as staging:
        peft, tensors = _write_tensors(model, name, staging, base.path)
        if with_tokenizer:
            tokenizer.save_pretrained(staging)
        files = {file.name: commit.digest(file) for file in sorted(staging.iterdir())}
        manifest = Manifest(spec, base, files, dtype_of(model), labels, prompt_format)
        commit.write_json(staging / MANIFEST, manifest.as_dict())
        numbers = sum(tensor.numel() for tensor in tensors.values())
        text = edited_card(path) or card(
            spec, base, labels, peft=peft, trained=trained or {}, numbers=numbers
        )
        commit.write_text(staging / CARD, text)
    for notice in peft_notices(model, name) if warn else ():
        warnings.warn(notice, PeftWarning, stacklevel=2)
    return path


def _write_tensors(
    model: nn.Module, name: str, folder: Path, base_path: str
) -> tuple[bool, dict[str, Tensor]]:
    """Write the tensors, and PEFT's config. Returns: (PEFT knows the method, the tensors)."""
    layout = layout_for(model, name)
    if layout is None:
        tensors = adapter_state(model, name)
    else:
        tensors = layout.write(model, name)
        commit.write_json(folder / CONFIG, config_of(layout, model, name, base_path))
    commit.write_tensors(folder / WEIGHTS, tensors)
    return layout is not None, tensors


def check_finite(model: nn.Module, path: Path, name: str) -> None:
    """Raises: TrainingError, naming every tensor of adapter `name` that is not finite."""
    if broken := not_finite(adapter_state(model, name)):
        unchanged = f"; {path} stays as it was" if is_adapter(path) else ""
        raise TrainingError(
            f"adapter {name!r} has NaN or infinite numbers, and is not saved{unchanged}.",
            tensors=listed(broken),
            fix="train it again with a lower learning rate, or load an earlier checkpoint",
        )


def dtype_of(model: nn.Module) -> str | None:
    """The dtype that the base computes in: of its first floating-point matrix."""
    for name, tensor in model.named_parameters():
        if ADAPTERS not in name.split(".") and tensor.is_floating_point() and tensor.ndim > 1:
            return str(tensor.dtype).removeprefix("torch.")
    return None
