"""Training and validation rows, and what both sides have in common.

The split is a function of seed and content: the rows with the smallest sha256 of both are the
validation rows. So it does not move when the file is sorted, and rows that are equal stay on
one side where that is possible.
"""

import hashlib

import numpy as np

from lorica.data.dataset import Dataset
from lorica.data.token_store import TokenStore
from lorica.errors import listed

SHARE, MOST = 0.05, 256
"""What is kept for evaluation by default: a share of the rows, and at most so many."""


def split_validation(examples: Dataset, share: float | None, seed: int) -> tuple[Dataset, Dataset]:
    """Train and validation examples, both in the file's order.

    What is parted is the rows of the file; of a file that is one row, its blocks.
    At least one goes to each side when `share` > 0 and there are two. share: None is the default.
    """
    rows, unit_of = np.unique(examples.rows, return_inverse=True)
    if len(rows) > 1:
        keys = examples.store.digests("key", rows)
    else:
        unit_of = np.arange(len(examples))
        texts = (f"{seed}\0{example.ids}" for example in examples)
        keys = np.array([hashlib.sha256(text.encode()).digest() for text in texts], "S32")
    count = len(keys)
    if share == 0 or count < 2:
        return examples, examples.pick(slice(0, 0))
    want = min(round(SHARE * count), MOST) if share is None else round(share * count)
    held = _held(keys, min(max(1, want), count - 1))
    mask = held[unit_of]
    return examples.pick(~mask), examples.pick(mask)


def _held(keys: np.ndarray, want: int) -> np.ndarray:
    """Which units are validation ones: whole groups of equal keys, the smallest first."""
    _, first, group, sizes = np.unique(
        keys, return_index=True, return_inverse=True, return_counts=True
    )
    chosen, total = np.zeros(len(sizes), bool), 0
    for i, size in enumerate(sizes.tolist()):
        if total + size <= want:
            chosen[i] = True
            total += size
    if total:
        return chosen[group]
    # Every row stands often; rather a large group than a row on both sides.
    least = min(range(len(sizes)), key=lambda i: (sizes[i], first[i]))
    held = group == least
    if sizes[least] == len(keys):
        held[np.flatnonzero(held)[want:]] = False
    return held


def repeated(store: TokenStore) -> int:
    """Rows beyond the first of their content."""
    return len(store) - len(np.unique(store.digests("content", np.arange(len(store)))))


def repetitions(store: TokenStore) -> list[str]:
    """A notice on rows that stand more than once."""
    contents = store.digests("content", np.arange(len(store)))
    _, first, times = np.unique(contents, return_index=True, return_counts=True)
    if len(times) == len(store):
        return []
    most = times.max()
    where = store.where(int(first[times == most].min()))
    return [f"{len(store) - len(times)} rows repeat an earlier one; {where} stands {most} times"]


def unmatched(train: Dataset, held: Dataset, labels: list[str] | None) -> list[str]:
    """Rows on both sides, and classes on one side only."""
    lines = []
    others = held
    if held.store is train.store:  # blocks of one text share their row, and are no repetition
        others = held.pick(~np.isin(held.rows, train.rows))
    _, first = np.unique(others.rows, return_index=True)
    others = others.pick(np.sort(first))
    both = others.pick(np.isin(others.contents, train.contents))
    if len(both):
        lines.append(
            f"{len(both)} validation rows stand in the training rows too, so their loss "
            f"says little: {both.places()}"
        )
    if labels is not None and len(held) and train.classes is not None:
        seen = set(train.classes[train.store.arrays["label"][train.rows]].tolist())
        missing = [name for i, name in enumerate(labels) if i not in seen]
        if missing:
            lines.append(f"no training row has the class {listed(missing)}")
    return lines
