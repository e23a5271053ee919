"""Unique rows for the fine-tuning tasks, with training and held-out rows apart by construction.

Every row has an identity (its prompt, or for a translation its meaning in all languages). The
checksum of the identity puts it into one of `LOTS` lots, and seed s may only write rows of lot
s mod `LOTS`. So two seeds that differ modulo `LOTS` share no row, whatever their sizes.
"""

import random
from collections.abc import Callable, Iterator
from zlib import crc32

LOTS = 16
Row = dict[str, str]


def unique_rows(
    draw: Callable[[random.Random], tuple[str, Row]], rows: int, seed: int, *, task: str
) -> Iterator[Row]:
    """`rows` rows of `draw`, which returns (identity, row); no identity comes twice."""
    rng = random.Random(f"{task}/{seed}")
    seen: set[str] = set()
    misses = 0
    while len(seen) < rows:
        identity, row = draw(rng)
        if identity in seen or crc32(identity.encode()) % LOTS != seed % LOTS:
            misses += 1
            if misses > 1000 * LOTS:
                raise ValueError(f"{task}: only {len(seen)} rows exist for seed {seed}")
            continue
        misses = 0
        seen.add(identity)
        yield row
