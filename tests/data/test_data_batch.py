"""Batches: packed and padded ask for the same labels, row by row, and never over a border."""

import random

import pytest
import torch

from lorica.data.batch import pack, pad
from lorica.data.tokenise import Example


def examples(seed, rows=7):
    rng = random.Random(seed)
    found = []
    for i in range(rows):
        n = rng.randint(1, 9)
        learned = [False, *(rng.random() < 0.5 for _ in range(n - 1))]
        found.append(Example([rng.randint(3, 99) for _ in range(n)], learned, f"a:{i}"))
    return found


def asked(rows):
    """(row, the ids before the label, the label), by plain bookkeeping."""
    return [
        (i, tuple(e.ids[:t]), e.ids[t])
        for i, e in enumerate(rows)
        for t in range(len(e.ids))
        if e.learned[t]
    ]


def told(batch):
    """The same, read from the batch: the ids of a position's row up to it."""
    ids, positions = batch.input_ids.flatten(), batch.position_ids.flatten()
    found = []
    for at, target, row in zip(batch.predict, batch.targets, batch.row, strict=True):
        start = int(at - positions[at])
        found.append((int(row), tuple(ids[start : at + 1].tolist()), int(target)))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_packed_and_padded_are_the_row_by_row_bookkeeping(seed):
    rows = examples(seed)
    packed, padded = pack(rows), pad(rows, pad_id=0)
    assert told(packed) == told(padded) == asked(rows)
    for batch in (packed, padded):
        assert batch.lengths == [len(e.ids) for e in rows]
        assert batch.tokens == sum(batch.lengths)
        assert batch.where == tuple(e.where for e in rows)
        assert batch.labels is None


def test_packed_rows_lie_end_to_end():
    rows = examples(0)
    batch = pack(rows)
    assert batch.input_ids.shape == batch.position_ids.shape == (1, batch.tokens)
    assert batch.attention_mask is None
    assert batch.input_ids[0].tolist() == [i for e in rows for i in e.ids]
    assert batch.position_ids[0].tolist() == [t for e in rows for t in range(len(e.ids))]


def test_padding_is_on_the_right_and_masked():
    rows = examples(1)
    batch = pad(rows, pad_id=7)
    assert batch.attention_mask.sum(1).tolist() == batch.lengths
    for i, example in enumerate(rows):
        n = len(example.ids)
        assert batch.input_ids[i].tolist() == example.ids + [7] * (batch.input_ids.shape[1] - n)
        assert batch.position_ids[i, :n].tolist() == list(range(n))


def test_no_position_predicts_into_another_row():
    rows = [Example([1, 2, 3], [False, True, True], "a"), Example([4, 5], [False, True], "b")]
    batch = pack(rows)
    assert batch.predict.tolist() == [0, 1, 3]
    assert batch.targets.tolist() == [2, 3, 5]
    assert batch.row.tolist() == [0, 0, 1]


def test_classes():
    rows = [Example([1, 2], [False, False], "a", label=1), Example([3], [False], "b", label=0)]
    for batch in (pack(rows), pad(rows, 0)):
        assert batch.labels.tolist() == [1, 0]
        assert batch.predict.shape == batch.targets.shape == batch.row.shape == (0,)


def test_to_moves_every_tensor():
    batch = pad(examples(2), 0).to("meta")
    tensors = [v for v in vars(batch).values() if isinstance(v, torch.Tensor)]
    assert len(tensors) == 6 and all(t.is_meta for t in tensors)
