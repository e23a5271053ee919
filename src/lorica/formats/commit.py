"""Write files and folders atomically, and tensors without pickle.

A folder is written under a staging name beside its destination. Every file is synced, and one
rename puts the folder in place. A process that is killed leaves at most a staging folder behind.
"""

import ctypes
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError, safe_open
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save_file
from torch import Tensor

from lorica import plain_files, strict_json
from lorica.errors import FileError, ResourceError, writing

STAGING = plain_files.STAGING
REPLACED = ".replaced-"


@contextmanager
def folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a staging folder that becomes `path` when the block succeeds; else it is removed.

    replace: replace an existing folder, after the new one is complete.
    Raises: ResourceError if `path` is a file, or a non-empty folder without `replace`.
    """
    try:
        path = path.resolve()  # the target of a link is replaced; see plain_files.check
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, a NUL, links in a circle
        raise ResourceError(
            f"{path!s:.200} cannot be a folder: {error}.", fix="choose another folder"
        ) from None
    if path.exists() and not path.is_dir():
        raise ResourceError(f"{path} is a file.", fix="choose another folder")
    if path.is_dir() and any(path.iterdir()) and not replace:
        raise ResourceError(f"{path} is there already.", fix="choose another folder")
    staging = path.parent / f"{STAGING}{path.name}-{uuid4().hex[:8]}"
    with writing(path), plain_files.being_written(staging):
        staging.mkdir(parents=True)
        try:
            yield staging
            for file in staging.rglob("*"):
                sync(file)
            sync(staging)
            if not replace or not path.exists():
                staging.rename(path)  # fails if another process has put a full folder there
            elif not _exchange(staging, path):  # if so, `staging` is now the old folder
                _rename_both(staging, path)
            sync(path.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def file(path: Path) -> Iterator[Path]:
    """Yield a staging file that becomes `path` when the block succeeds; else it is removed.

    Raises: ResourceError if `path` exists.
    """
    if os.path.lexists(path):
        raise ResourceError(f"{path} is there already.", fix="choose another file")
    staging = path.with_name(f"{STAGING}{path.name}-{uuid4().hex[:8]}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield staging
            sync(staging)
            staging.rename(path)
            sync(path.parent.resolve())
        finally:
            staging.unlink(missing_ok=True)


def _exchange(new: Path, old: Path) -> bool:
    """Exchange two folders atomically. Returns False where the system does not support it."""
    call = getattr(ctypes.CDLL(None), "renameat2", None)  # Linux; needs the file system's help
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return call is not None and call(here, bytes(new), here, bytes(old), exchange) == 0


def _rename_both(new: Path, old: Path) -> None:
    """Put `new` in the place of `old`. Killed between the renames, `sweep` puts `old` back."""
    aside = old.parent / f"{REPLACED}{old.name}-{uuid4().hex[:8]}"
    old.rename(aside)
    try:
        new.rename(old)
    except OSError:
        aside.rename(old)
        raise
    shutil.rmtree(aside)


def remove(path: Path) -> None:
    """Remove a folder atomically. `sweep` removes what a killed process leaves behind.

    Raises: FileError if it is a link.
    """
    plain_files.is_folder(path)
    aside = path.parent / f"{STAGING}{path.name}-{uuid4().hex[:8]}"
    path.rename(aside)
    shutil.rmtree(aside)


def sync(path: Path) -> None:
    """Flush `path` itself to the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(parent: Path) -> None:
    """Remove what a killed process left in `parent`, and restore folders that it had renamed.

    Links are removed, but not their targets.
    """
    if not plain_files.is_folder(parent.resolve()):
        return
    for aside in parent.glob(f"{REPLACED}*"):
        place = parent / aside.name.removeprefix(REPLACED).rpartition("-")[0]
        if not os.path.lexists(place) and aside.is_dir() and not aside.is_symlink():
            aside.rename(place)
    for prefix in (STAGING, REPLACED):
        for leftover in parent.glob(f"{prefix}*"):
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a small file atomically. A link is replaced, not followed."""
    staging = path.with_name(f"{STAGING}{path.name}-{uuid4().hex[:8]}")
    with writing(path):
        try:
            plain_files.create(staging, data)
            staging.replace(path)
            sync(path.parent.resolve())
        finally:
            staging.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """As `write_bytes`, in UTF-8; a lone surrogate (in a column's name) becomes "?"."""
    write_bytes(path, text.encode(errors="replace"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Raises: FileError if the file is missing, cut short, or not a JSON object."""
    return strict_json.read(path)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file with the permissions of the umask."""
    plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    with writing(path):
        try:
            save_file(plain, path, metadata={"format": "pt"})
        except SafetensorError as error:  # the library wraps errors of the disk
            raise ResourceError(f"cannot write {path}: {error}.", fix="check the disk") from error
        mask = os.umask(0)
        os.umask(mask)
        path.chmod(0o666 & ~mask)  # safetensors creates files with mode 0600


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, on the CPU. Raises: FileError if it is damaged."""
    if not plain_files.is_file(path):
        raise FileError(f"{path} does not exist.", fix="check the path")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from None


def tensor_names(path: Path) -> list[str]:
    """The names of the tensors of a safetensors file. Raises: FileError if it is damaged."""
    plain_files.is_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from None


def parse_tensors(data: bytes, path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file that is in memory. path: of the file, for the message.

    Raises: FileError if it is damaged.
    """
    try:
        return parse_safetensors(data)
    except SafetensorError as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> FileError:
    return FileError(
        f"{path} is damaged: {error}.", fix="copy the file anew, or save the adapter again"
    )


def digest(path: Path) -> dict[str, Any]:
    """{"bytes", "sha256"} of a file."""
    with plain_files.open_file(path) as file:
        sha = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": sha}


def check_digests(path: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises: FileError that names every file of `files` that is missing or was changed.

    files: name -> {"bytes", "sha256"}. A name that leads out of `path` is refused, unread.
    """
    wrong = {}
    for name, noted in files.items():
        file = path / plain_files.check_name(name, path)
        actual: dict[str, Any] = {"bytes": "missing"}
        if plain_files.is_file(file):
            actual = {"bytes": file.stat().st_size}
            actual = digest(file) if actual["bytes"] == noted.get("bytes") else actual
        if actual != noted:
            count = noted.get("bytes")
            wrong[name] = f"{actual['bytes']} bytes here, {count} when it was saved"
            if actual["bytes"] == count:
                wrong[name] = f"its SHA-256 differs ({count} bytes, as when it was saved)"
    if wrong:
        raise FileError(
            f"{path} is not what was saved: {len(wrong)} of {len(files)} files differ.",
            **wrong,
            fix="copy the folder anew; if it was changed on purpose, delete manifest.json",
        )
