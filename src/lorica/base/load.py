"""Load a base: a local folder, a hub id, or the bundled one; in floats, or in 4 or 8 bits.

Weights come from safetensors only, and no code of the model's author is run.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorica.base import classifier, quantised_model
from lorica.base.bitsandbytes_layers import quantisation_of
from lorica.base.bundled import FOLDER, NAME
from lorica.base.causal import check_causal
from lorica.base.classifier import Head
from lorica.base.context_length import config_positions, fit_padding, has_rope, positions_of
from lorica.base.folder import check_folder
from lorica.base.hub import reachable_or_cached
from lorica.base.length_thresholds import forget_lengths
from lorica.base.load_checks import (
    MAX_POSITIONS,
    check_runs,
    check_token_ids,
    check_weights,
    checked_tokenizer,
)
from lorica.base.load_errors import check_kind_of_model, explained, quantised_elsewhere
from lorica.base.quantise import KINDS, check_kind, require
from lorica.base.slow_dtype import why_slow
from lorica.core.bank import bank_of
from lorica.core.draws import drawing
from lorica.data.prompt_format import PromptFormat
from lorica.errors import BaseError, ConfigError, FileError, listed

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class LoadedModel:
    """A frozen model with its tokenizer.

    path: what was asked for: a folder, a hub id, or "bundled".
    labels: the classes of a sequence classifier; None for a language model.
    notices: sentences for the user on what the loader noticed.
    head: what is fresh of a classifier's head, and what of it is trained whole.
    prompt_format: how the rows of its adapter were put into words; None: not recorded.
    """

    model: nn.Module
    tokenizer: Any
    path: str
    labels: list[str] | None = None
    notices: list[str] = field(default_factory=list)
    head: Head = field(default_factory=Head)
    prompt_format: PromptFormat | None = None

    @property
    def max_length(self) -> int | None:
        """The longest row in tokens that the model takes, where it says so.

        Positions that an active adapter takes for itself are not there for the rows.
        """
        most = positions_of(self.model.config, self.model)
        bank = bank_of(self.model)
        segments = [segment.adapters for segment in bank.current.segments]
        positions = {name: bank.specs[name].method.positions() for own in segments for name in own}
        taken = max((sum(positions[name] for name in own) for own in segments), default=0)
        return None if most is None else most - taken


def load(
    path: str,
    *,
    dtype: str = "float32",
    labels: list[str] | None = None,
    quantisation: str | None = None,
    double_quantisation: bool = True,
) -> LoadedModel:
    """The base at `path`, frozen and in eval mode, on the accelerator if there is one.

    dtype: "float32" or "bfloat16": of what is computed, and of the layers that are not packed.
    labels: classes; with them the base is loaded as a sequence classifier, whose head starts
        from seed 0 where the checkpoint has none for these classes in this order.
    quantisation: "nf4", "fp4" or "int8": pack the linear layers, all but heads. None: load it
        as it is, which may be packed already; "none": refuse it if it is.
    double_quantisation: pack the scales of 4-bit blocks too.

    Raises: ConfigError, BaseError, FileError; MissingError without bitsandbytes.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.utils import logging

    if dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}.", known=", ".join(DTYPES))
    pack = None if quantisation == "none" else quantisation
    if pack is not None:
        check_kind(pack)
    folder = where(path)
    kind = AutoModelForCausalLM if labels is None else AutoModelForSequenceClassification
    options: dict[str, Any] = {"dtype": DTYPES[dtype]}
    if labels is not None:
        options |= classifier.settings_for(labels, _config(path))
    logging.set_verbosity_error()  # what it would warn of is checked below, and named
    logging.disable_progress_bar()
    there = _quantised_as(path)
    check_kind_of_model(path, _config(path), classifier=labels is not None)
    skeleton = None
    if there in KINDS:
        _check_asked(path, quantisation, there)
        require()
        skeleton = _skeleton(path, kind)
        options |= {"dtype": torch.float32, "device_map": {"": "cpu"}}
    elif pack is not None:
        require()
        options["dtype"] = "auto"  # the checkpoint's own, so that its files are mapped
    check_weights(path, folder, kind, options)
    try:
        model, info = explained(path, lambda: _read(folder, kind, options))
    except BaseError as error:
        if there is None or there in KINDS:
            raise
        raise quantised_elsewhere(path, there, error) from None
    _check_alone(path, model)
    head, lines = _check_loaded(path, model, info, labels)
    if skeleton is not None:
        quantised_model.take_over(model, DTYPES[dtype], skeleton)
    elif pack is not None:
        quantised_model.pack(
            model,
            folder,
            DTYPES[dtype],
            pack,
            double_quantisation=double_quantisation,
            whole=head.whole,
        )
    text = load_tokenizer(path)
    device = torch.accelerator.current_accelerator(check_available=True)
    model = model.to(device or "cpu")
    check_token_ids(path, model)
    check_runs(path, model)
    forget_lengths(model)
    base = LoadedModel(model.eval().requires_grad_(False), text, path, labels, head=head)
    base.notices += [*lines, *quantised_model.said(model)]
    if device is None and (slow := why_slow(DTYPES[dtype])):
        base.notices.append(slow)
    if text.pad_token_id is None:
        text.pad_token = text.eos_token
    base.notices += fit_padding(model, text)
    if labels is not None and model.config.pad_token_id is None:
        model.config.pad_token_id = text.pad_token_id
    if labels is None:
        check_causal(model, path)
    return base


