"""Limits on an adapter's folder, before any of its tensors is read.

The header of a safetensors file can name millions of tensors, and each costs memory when it is
read, even an empty one.
"""

import struct
from pathlib import Path

from lorica import plain_files
from lorica.errors import FileError
from lorica.formats.foreign.weights import weights_files

MAX_HEADER = 8 * 2**20
"""Bytes of the header of the weights."""
MAX_TENSORS = 50_000


def check_limits(folder: Path, max_bytes: int) -> None:
    """Raises: FileError if the weights of an adapter's folder are larger than an adapter's can be.

    max_bytes: of the weights, all shards together.
    """
    for weights in weights_files(folder):
        max_bytes -= _check_file(weights, max_bytes)


def _check_file(weights: Path, max_bytes: int) -> int:
    """The size of the file. Raises: FileError if it, or its header, is too large."""
    with plain_files.open_file(weights) as file:
        size = file.seek(0, 2)
        file.seek(0)
        if size > max_bytes:
            raise FileError(
                f"{weights} has {size:,} bytes; an adapter of this base has at most {max_bytes:,}.",
                fix="serve an adapter that was trained on this base",
            )
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if length > MAX_HEADER:
            raise _bomb(weights, f"a header of {length:,} bytes, and {MAX_HEADER:,} are allowed")
        header = file.read(length)
    if header.count(b'"data_offsets"') > MAX_TENSORS:
        raise _bomb(weights, f"more than {MAX_TENSORS:,} tensors")
    return size


def _bomb(weights: Path, what: str) -> FileError:
    return FileError(f"{weights} has {what}.", fix="save the adapter again")
