"""An adapter folder: PEFT's layout where PEFT knows the method, and our manifest beside it.

    adapter_model.safetensors   the trained tensors
    adapter_config.json         PEFT's own keys only
    manifest.json               method, targets, base fingerprint, digests, versions
    README.md                   a model card

Loading is strict: a tensor missing, left over or misshaped, a changed byte, or another base
is an error that names it, and leaves the model as it was.
"""

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from torch import nn

from lorica import plain_files
from lorica.base.classifier import names_of
from lorica.base.fingerprint import Fingerprint, differences, fingerprint, grade
from lorica.core.attach import activate, attach, detach
from lorica.core.blocks import innermost
from lorica.core.drive import check_driven
from lorica.core.port import Spec, spec_of, switch_of
from lorica.core.site import PORT
from lorica.core.start import skip_starts
from lorica.core.state import adapter_state, load_adapter_state, not_finite
from lorica.core.targets import without_dead
from lorica.data.classes import class_names_fault
from lorica.data.prompt_format import PromptFormat
from lorica.errors import BaseError, ConfigError, FileError, TrainingError, listed
from lorica.formats import commit
from lorica.formats.adapter_folder import adapter_folder
from lorica.formats.card import CARD, card, kept_card
from lorica.formats.manifest import (
    FORMAT,
    MANIFEST,
    WEIGHTS,
    check_agrees,
    check_floats,
    check_format,
    spec_from,
)
from lorica.formats.peft.beside import unwrapped
from lorica.formats.peft.kinds import layout_for, layout_of, peft_notices
from lorica.formats.peft.layout import config_of
from lorica.recipe.versions import versions

