"""Which rows a run was trained on: its file rows.sha has 8 bytes of the digest of each."""

import hashlib
from pathlib import Path

import numpy as np

from lorica import plain_files
from lorica.errors import FileError, ResourceError, counted
from lorica.formats import commit

CONFIG, RESULTS, ROWS = "config.yaml", "results.json", "rows.sha"
DIGEST = 8
MAX_BYTES = 2**28
"""Size of rows.sha, where results.json does not say how many rows there were."""


def seen_in_training(run: Path, contents: np.ndarray) -> list[str]:
    """A notice on rows that the run was trained on. Empty if `run` is no run folder.

    contents: (N,) digests of the rows.
    """
    try:
        if not plain_files.is_file(run / CONFIG):
            return []
        trained = read_trained_rows(run)
    except (FileError, ResourceError) as error:
        return [f"it is unknown which rows the run was trained on: {error.what.rstrip('.')}"]
    seen = np.isin(contents.astype(f"S{DIGEST}"), trained)
    if not seen.any():
        return []
    count = f"{int(seen.sum()):,} of {counted(len(seen), 'row')}"
    return [f"in the training data of this run: {count}; the figures say little about new rows"]


def short_digests(contents: np.ndarray) -> bytes:
    """The content of rows.sha. contents: (N,) digests of the rows, which are cut."""
    return contents.astype(f"S{DIGEST}").tobytes()


def read_trained_rows(run: Path) -> np.ndarray:
    """(N,) digests of the rows. Raises: FileError if they are missing or damaged."""
    path = run / ROWS
    with plain_files.open_file(path) as file:
        size = file.seek(0, 2)
    count, digest = _recorded(run)
    expected = size if count is None else count * DIGEST
    too_large = count is None and size > MAX_BYTES
    if size != expected or too_large or size % DIGEST or not size:
        rows = "" if count is None else f", and the run was trained on {counted(count, 'row')}"
        raise FileError(f"{path} has {size:,} bytes{rows}: it is damaged.")
    data = plain_files.read_bytes(path, size)
    if digest is not None and hashlib.sha256(data).hexdigest() != digest:
        raise FileError(f"{path} is not as the run wrote it: it is damaged.")
    return np.frombuffer(data, f"S{DIGEST}")


def _recorded(run: Path) -> tuple[int | None, str | None]:
    """(number of training rows, sha256 of rows.sha), where results.json has them."""
    try:
        rows = commit.read_json(run / RESULTS).get("rows")
    except (FileError, ResourceError):
        return None, None
    count, digest = (rows.get("train"), rows.get("sha256")) if isinstance(rows, dict) else (0, 0)
    known = type(count) is int and 0 < count < 2**40
    return count if known else None, digest if isinstance(digest, str) else None
