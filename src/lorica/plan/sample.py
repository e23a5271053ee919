"""The first rows of a large file, which stand for all of them: counting takes a second for 1 MB."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lorica.data.config import DataConfig
from lorica.data.source import Source

COUNTED_BYTES = 400_000
"""Of a larger file, only about as many bytes of rows are counted."""
MIXTURE_BYTES = 5 * COUNTED_BYTES
"""All rows of a mixture are counted; a larger one is not planned before its training."""


@contextmanager
def first_rows(config: DataConfig) -> Iterator[tuple[DataConfig, float]]:
    """(settings that read the first rows of a large file, the share of its rows that they are).

    A text file is one row, of which the first part is copied to a temporary file for the block.
    """
    size = file_size(config.path)
    if size <= COUNTED_BYTES:
        yield config, 1.0
    elif Path(config.path).suffix.lower() == ".txt":
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder) / Path(config.path).name
            with Path(config.path).open("rb") as file:
                part.write_bytes(file.read(COUNTED_BYTES).rpartition(b"\n")[0] or b"\n")
            yield config.model_copy(update={"path": str(part)}), part.stat().st_size / size
    else:
        rows, share = _counted_rows(config, size)
        yield config if share == 1 else config.model_copy(update={"limit": rows}), share


def file_size(path: str) -> int:
    """Bytes of a file; 0 for what is no file here, such as a data set of the hub."""
    return Path(path).stat().st_size if Path(path).is_file() else 0


def _counted_rows(config: DataConfig, size: int) -> tuple[int, float]:
    """(rows to count, the share of all rows that they are). size: of the file, in bytes."""
    places: list[tuple[int, int]] = []  # (rows, bytes) where more of the file was read
    source, rows = Source(config), 0
    for rows, _ in enumerate(source, 1):
        if not places or source.done > places[-1][1]:
            places.append((rows, source.done))
        if len(places) > 2 and source.done > COUNTED_BYTES:
            break
    else:  # the file, or the limit of the settings, is at its end
        return rows, 1.0
    (first, start), *_, (rows, read) = places  # readers are ahead of their rows, by as much in both
    total = size * (rows - first) / (read - start)
    return rows, min(rows / min(total, config.limit or total), 1.0)
