"""The fields of a model's config that decide what it computes.

All fields count but those listed below: an unknown field may change the function, so it is
compared.
"""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from lorica.base.model_view import config_of

VERSION = "transformers_version"
IGNORED = frozenset(
    {
        "_name_or_path",
        "name_or_path",
        "_commit_hash",
        "_attn_implementation",
        "_attn_implementation_internal",
        "_attn_implementation_autoset",
        "attn_implementation",
        "experts_implementation",
        "_experts_implementation",
        "dtype",
        "torch_dtype",
        "architectures",
        "auto_map",
        "tokenizer_class",
        "use_cache",
        "return_dict",
        "output_attentions",
        "output_hidden_states",
        "torchscript",
        "problem_type",
        "finetuning_task",
        "task_specific_params",
        "id2label",
        "label2id",
        "num_labels",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
        "initializer_range",
        "initializer_factor",
        "initializer_std",
        "init_std",
        "chunk_size_feed_forward",
        "gradient_checkpointing",
        "pretraining_tp",
        "tie_word_embeddings",
        "quantization_config",
    }
)
"""Fields that cannot change what a model computes from its weights: its origin, dtype, further
outputs, how weights are initialised, names of classes, and special ids, which the tokenizer has.
Ties show in the weights; quantisation is compared by itself."""

Value = bool | int | float | str | None


def computing_fields(model: nn.Module) -> dict[str, Value] | None:
    """{"rope_parameters.rope_theta": 10000.0, ...} of a model; None: it has no config.

    The version of transformers that read the config stands beside the fields.
    """
    config = config_of(model)
    if config is None:
        return None
    fields = config.to_dict()
    return {**dict(_flat(fields)), VERSION: str(fields.get(VERSION))}


def changed_fields(then: Mapping[str, Value], now: Mapping[str, Value]) -> dict[str, str]:
    """{field: "10000.0 -> 20000.0"} of the fields that differ.

    A field on one side alone counts only if the same version of transformers read both configs:
    another version may know more fields.
    """
    alike = then.get(VERSION) == now.get(VERSION)
    names = then.keys() | now.keys() if alike else then.keys() & now.keys()
    return {
        name: f"{then.get(name)} -> {now.get(name)}"
        for name in sorted(names - {VERSION})
        if then.get(name) != now.get(name)
    }


def in_training_only(name: str) -> bool:
    """Whether the field acts in training alone, as dropout does."""
    return "drop" in name.rpartition(".")[2]


def _flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Value]]:
    for key, value in fields.items():
        if key in IGNORED or key == VERSION:
            continue
        match value:
            case Mapping():
                yield from _flat({str(k): v for k, v in value.items()}, f"{prefix}{key}.")
            case bool() | int() | str() | None:
                yield f"{prefix}{key}", value
            case float() if math.isfinite(value):
                yield f"{prefix}{key}", value
            case _:
                yield f"{prefix}{key}", json.dumps(value, default=str)
