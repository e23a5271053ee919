"""Split rows into training and validation rows, and report what both sides share.

The split is a function of seed and content: the rows with the smallest sha256 of both are the
validation rows. So it does not change when the file is sorted, and equal rows stay on one side
where that is possible.
"""

import hashlib

import numpy as np

from lorica.data.dataset import Dataset
from lorica.data.token_store import TokenStore
from lorica.errors import listed

DEFAULT_SHARE, DEFAULT_MAX = 0.05, 256
"""The default validation rows: this share of the rows, but at most this many."""


def split_validation(dataset: Dataset, share: float | None, seed: int) -> tuple[Dataset, Dataset]:
    """(training, validation) examples, both in the order of the file.

    The rows of the file are divided; of a file that is one row, its blocks. With a share above 0
    and two rows, each side gets at least one. share: None is the default.
    """
    rows, unit_of = np.unique(dataset.rows, return_inverse=True)
    if len(rows) > 1:
        keys = dataset.store.digests("key", rows)
    else:
        unit_of = np.arange(len(dataset))
        texts = (f"{seed}\0{example.ids}" for example in dataset)
        keys = np.array([hashlib.sha256(text.encode()).digest() for text in texts], "S32")
    count = len(keys)
    if share == 0 or count < 2:
        return dataset, dataset.select(slice(0, 0))
    in_validation = _choose(keys, validation_count(count, share))[unit_of]
    return dataset.select(~in_validation), dataset.select(in_validation)


def validation_count(count: int, share: float | None) -> int:
    """How many of `count` rows are for validation. share: None is the default."""
    if share == 0 or count < 2:
        return 0
    default = min(round(DEFAULT_SHARE * count), DEFAULT_MAX)
    wanted = default if share is None else round(share * count)
    return min(max(1, wanted), count - 1)


def _choose(keys: np.ndarray, wanted: int) -> np.ndarray:
    """(len(keys),) bool: about `wanted` units in whole groups of equal keys, smallest first."""
    _, first, group, sizes = np.unique(
        keys, return_index=True, return_inverse=True, return_counts=True
    )
    chosen, total = np.zeros(len(sizes), bool), 0
    for i, size in enumerate(sizes):
        if total == wanted:
            break
        if total + size <= wanted:
            chosen[i] = True
            total += int(size)
    if total:
        return chosen[group]
    # Every group is too large. Take the smallest: better too many rows than rows on both sides.
    smallest = min(range(len(sizes)), key=lambda i: (sizes[i], first[i]))
    mask = group == smallest
    if sizes[smallest] == len(keys):
        mask[np.flatnonzero(mask)[wanted:]] = False
    return mask


def count_repeated(store: TokenStore) -> int:
    """Rows that repeat the content of an earlier row."""
    return len(store) - len(np.unique(store.digests("content", np.arange(len(store)))))


def repetition_notices(store: TokenStore) -> list[str]:
    """A notice on rows that occur more than once."""
    contents = store.digests("content", np.arange(len(store)))
    _, first, times = np.unique(contents, return_index=True, return_counts=True)
    if len(times) == len(store):
        return []
    most = times.max()
    where = store.where(int(first[times == most].min()))
    return [f"{len(store) - len(times)} rows repeat an earlier row; {where} occurs {most} times"]


def overlap_notices(train: Dataset, validation: Dataset, classes: list[str] | None) -> list[str]:
    """Notices on rows that are on both sides, and on classes without a training row."""
    notices = []
    others = validation
    if validation.store is train.store:  # blocks of one text share its row without repeating it
        others = validation.select(~np.isin(validation.rows, train.rows))
    _, first = np.unique(others.rows, return_index=True)
    others = others.select(np.sort(first))
    both = others.select(np.isin(others.contents, train.contents))
    if len(both):
        notices.append(
            f"{len(both)} validation rows are training rows too, so their loss "
            f"says little: {both.places()}"
        )
    if classes is not None and len(validation) and train.classes is not None:
        seen = set(train.classes[train.store.arrays["label"][train.rows]].tolist())
        missing = [name for i, name in enumerate(classes) if i not in seen]
        if missing:
            notices.append(f"no training row has the class {listed(missing)}")
    return notices
