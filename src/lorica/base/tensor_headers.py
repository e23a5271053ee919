"""Check the header of a safetensors file: shapes, types and places of its tensors."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from lorica.errors import FileError

WHOLE_BYTES = re.compile(r"(?:BOOL|[A-Z]+(8|16|32|64)(?:_.*)?)", re.ASCII)
"""Types whose values take whole bytes: F32, BF16, F8_E4M3. Of others the size is not checked."""


def check_header(file: Path, header: Mapping[str, Any], size: int) -> None:
    """Check every entry. size: bytes of the file behind its header.

    Raises: FileError if an entry is no tensor, or the file does not end where its tensors do.
    """
    end = 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if (wrong := _wrong(entry)) is not None:
            raise FileError(
                f"{file} is damaged: its header gives the tensor {name!r:.80} {wrong}.",
                fix="download it again",
            )
        end = max(end, entry["data_offsets"][1])
    if end != size:
        raise FileError(
            f"{file} is damaged: its tensors take {end:,} bytes, and it has {size:,}.",
            fix="download it again",
        )


def _wrong(entry: Any) -> str | None:
    """What is wrong with the entry of a tensor; None: nothing."""
    if not isinstance(entry, dict):
        return f"as {entry!r:.60}"
    shape, place, dtype = (entry.get(key) for key in ("shape", "data_offsets", "dtype"))
    if not _is_counts(shape):
        return f"the shape {shape!r:.60}" if "shape" in entry else "no shape"
    if not isinstance(dtype, str):
        return f"the type {dtype!r:.60}"
    if not _is_counts(place) or len(place) != 2 or place[0] > place[1]:
        return f"the place {place!r:.60}"
    match = WHOLE_BYTES.fullmatch(dtype)
    if match and math.prod(shape) * int(match[1] or 8) // 8 != place[1] - place[0]:
        return f"the shape {shape!r:.60} of {dtype} in {place[1] - place[0]:,} bytes"
    return None


def _is_counts(value: Any) -> TypeGuard[list[int]]:
    """Whether a value is a list of whole numbers, none below 0."""
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)