def _check_alone(path: str, model: Any) -> None:
    """Raises: BaseError if transformers attached an adapter that lies beside the base."""
    if getattr(model, "_hf_peft_config_loaded", False):
        raise BaseError(
            f"{path} holds an adapter beside the base, and transformers attached it.",
            fix="name a base without adapter_config.json",
        )


def _read(folder: str, kind: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What transformers makes of the files, and what it says of it."""
    with drawing(0):  # the head of a new classifier
        return kind.from_pretrained(
            folder,
            **options,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
        )


def load_tokenizer(path: str) -> Any:
    """The tokenizer of the base at `path`."""
    from transformers import AutoTokenizer

    folder = where(path)
    load = partial(AutoTokenizer.from_pretrained, folder, trust_remote_code=False)
    return checked_tokenizer(path, explained(path, load))


def context_length(path: str) -> int | None:
    """The longest row in tokens that the base at `path` was made for; its weights stay unread."""
    from transformers import AutoModel

    config = _config(path)
    stated = getattr(config.get_text_config(), "max_position_embeddings", None)
    if stated not in (None, -1) and not (type(stated) is int and 0 < stated <= MAX_POSITIONS):
        raise BaseError(
            f"config.json of {path} has max_position_embeddings {stated!r:.80}, which is no "
            "length.",
            fix="correct that value, or download the model's config.json again",
        )
    if (most := config_positions(config)) is None or has_rope(config):
        return most  # there is no table of positions whose rows could be fewer
    return positions_of(config, _skeleton(path, AutoModel))


def vocabulary(path: str) -> int | None:
    """How many tokens the base at `path` has embeddings of, where its configuration says it."""
    return getattr(_config(path).get_text_config(), "vocab_size", None)


def hidden_size(path: str) -> int | None:
    """The width of the base at `path`, where its configuration says it."""
    return getattr(_config(path).get_text_config(), "hidden_size", None)


def _config(path: str) -> Any:
    from transformers import AutoConfig

    return explained(path, lambda: AutoConfig.from_pretrained(where(path), trust_remote_code=False))


def _skeleton(path: str, kind: Any) -> nn.Module:
    """The model without its weights, on no device."""
    config = _config(path)
    with torch.device("meta"):
        return explained(path, lambda: kind.from_config(config, trust_remote_code=False))


def _quantised_as(path: str) -> str | None:
    """How the checkpoint at `path` is quantised already, if it is."""
    return quantisation_of(getattr(_config(path), "quantization_config", None))[0]


def _check_asked(path: str, wanted: str | None, there: str) -> None:
    if wanted not in (None, there):
        words = "its floats were" if wanted == "none" else f"{wanted} was"
        raise BaseError(
            f"{path} is quantised already, as {there}, and {words} asked for.",
            fix=f"ask for {there} or for nothing, or name the float base",
        )


def where(path: str) -> str:
    """The folder of a base, or the hub id.

    Raises: BaseError, FileError if it is neither, or the folder is not a whole base.
    """
    if path == NAME:
        return str(FOLDER)
    local = Path(path)
    local_only = local.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1
    if local.exists() or local_only or local.suffix == ".gguf":
        check_folder(local)
        return str(local)
    return reachable_or_cached(path)


def own_classes(path: str, *, needed: bool = False) -> list[str] | None:
    """The classes of the base at `path`; None: it has no head that gives any. Weights stay unread.

    needed: raise a BaseError if it is a sequence classifier, and its head gives none.
    """
    config = _config(path)
    if needed:
        classifier.check_head(path, config)
    return classifier.own_classes(config)


def class_weights(path: str) -> list[str]:
    """The keys of the weights that give classes, of a classifier on the base at `path`."""
    from transformers import AutoModelForSequenceClassification

    return list(classifier.class_axes(_skeleton(path, AutoModelForSequenceClassification)))


def _check_loaded(
    path: str, model: nn.Module, info: Any, labels: list[str] | None
) -> tuple[Head, list[str]]:
    """Refuse a checkpoint that is not whole. Returns: the head of a classifier, and notices.

    In place: weights of a classification layer for other classes than `labels` start anew.
    """
    if labels is None:
        misshaped = sorted(map(str, info["mismatched_keys"]))
        head, notices = Head(lost=sorted(info["missing_keys"]), misshaped=misshaped), []
    else:
        config = _config(path)
        head = classifier.inspect(model, config, info, labels)
        notices = classifier.head_notices(config, labels, head.fresh)
    if head.lost or head.misshaped:
        raise FileError(
            f"the weights of {path} are not whole.",
            missing=listed(head.lost),
            misshaped=listed(head.misshaped),
            fix="download the model anew",
        )
    if extra := sorted(info["unexpected_keys"]):
        notices = [
            f"the checkpoint has tensors that the model leaves out: {listed(extra)}",
            *notices,
        ]
    return head, notices
