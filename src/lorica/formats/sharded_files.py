"""Write the safetensors files of a model tensor by tensor, so that memory holds one at a time.

Each file begins with the header for all of its tensors, so their shapes are given before any is
computed. The files take their place on the disk at once: a disk that is full is noticed before the
first tensor is computed.
"""

import errno
import io
import json
import math
import os
import shutil
import struct
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lorica import plain_files
from lorica.base.checkpoint_tensors import INDEX, SINGLE
from lorica.errors import ResourceError
from lorica.formats import commit

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The dtypes that can be written, as safetensors names them."""
METADATA = {"format": "pt"}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file. optional: it may turn out not to exist; it is held until the end."""

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    optional: bool = False

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class _File:
    """One safetensors file. `write` may come in any order; optional tensors are its end."""

    def __init__(self, path: Path, tensors: Sequence[StoredTensor]):
        order = sorted(tensors, key=lambda t: (t.optional, -t.dtype.itemsize, t.key))
        self.tensors = {tensor.key: tensor for tensor in order}
        self.optional: dict[str, Tensor] = {}
        self.written: set[str] = set()
        self.start = len(_header(order))  # optional ones included; what is left over is blank
        self.places, end = dict[str, int](), self.start
        for tensor in order:
            self.places[tensor.key], end = end, end + tensor.nbytes
        self.stream: io.FileIO = plain_files.open_new(path)
        self.end = end

    def reserve(self) -> None:
        """Take the file's place on the disk. Raises: OSError if the disk is full.

        Where the system cannot (macOS, some file systems), only its length is set.
        """
        try:
            os.posix_fallocate(self.stream.fileno(), 0, self.end)
        except AttributeError:
            os.ftruncate(self.stream.fileno(), self.end)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
            os.ftruncate(self.stream.fileno(), self.end)

    def write(self, key: str, tensor: Tensor) -> None:
        stored = self.tensors[key]
        assert tensor.shape == stored.shape and tensor.dtype == stored.dtype, key
        if stored.optional:
            self.optional[key] = tensor.clone()
            return
        self._write_at(self.places[key], tensor)
        self.written.add(key)

    def finish(self) -> list[StoredTensor]:
        """Write the optional tensors and the header. Returns: the tensors of the file."""
        kept = [t for t in self.tensors.values() if not t.optional or t.key in self.optional]
        missing = [t.key for t in kept if not t.optional and t.key not in self.written]
        assert not missing, missing
        end = self.start
        for tensor in kept:
            if tensor.optional:
                self._write_at(end, self.optional[tensor.key])
            end += tensor.nbytes
        header = _header(kept, self.start)
        os.pwrite(self.stream.fileno(), header, 0)
        os.ftruncate(self.stream.fileno(), end)
        return kept

    def _write_at(self, place: int, tensor: Tensor) -> None:
        left = memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        while len(left):
            count = os.pwrite(self.stream.fileno(), left, place)
            left, place = left[count:], place + count


def _header(tensors: Sequence[StoredTensor], size: int | None = None) -> bytes:
    """The header of a file, its length included. size: in bytes, by blanks; None: as it is."""
    entries: dict[str, object] = {"__metadata__": METADATA}
    end = 0
    for tensor in tensors:
        place, end = [end, end + tensor.nbytes], end + tensor.nbytes
        name = DTYPES[tensor.dtype]
        entries[tensor.key] = {"dtype": name, "shape": list(tensor.shape), "data_offsets": place}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // 8) * 8 if size is None else size - 8)
    return struct.pack("<Q", len(text)) + text


class ShardedFiles:
    """The weight files of a model in a folder, and their index if there are several.

    In a `with` block: `write` every tensor; the block's end writes the headers and the index.
    An error leaves files that no loader takes; the caller removes the folder.
    """

    def __init__(self, folder: Path, files: Mapping[str, Sequence[StoredTensor]]):
        self.folder = folder
        self.plan = {name: list(tensors) for name, tensors in files.items() if tensors}
        self.file_of = {t.key: name for name, tensors in self.plan.items() for t in tensors}
        self.files: dict[str, _File] = {}
        self.stack = ExitStack()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, optional ones included."""
        return sum(tensor.nbytes for tensors in self.plan.values() for tensor in tensors)

    def __enter__(self) -> "ShardedFiles":
        with self.stack:
            for name, tensors in self.plan.items():
                file = _File(self.folder / name, tensors)
                self.stack.callback(file.stream.close)
                file.reserve()
                self.files[name] = file
            self.stack = self.stack.pop_all()
        return self

    def write(self, key: str, tensor: Tensor) -> None:
        """Write a tensor in its planned shape and dtype. Raises: OSError of the disk."""
        self.files[self.file_of[key]].write(key, tensor.detach().cpu())

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self.stack:
            if kind is None:
                self._finish()

    def _finish(self) -> None:
        tensors = {name: file.finish() for name, file in self.files.items()}
        if list(tensors) == [SINGLE]:
            return
        stored = [tensor for own in tensors.values() for tensor in own]
        sizes = {
            "total_parameters": sum(math.prod(tensor.shape) for tensor in stored),
            "total_size": sum(tensor.nbytes for tensor in stored),
        }
        places = {tensor.key: name for name, own in tensors.items() for tensor in own}
        index = {"metadata": sizes, "weight_map": dict(sorted(places.items()))}
        commit.write_json(self.folder / INDEX, index)


def check_space(folder: Path, needed: int) -> None:
    """Raises: ResourceError if the disk of `folder` has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ResourceError(
            f"the merged model takes {_size(needed)}, and the disk of {folder.parent} has "
            f"{_size(free)} free.",
            fix="free some space, or choose another output folder",
        )


def _size(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e8 else f"{count / 1e6:,.2f} MB"
