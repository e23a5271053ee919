"""Read a GGUF file by the gguf package, and undo llama.cpp's order of rows."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Fields, and tensors as float32 in torch's shapes."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type).reshape(*reversed(t.shape))
        for t in reader.tensors
    }
    return fields, tensors


def types(path: Path) -> dict[str, str]:
    return {t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors}


def rows_in_order(rows: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's order of rows, written by index: pair j of a head is at 2 j and 2 j + 1."""
    size = len(rows) // heads
    out = np.empty_like(rows)
    for head in range(heads):
        for j in range(size // 2):
            for half in (0, 1):
                out[head * size + half * size // 2 + j] = rows[head * size + 2 * j + half]
    return out
