"""Load a base: a local folder, a hub id, or the bundled one; in floats, or in 4 or 8 bits.

Weights come from safetensors only, and no code of the model's author is run.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lorica.base import classifier, quantised_model
from lorica.base.causal import check_causal
from lorica.base.classifier import Head
from lorica.base.context_length import fit_padding, positions_of
from lorica.base.describe import dtype_of_base, locate, quantised_as, read_config, skeleton
from lorica.base.dynamic_rope import reset_before_each_call
from lorica.base.frozen_product import speed_up_backward
from lorica.base.little_memory import in_little_memory
from lorica.base.load_checks import (
    check_forward,
    check_special_tokens,
    check_tokenizer,
    check_weights,
)
from lorica.base.load_errors import (
    check_model_type,
    translated_errors,
)
from lorica.base.model_view import config_of, model_view
from lorica.base.offload import check_offload, start_offload, to_device
from lorica.base.quantisation_config import unsupported_quantisation
from lorica.base.quantise import KINDS, check_kind, require
from lorica.base.slow_dtype import slow_dtype_notice
from lorica.base.zero_weights import zero_weights_notice
from lorica.core.bank import bank_of
from lorica.core.draws import drawing
from lorica.data.prompt_format import PromptFormat
from lorica.errors import BaseError, ConfigError, FileError, listed

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class LoadedModel:
    """A frozen model with its tokenizer.

    path: as it was asked for: a folder, a hub id, or "bundled".
    labels: the classes of a sequence classifier; None for a language model.
    notices: sentences for the user on what the loader noticed.
    head: which weights of a classifier's head are new, and which are trained whole.
    prompt_format: how the rows of its adapter were written as text; None: not recorded.
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


@dataclass(frozen=True)
class _Checkpoint:
    """What is to be loaded. labels: see `load`. auto: transformers' class that reads it.

    prequantised: how its files are quantised already; quantise_to: how to quantise its floats.
    """

    path: str
    folder: str
    config: Any
    auto: Any
    labels: list[str] | None
    prequantised: str | None
    quantise_to: str | None

    @property
    def kind(self) -> str | None:
        """How the layers of the loaded model are quantised; None: they hold floats."""
        return self.quantise_to or self.prequantised

    @property
    def is_packed(self) -> bool:
        """Its files hold quantised layers that lorica can take over."""
        return self.prequantised in KINDS

    def options(self, dtype: torch.dtype) -> dict[str, Any]:
        """The keywords of from_pretrained."""
        options: dict[str, Any] = {"dtype": dtype}
        if self.labels is not None:
            options |= classifier.settings_for(self.labels, self.config)
        if self.is_packed:
            options |= {"dtype": torch.float32, "device_map": {"": "cpu"}}
        elif self.quantise_to is not None:
            options["dtype"] = "auto"  # the checkpoint's own, so that its files are mapped
        return options


def load(
    path: str,
    *,
    dtype: str = "float32",
    labels: list[str] | None = None,
    quantisation: str | None = None,
    double_quantisation: bool = True,
    offload: str | None = None,
) -> LoadedModel:
    """The base at `path`, frozen and in eval mode, on the accelerator if there is one.

    dtype: "float32", "bfloat16" or "float16": of the computation, and of the layers that are not
        quantised; "auto": that of the checkpoint.
    labels: classes; with them the base is loaded as a sequence classifier, whose head starts
        from seed 0 where the checkpoint has none for these classes in this order.
    quantisation: "nf4", "fp4" or "int8": quantise the linear layers, except heads. None: load it
        as it is, which may be quantised already; "none": refuse it if it is.
    double_quantisation: quantise the scales of 4-bit blocks too.
    offload: "disk" or "cpu": where weights wait while they are not needed; see lorica.base.offload.

    Raises: ConfigError, BaseError, FileError; MissingError without bitsandbytes.
    """
    dtype = dtype_of_base(path) if dtype == "auto" else dtype
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}.", known=", ".join([*DTYPES, "auto"]))
    checkpoint, compute = _open(path, labels, quantisation), DTYPES[dtype]
    device = torch.accelerator.current_accelerator(check_available=True)
    check_offload(path, dtype, checkpoint.kind, offload, on_cpu=device is None)
    model, info = _read(checkpoint, compute)
    head, notices = _check_loaded(checkpoint, model, info)
    _quantise(model, checkpoint, compute, head, double=double_quantisation)
    tokenizer = load_tokenizer(path)
    if offload is not None:
        start_offload(model, path, device, offload)
    model = to_device(model, device or torch.device("cpu"))
    check_special_tokens(path, model)
    with in_little_memory(model):
        check_forward(path, model)
    reset_before_each_call(model)
    speed_up_backward(model)
    base = LoadedModel(model.eval().requires_grad_(False), tokenizer, path, labels, head=head)
    base.notices += [*notices, *quantised_model.quantisation_notices(model)]
    if zero := zero_weights_notice(path, model):
        base.notices.append(zero)
    if device is None and (notice := slow_dtype_notice(compute)):
        base.notices.append(notice)
    base.notices += _set_padding(base)
    if labels is None:
        with in_little_memory(model):
            check_causal(model, path)
    return base


