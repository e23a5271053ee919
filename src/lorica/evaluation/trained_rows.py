"""Which rows a run was trained on: rows.sha of its folder, 8 bytes of each row's digest."""

import hashlib
from pathlib import Path

import numpy as np

from lorica import plain_files
from lorica.errors import FileError, ResourceError
from lorica.formats import commit

CONFIG, RESULTS, ROWS = "config.yaml", "results.json", "rows.sha"
DIGEST = 8
MOST_BYTES = 2**28
"""Of rows.sha, where results.json does not say how many rows there were."""


def seen_in_training(run: Path, contents: np.ndarray) -> list[str]:
    """A notice on rows that the run was trained on. Nothing where `run` is no run folder.

    contents: (N,) digests of the rows.
    """
    try:
        if not plain_files.is_file(run / CONFIG):
            return []
        trained = read_trained_rows(run)
    except (FileError, ResourceError) as error:
        return [f"which rows the run was trained on is not known: {error.what.rstrip('.')}"]
    seen = np.isin(contents.astype(f"S{DIGEST}"), trained)
    if not seen.any():
        return []
    count = f"{int(seen.sum()):,} of {len(seen):,} rows"
    return [f"{count} are rows that the run was trained on: they say little about new ones"]


def short_digests(contents: np.ndarray) -> bytes:
    """What rows.sha holds. contents: (N,) digests of the rows, which are cut."""
    return contents.astype(f"S{DIGEST}").tobytes()


def read_trained_rows(run: Path) -> np.ndarray:
    """(N,) digests of the rows. Raises: FileError if they are missing or damaged."""
    path = run / ROWS
    with plain_files.open_file(path) as file:
        size = file.seek(0, 2)
    count, digest = _noted(run)
    wanted = size if count is None else count * DIGEST
    too_large = count is None and size > MOST_BYTES
    if size != wanted or too_large or size % DIGEST or not size:
        rows = "" if count is None else f", and the run was trained on {count:,} rows"
        raise FileError(f"{path} has {size:,} bytes{rows}: it is damaged.")
    data = plain_files.read_bytes(path, size)
    if digest is not None and hashlib.sha256(data).hexdigest() != digest:
        raise FileError(f"{path} is not what the run wrote: it is damaged.")
    return np.frombuffer(data, f"S{DIGEST}")


def _noted(run: Path) -> tuple[int | None, str | None]:
    """(number of training rows, sha256 of rows.sha), as far as results.json has them."""
    try:
        rows = commit.read_json(run / RESULTS).get("rows")
    except (FileError, ResourceError):
        return None, None
    count, digest = (rows.get("train"), rows.get("sha256")) if isinstance(rows, dict) else (0, 0)
    known = type(count) is int and 0 < count < 2**40
    return count if known else None, digest if isinstance(digest, str) else None
