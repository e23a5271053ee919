"""The config.json of a base, with every size that a plan reads from it checked once, here."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorica import strict_json
from lorica.errors import BaseError
from lorica.plan.families import FAMILIES, Config, Gpt2, field

COUNTS = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model", "dim"),
    "heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "vocab": ("vocab_size",),
}
"""The names that sizes have in the config of different architectures."""
CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len")
OF_LLAMAS = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
OF_GPT2 = ("n_layer", "n_embd", "n_head")
LIMITS = {
    **dict.fromkeys(COUNTS["layers"], 1024),
    **dict.fromkeys(COUNTS["hidden"], 2**20),
    **dict.fromkeys(COUNTS["heads"], 2**16),
    "vocab_size": 2**26,
    "intermediate_size": 2**22,
    "n_inner": 2**22,
    "num_key_value_heads": 2**16,
    "head_dim": 2**16,
    **dict.fromkeys(CONTEXT, 2**32),
}
"""Field -> its highest value: well above that of the largest published model."""


def read_config(base: str, folder: Path) -> Config:
    """The config of the language model of a base, of one of text and images too.

    Raises: FileError if config.json cannot be read; BaseError for a size that is no size.
    """
    config = strict_json.read(folder / "config.json", finite=False, follow=True)
    _check_objects(base, config)
    config = {**config, **(config.get("text_config") or {})}
    for name in LIMITS:
        _check(base, config, (name,), needed=False)
    known = FAMILIES.get(str(config.get("model_type")))
    if known is not None:
        for name in (*(OF_GPT2 if isinstance(known, Gpt2) else OF_LLAMAS), "vocab_size"):
            _check(base, config, (name,))
        _check_heads(base, config, known.heads(config), stated=_head_size(known, config))
    return config


def check_counts(base: str, config: Config) -> None:
    """Raises: BaseError if the config of an architecture that is not known lacks a size."""
    for names in COUNTS.values():
        _check(base, config, names)


def _check_objects(base: str, config: Config) -> None:
    for name in ("text_config", "quantization_config"):
        if not isinstance(value := config.get(name), dict | None):
            raise _refused(base, name, value, "an object, or null")
    if not isinstance(value := config.get("model_type"), str | None):
        raise _refused(base, "model_type", value, "a name")


def _check(base: str, config: Config, names: Sequence[str], *, needed: bool = True) -> None:
    """One size, which has one of these names. needed: it must be there."""
    value = field(config, *names)
    if value is None and not needed:
        return
    name = next((name for name in names if config.get(name) is not None), names[0])
    if type(value) is not int or not 1 <= value <= LIMITS[name]:
        raise _refused(base, name, value, f"a whole number from 1 to {LIMITS[name]:,}")


def _check_heads(
    base: str, config: Config, heads: tuple[int, int, int], *, stated: int | None
) -> None:
    """heads: (heads, key heads, head size). stated: the head size, if hidden size / heads is not
    it."""
    count, kv_heads, _ = heads
    if count % kv_heads:
        wanted = f"a divisor of num_attention_heads, {count}"
        raise _refused(base, "num_key_value_heads", kv_heads, wanted)
    name, hidden = next((n, config[n]) for n in COUNTS["hidden"] if config.get(n) is not None)
    if stated is None and hidden % count:
        raise _refused(base, name, hidden, f"a multiple of the number of heads, {count}")


def _head_size(known: Any, config: Config) -> int | None:
    return config.get("head_dim") or getattr(known, "head_size", None)


def _refused(base: str, name: str, value: Any, wanted: str) -> BaseError:
    stated = "nothing" if value is None else f"{value!r:.60}"
    return BaseError(
        f"config.json of {base} states {name} as {stated}: it must be {wanted}.",
        fix="download config.json again",
    )
