"""The weights of a checkpoint as the tensors of a GGUF file, each read when it is written.

A model never stands in memory as a whole. Vectors (norms, biases), the table of positions and
RoPE's factors stay float32, as in llama.cpp's own converter.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorica.base import checkpoint_tensors
from lorica.base.describe import locate
from lorica.base.untrusted_files import header_of
from lorica.errors import BaseError, FileError, counted, listed
from lorica.handover.gguf.architectures import POSITIONS, Architecture, interleaved
from lorica.handover.gguf.writer import BLOCK, Dtype, PlannedTensor

BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
"""Keys of older checkpoints that hold no weights."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint. key: in its file. shape: as (O, I), however it stands there."""

    file: str
    key: str
    shape: tuple[int, ...]
    transposed: bool


def planned_tensors(
    source: str, config: Any, architecture: Architecture, dtype: Dtype
) -> list[PlannedTensor]:
    """Every tensor of the file. source: folder, hub id or "bundled". dtype: of the matrices.

    Raises: FileError, BaseError if a weight is missing, or has no place in llama.cpp.
    """
    stored = stored_tensors(source, architecture)
    tied = bool(config.tie_word_embeddings)
    if tied and (head := stored.pop("lm_head.weight", None)) is not None:
        stored.setdefault(architecture.embedding_key, head)  # the one matrix may have either name
    expected = architecture.weights(config.num_hidden_layers, tied=tied)
    _check_keys(source, set(stored), architecture, expected)
    planned = [_planned(key, own, config, architecture, dtype) for key, own in stored.items()]
    return [*planned, *_rope_factors(config)]


def stored_tensors(source: str, architecture: Architecture) -> dict[str, StoredTensor]:
    """The weights of a base by their full keys; {}: its files are not on this machine."""
    files = checkpoint_tensors.keys_of(locate(source))
    headers = {file: header_of(Path(file)) for file in sorted(set(files.values()))}
    stored = {}
    for key, file in files.items():
        full = architecture.full_key(key)
        transposed = architecture.stands_transposed(full)
        shape = tuple(headers[file][key]["shape"])
        stored[full] = StoredTensor(file, key, shape[::-1] if transposed else shape, transposed)
    return {key: own for key, own in stored.items() if not key.endswith(BUFFERS)}


def _check_keys(
    source: str, keys: set[str], architecture: Architecture, expected: set[str]
) -> None:
    if unknown := sorted(key for key in keys if architecture.place_of(key) is None):
        raise BaseError(
            f"{source} has tensors for which llama.cpp has no place.",
            tensors=listed(unknown),
            fix="serve it with lorica serve or vLLM",
        )
    if missing := sorted(expected - keys):
        raise FileError(
            f"{source} lacks {counted(len(missing), 'weight')} that its config asks for.",
            missing=listed(missing),
            fix="download the model again, or merge it again",
        )


def _planned(
    key: str, own: StoredTensor, config: Any, architecture: Architecture, dtype: Dtype
) -> PlannedTensor:
    name = str(architecture.place_of(key))
    heads = architecture.heads_of(key.rpartition(".")[0], config)
    shift = architecture.shifted_norms and key.endswith("norm.weight")
    read = partial(_read, own, heads, 1.0 if shift else 0.0)
    return PlannedTensor(name, own.shape, _dtype_of(name, own.shape, dtype), read)


def _dtype_of(name: str, shape: tuple[int, ...], dtype: Dtype) -> Dtype:
    if len(shape) < 2 or name.startswith(POSITIONS):
        return "f32"
    return "f16" if dtype == "q8_0" and shape[-1] % BLOCK else dtype


def _read(own: StoredTensor, heads: int | None, shift: float) -> Tensor:
    tensor = checkpoint_tensors.read(own.file, own.key, own.transposed).float()
    tensor = tensor if heads is None else interleaved(tensor, heads)
    return tensor + shift if shift else tensor


def _rope_factors(config: Any) -> list[PlannedTensor]:
    """What llama.cpp divides each frequency of Llama 3's RoPE by, (D / 2,)."""
    rope: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "llama3":
        return []
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    size = 2 * len(frequencies)
    plain = rope["rope_theta"] ** -(torch.arange(0, size, 2).float() / size)
    factors = plain / frequencies
    return [PlannedTensor("rope_freqs.weight", tuple(factors.shape), "f32", lambda: factors)]