def load_tokenizer(path: str) -> Any:
    """The tokenizer of the base at `path`."""
    from transformers import AutoTokenizer

    folder = locate(path)
    with translated_errors(path):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    check_tokenizer(path, tokenizer)
    return tokenizer


def _open(path: str, labels: list[str] | None, quantisation: str | None) -> _Checkpoint:
    """Find the checkpoint, and refuse one that cannot be loaded as is asked."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.set_verbosity_error()  # what it would warn of is checked, and named, by `load`
    logging.disable_progress_bar()
    quantise_to = None if quantisation == "none" else quantisation
    if quantise_to is not None:
        check_kind(quantise_to)
    folder, config, prequantised = locate(path), read_config(path), quantised_as(path)
    check_model_type(path, config, classifier=labels is not None)
    auto = AutoModelForCausalLM if labels is None else AutoModelForSequenceClassification
    checkpoint = _Checkpoint(path, folder, config, auto, labels, prequantised, quantise_to)
    if checkpoint.is_packed and quantisation not in (None, prequantised):
        wanted = "its floats were" if quantisation == "none" else f"{quantisation} was"
        raise BaseError(
            f"{path} is quantised already, as {prequantised}, and {wanted} asked for.",
            fix=f"ask for {prequantised} or for nothing, or name the float base",
        )
    if checkpoint.is_packed or quantise_to is not None:
        require()
    return checkpoint


def _read(checkpoint: _Checkpoint, dtype: torch.dtype) -> tuple[nn.Module, dict[str, Any]]:
    """The model that transformers loads, and which keys were missing, unexpected or misshaped."""
    path, options = checkpoint.path, checkpoint.options(dtype)
    check_weights(path, checkpoint.folder, checkpoint.auto, options)
    try:
        with translated_errors(path), drawing(0):  # the head of a new classifier
            model, info = checkpoint.auto.from_pretrained(
                checkpoint.folder,
                **options,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
            )
    except BaseError as error:
        if checkpoint.prequantised is None or checkpoint.is_packed:
            raise
        why = str(error.facts.get("why", error.what))
        raise unsupported_quantisation(path, checkpoint.prequantised, why) from None
    if model_view(model).has_peft_adapter:
        raise BaseError(
            f"{path} holds an adapter beside the base, and transformers attached it.",
            fix="name a base without adapter_config.json",
        )
    return model, info


def _check_loaded(
    checkpoint: _Checkpoint, model: nn.Module, info: dict[str, Any]
) -> tuple[Head, list[str]]:
    """Refuse a checkpoint that is not whole. Returns: the head of a classifier, and notices.

    In place: weights of a classification layer for other classes than `labels` start anew.
    """
    notices: list[str] = []
    if checkpoint.labels is None:
        misshaped = sorted(map(str, info["mismatched_keys"]))
        head = Head(lost=sorted(info["missing_keys"]), misshaped=misshaped)
    else:
        head = classifier.inspect(model, checkpoint.config, info, checkpoint.labels)
        notices = classifier.head_notices(checkpoint.config, checkpoint.labels, head.fresh)
    if head.lost or head.misshaped:
        raise FileError(
            f"the weights of {checkpoint.path} are not complete.",
            missing=listed(head.lost),
            misshaped=listed(head.misshaped),
            fix="download the model again",
        )
    if unused := sorted(info["unexpected_keys"]):
        notice = f"the checkpoint has tensors that the model does not use: {listed(unused)}"
        notices = [notice, *notices]
    return head, notices


def _quantise(
    model: nn.Module, checkpoint: _Checkpoint, dtype: torch.dtype, head: Head, *, double: bool
) -> None:
    """Replace linear layers by quantised ones, if that is asked for or in the files. In place."""
    if checkpoint.is_packed:
        floats = skeleton(checkpoint.path, checkpoint.auto)
        quantised_model.convert_prequantised(model, dtype, floats)
    elif checkpoint.quantise_to is not None:
        quantised_model.quantise_model(
            model,
            checkpoint.folder,
            dtype,
            checkpoint.quantise_to,
            double_quantisation=double,
            whole=head.whole,
        )


def _set_padding(base: LoadedModel) -> list[str]:
    """Give tokenizer and config a padding token. In place. Returns: notices."""
    tokenizer, config = base.tokenizer, config_of(base.model)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    notices = fit_padding(base.model, tokenizer)
    if base.labels is not None and config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    return notices