CONFIG, PICKLED = "adapter_config.json", "adapter_model.bin"


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
    base_path: where the base comes from; None: what the model says of itself.
    labels: class names of a sequence classifier, in the order of its outputs; None: those that
        its config gives.
    trained: what the model card says of the data, the settings and the figures.
    prompt_format: how its rows were put into words; chat, generate and eval take it from here.
    with_tokenizer: write `tokenizer` into the folder, because it is not the base's own.

    An adapter folder that is there gives way. Raises: ResourceError if `path` holds something
    else, or cannot be written; ConfigError if the adapter was trained without its schedule, or
    `labels` are not names of classes;
    TrainingError if a tensor has a NaN or an infinity in it. A folder that is there stays as it
    was when it raises. Warns, unless it is not to: PEFT would not read the adapter as it is.
    """
    path, spec = Path(path), spec_of(model, name)
    check_driven(model, name)
    check_finite(model, path, name)
    labels = names_of(model) if labels is None else labels
    if labels is not None and (fault := class_names_fault(labels)):
        raise ConfigError(f"labels are not the names of classes: {fault}.", labels=listed(labels))
    whole = spec.targets.modules_to_save
    base = fingerprint(model, path=base_path or "", tokenizer=tokenizer, whole=whole)
    with commit.folder(path, replace=is_all_adapter(path)) as staging:
        layout = layout_for(model, name)
        if layout is None:
            state = adapter_state(model, name)
        else:
            state = layout.write(model, name)
            commit.write_json(staging / CONFIG, config_of(layout, model, name, base.path))
        commit.write_tensors(staging / WEIGHTS, state)
        if with_tokenizer:
            tokenizer.save_pretrained(staging)
        files = {file.name: commit.digest(file) for file in sorted(staging.iterdir())}
        commit.write_json(
            staging / MANIFEST,
            {
                "format": FORMAT,
                "method": {"name": spec.method.name, **asdict(spec.method)},
                "targets": asdict(spec.targets),
                "seed": spec.seed,
                "base": base.as_dict(),
                "dtype": dtype_of(model),
                "labels": labels,
                "prompt_format": prompt_format and prompt_format.as_dict(),
                "files": files,
                "versions": versions(),
            },
        )
        text = kept_card(path) or card(
            spec,
            base,
            labels,
            peft=layout is not None,
            trained=trained or {},
            numbers=sum(tensor.numel() for tensor in state.values()),
        )
        commit.write_text(staging / CARD, text)
    for notice in peft_notices(model, name) if warn else ():
        warnings.warn(notice, PeftWarning, stacklevel=2)
    return path


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
    path = adapter_folder(path)
    notices: list[str] = []
    source = find(path)
    manifest = commit.read_json(path / MANIFEST) if plain_files.is_file(path / MANIFEST) else None
    if manifest is not None:
        check_format(manifest, path)
        commit.check_digests(path, manifest["files"])
        notices += check_base(manifest, spec_from(manifest, path), model, tokenizer, allow_base)
    file = commit.read_tensors(source)
    layout, config = None, {}
    if manifest is None or CONFIG in manifest["files"]:
        check_floats(file, source)
    if manifest is not None:
        spec = spec_from(manifest, path)
        if CONFIG in manifest["files"]:
            config = commit.read_json(path / CONFIG)
            layout = layout_of(config, str(path))
            layout.refuse(config, str(path))
    else:
        file = unwrapped(file)
        config = commit.read_json(path / CONFIG)
        layout = layout_of(config, str(path))
        spec = layout.spec(config, file, str(path))
        targets, passed_over = without_dead(model, spec.targets, spec.method.kinds)
        spec, notices = replace(spec, targets=targets), notices + passed_over
        notices.append(f"{path} has no {MANIFEST}: that its base is this one cannot be verified")
        notices += layout.notes(model)
    acting, block = switch_of(model).route.names, innermost(switch_of(model))
    chosen = block and block.route
    with skip_starts() if manifest is not None else nullcontext():
        attach(model, spec, name)
    try:
        if layout is not None:
            if manifest is not None:
                check_agrees(config, config_of(layout, model, name, ""), path)
            file = layout.read(model, name, file, config, str(source))
        load_adapter_state(model, file, name, source=str(source))
    except BaseException:
        detach(model, name)
        activate(model, *acting)
        if block is not None:
            block.route = chosen
        raise
    switch_of(model).driven.add(name)
    return notices


def check_finite(model: nn.Module, path: Path, name: str) -> None:
    """Raises: TrainingError, naming every tensor of adapter `name` that is not finite."""
    if broken := not_finite(adapter_state(model, name)):
        there = f"; {path} stays as it was" if is_adapter(path) else ""
        raise TrainingError(
            f"adapter {name!r} has NaN or infinite numbers, and is not saved{there}.",
            tensors=listed(broken),
            fix="train it again with a lower learning rate, or load an earlier checkpoint",
        )


def dtype_of(model: nn.Module) -> str | None:
    """The dtype that the base computes in: of its first floating-point matrix."""
    for name, tensor in model.named_parameters():
        if PORT not in name.split(".") and tensor.is_floating_point() and tensor.ndim > 1:
            return str(tensor.dtype).removeprefix("torch.")
    return None


def is_adapter(path: Path) -> bool:
    return any(plain_files.is_file(path / name) for name in (MANIFEST, CONFIG))


def is_all_adapter(path: Path) -> bool:
    """`path` is an adapter folder with nothing in it that a new adapter does not replace."""
    inside = {p.name for p in path.iterdir()} if path.is_dir() else set()
    if not is_adapter(path) or inside <= {WEIGHTS, CONFIG, MANIFEST, CARD}:
        return is_adapter(path)
    files = commit.read_json(path / MANIFEST).get("files") if MANIFEST in inside else None
    return isinstance(files, dict) and inside <= {WEIGHTS, CONFIG, MANIFEST, CARD, *files}


def find(path: Path) -> Path:
    """The weights of an adapter folder. Raises: FileError that says what is there instead."""
    if plain_files.is_file(path / WEIGHTS) and is_adapter(path):
        return path / WEIGHTS
    if (path / PICKLED).is_file():
        convert = (
            'python -c "import torch, safetensors.torch as s; s.save_file(torch.load('
            f"'{path / PICKLED}', weights_only=True), '{path / WEIGHTS}')\""
        )
        raise FileError(
            f"{path / PICKLED} is a pickle, which can run code when it is read.",
            fix=f"convert it where that is safe: {convert}",
        )
    inside = [p.parent.name for p in path.glob(f"*/{WEIGHTS}")] if path.is_dir() else []
    raise FileError(
        f"{path} is no adapter folder." if path.exists() else f"{path} is not there.",
        needed=f"{WEIGHTS} and {MANIFEST} or {CONFIG}",
        found=listed(sorted(p.name for p in path.iterdir()), 8) if path.is_dir() else "nothing",
        **({"adapters_inside": ", ".join(inside)} if inside else {}),
        fix="name the folder that holds these files",
    )


def check_base(
    manifest: dict[str, Any], spec: Spec, model: nn.Module, tokenizer: Any, allow_base: str | None
) -> list[str]:
    """Compare the base here with the one in the manifest.

    Returns: notices. Raises: BaseError unless the grade is allowed.
    """
    try:
        then = Fingerprint(**manifest["base"])  # no key too many, and none of another type
        then = TypeAdapter(Fingerprint).validate_python(vars(then))
    except (TypeError, ValueError) as error:
        raise FileError("the manifest's base fingerprint is damaged.", why=error) from None
    now = fingerprint(model, tokenizer=tokenizer, whole=spec.targets.modules_to_save)
    verdict, other = grade(then, now), differences(then, now)
    kinds = {k: what for k, what in other.items() if k not in ("training", "chat_template")}
    notices = []
    if verdict != "same":
        trained = f"trained on {then.path}, {then.quantisation or 'float'}"
        words = "".join(f"; other {kind}: {what}" for kind, what in kinds.items())
        notices.append(f"base: {verdict} ({trained}){words}")
    if verdict not in allowed(allow_base):
        raise BaseError(
            f"this is not the base that the adapter was trained on: {verdict}.",
            trained_on=f"{then.path} ({then.architecture}, {then.parameters:,} parameters)",
            here=f"{now.path} ({now.architecture}, {now.parameters:,} parameters)",
            **({f"other_{k}": what for k, what in kinds.items()} if verdict != "different" else {}),
            fix=f'load that base, or pass allow_base="{verdict}" if it is meant',
        )
    if then.weights is None:
        notices.append(
            "the adapter is of an earlier lorica: of its base samples of the weights are compared, "
            "and not the config; save it again to have all compared"
        )
        if tokenizer is not None and then.tokenizer not in (None, now.tokenizer):
            notices.append("the tokenizer is not the one of training")
    if "training" in other:
        notices.append(f"the base's config differs in what acts in training: {other['training']}")
    if "chat_template" in other:
        notices.append("the chat template is not the one of training")
    return notices


def allowed(allow_base: str | None) -> set[str | None]:
    """The grades of a base that are accepted."""
    more = {"same shapes"} if allow_base == "different" else set()
    return {"same", "same but quantised", allow_base} | more
