"""Write one GGUF file, whole or not at all, with one tensor in memory at a time.

    4 bytes "GGUF"   version   counts   key-value fields   tensor infos   tensor data

A tensor's shape is written from its last axis to its first, so (O, I) is [I, O] to llama.cpp.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lorica.errors import MergeError
from lorica.formats import commit
from lorica.handover.gguf.package import gguf_package

Dtype = Literal["f32", "f16", "bf16", "q8_0"]
Fields = dict[str, bool | int | float | str | Sequence[str] | Sequence[int] | Sequence[float]]
BLOCK = 32
"""Values of a row that share one scale in q8_0."""


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor that is read when its turn comes. shape: as torch has it. read: gives the floats."""

    name: str
    shape: tuple[int, ...]
    dtype: Dtype
    read: Callable[[], Tensor]


def write(path: Path, architecture: str, fields: Fields, tensors: Sequence[PlannedTensor]) -> None:
    """Write the file `path`, which must not exist.

    fields: key -> value; an int is written as uint32, a float as float32, lists likewise (int32).
    Raises: MergeError if a number does not fit its dtype; ResourceError if the file exists or
        cannot be written; MissingError without the gguf package.
    """
    gguf = gguf_package()
    logging.getLogger("gguf.gguf_writer").setLevel(logging.ERROR)
    with commit.file(path) as staging:
        writer = gguf.GGUFWriter(staging, architecture)
        for key, value in fields.items():
            _add(writer, gguf.GGUFValueType, key, value)
        for tensor in tensors:
            stored = _stored_type(gguf, tensor.dtype)
            writer.add_tensor_info(
                tensor.name,
                _stored_shape(tensor),
                np.dtype(np.uint8 if tensor.dtype == "q8_0" else np.uint16),
                math.prod(_stored_shape(tensor)) * _ITEM_BYTES[tensor.dtype],
                raw_dtype=stored,
            )
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for tensor in tensors:
                writer.write_tensor_data(encoded(tensor.read(), tensor.dtype, tensor.name))
        finally:
            writer.close()


_ITEM_BYTES: Mapping[Dtype, int] = {"f32": 4, "f16": 2, "bf16": 2, "q8_0": 1}
_BLOCK_BYTES = 34
"""A scale in float16 and 32 int8."""


def _add(writer: Any, types: Any, key: str, value: Any) -> None:
    kinds = {bool: types.BOOL, int: types.UINT32, float: types.FLOAT32, str: types.STRING}
    if isinstance(value, bool | int | float | str):
        writer.add_key_value(key, value, kinds[type(value)])
        return
    element = {str: types.STRING, int: types.INT32, float: types.FLOAT32}[type(value[0])]
    writer.add_key_value(key, value, types.ARRAY, sub_type=element)


def _stored_type(gguf: Any, dtype: Dtype) -> Any:
    return getattr(gguf.GGMLQuantizationType, dtype.upper())


def _stored_shape(tensor: PlannedTensor) -> tuple[int, ...]:
    """The shape of the numbers as they are stored; of q8_0: of the bytes."""
    if tensor.dtype != "q8_0":
        return tensor.shape
    *rows, columns = tensor.shape
    return (*rows, columns // BLOCK * _BLOCK_BYTES)


def encoded(tensor: Tensor, dtype: Dtype, name: str) -> np.ndarray:
    """The numbers of a tensor as they are stored.

    Raises: MergeError if one is not finite, or is too large for float16.
    """
    full = tensor.detach().float().contiguous()
    if not full.isfinite().all():
        raise MergeError(
            f"{name} has numbers that are not finite.", fix="check the model, and merge it again"
        )
    if dtype == "f32":
        return full.numpy()
    if dtype == "bf16":
        return full.to(torch.bfloat16).view(torch.uint16).numpy()
    if dtype == "f16":
        if (largest := full.abs().max().item()) > torch.finfo(torch.float16).max:
            raise MergeError(
                f"{name} has a number of {largest:.4g}, which float16 cannot hold.",
                fix="write bf16 or f32",
            )
        return full.to(torch.float16).numpy()
    gguf = gguf_package()
    return gguf.quants.quantize(full.numpy(), gguf.GGMLQuantizationType.Q8_0)
