"""A chunk of tokenised rows, as one process hands it to another."""

from dataclasses import dataclass
from typing import Any

import numpy as np

NAMES = ("labels", "conditions")  # fields that are texts, or None, of each row


@dataclass(frozen=True)
class Chunk:
    """Tokenised rows, N of them, as arrays that do not depend on the rows before.

    ids: of all rows. lengths, run_counts, place_lengths: (N,) tokens, ranges of labels, and bytes
    of the place of each row. runs: (R, 2) from the start of the row. content, key: N digests.
    """

    ids: np.ndarray
    lengths: np.ndarray
    runs: np.ndarray
    run_counts: np.ndarray
    content: bytes
    key: bytes
    places: bytes
    place_lengths: np.ndarray
    labels: list[str | None]
    conditions: list[str | None]

    def as_bytes(self) -> list[bytes]:
        """The arrays and digests, for another process."""
        values = [value for name, value in vars(self).items() if name not in NAMES]
        return [v.tobytes() if isinstance(v, np.ndarray) else v for v in values]

    @classmethod
    def from_bytes(cls, values: list[bytes], ids: np.dtype, **names: list[str | None]) -> "Chunk":
        """ids: dtype of the token ids. names: labels and conditions."""
        of_field = [name for name in cls.__dataclass_fields__ if name not in NAMES]
        fields: dict[str, Any] = dict(zip(of_field, values, strict=True))
        for name in ("lengths", "runs", "run_counts", "place_lengths"):
            fields[name] = np.frombuffer(fields[name], np.int64)
        fields["ids"] = np.frombuffer(fields["ids"], ids)
        fields["runs"] = fields["runs"].reshape(-1, 2)
        fields |= names
        return cls(**fields)
