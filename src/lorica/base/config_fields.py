"""The settings of a model's config that decide what it computes.

All of a config counts but the names below: a field that nobody has heard of may change the
function, and is compared.
"""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

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
"""Fields that cannot change what a model computes from its weights: where it came from, dtype,
what else is returned, how weights begin, names of classes, and special ids, which the tokenizer
has. What is tied shows in the weights; what is quantised is compared apart."""

Value = bool | int | float | str | None


def computing(model: nn.Module) -> dict[str, Value] | None:
    """{"rope_parameters.rope_theta": 10000.0, ...} of a model; None: it has no config.

    The version of transformers that read the config stands beside the fields.
    """
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "to_dict"):
        return None
    said = config.to_dict()
    return {**dict(_flat(said)), VERSION: str(said.get(VERSION))}


def changed(then: Mapping[str, Value], now: Mapping[str, Value]) -> dict[str, str]:
    """{field: "10000.0 -> 20000.0"} of what differs.

    A field on one side alone counts only if both configs were read by one version of
    transformers: another version may know more of them.
    """
    alike = then.get(VERSION) == now.get(VERSION)
    names = then.keys() | now.keys() if alike else then.keys() & now.keys()
    return {
        name: f"{then.get(name)} -> {now.get(name)}"
        for name in sorted(names - {VERSION})
        if then.get(name) != now.get(name)
    }


def in_training_only(name: str) -> bool:
    """The field changes what training draws, and nothing of what the model computes without."""
    return "drop" in name.rpartition(".")[2]


def _flat(said: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Value]]:
    for key, value in said.items():
        if key in IGNORED or key == VERSION:
            continue
        if isinstance(value, Mapping):
            yield from _flat({str(k): v for k, v in value.items()}, f"{prefix}{key}.")
        elif isinstance(value, bool | int | str | None) or (
            isinstance(value, float) and math.isfinite(value)
        ):
            yield f"{prefix}{key}", value
        else:
            yield f"{prefix}{key}", json.dumps(value, default=str)
