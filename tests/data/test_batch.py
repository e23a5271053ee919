"""Packed and padded batches have the labels of their rows, and no row predicts another's."""

import random
from dataclasses import replace

import pytest
import torch

from lorica.data.batch import labels_of, pack, pad
from lorica.data.example import Example


def examples(seed, rows=7):
    rng = random.Random(seed)
    made = []
    for i in range(rows):
        n = rng.randint(1, 9)
        learned = [False, *(rng.random() < 0.5 for _ in range(n - 1))]
        made.append(Example([rng.randint(3, 99) for _ in range(n)], learned, f"a:{i}"))
    return made


def labels_by_row(rows):
    """(row, the ids before the label, the label) of each label, from the examples."""
    return [
        (i, tuple(e.ids[:t]), e.ids[t])
        for i, e in enumerate(rows)
        for t in range(len(e.ids))
        if e.learned[t]
    ]


def labels_of_batch(batch):
    """The same, from the tensors of a batch."""
    ids, positions = batch.input_ids.flatten(), batch.position_ids.flatten()
    labels = []
    for at, target, row in zip(batch.label_positions, batch.targets, batch.label_rows, strict=True):
        start = int(at - positions[at])
        labels.append((int(row), tuple(ids[start : at + 1].tolist()), int(target)))
    return labels


@pytest.mark.parametrize("seed", range(5))
def test_labels_are_at_their_own_positions(seed):
    rows = examples(seed)
    labels = labels_of(pad(rows, pad_id=0))
    width = max(len(e.ids) for e in rows)
    expected = [
        [i if learned else -100 for i, learned in zip(e.ids, e.learned, strict=True)]
        + [-100] * (width - len(e.ids))
        for e in rows
    ]
    assert labels.tolist() == expected


@pytest.mark.parametrize("seed", range(5))
def test_packed_and_padded_batches_have_the_labels_of_their_rows(seed):
    rows = examples(seed)
    packed, padded = pack(rows), pad(rows, pad_id=0)
    assert labels_of_batch(packed) == labels_of_batch(padded) == labels_by_row(rows)
    for batch in (packed, padded):
        assert batch.lengths == [len(e.ids) for e in rows]
        assert batch.tokens == sum(batch.lengths)
        assert batch.where == tuple(e.where for e in rows)
        assert batch.labels is None


def test_packed_rows_are_concatenated():
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
    assert batch.label_positions.tolist() == [0, 1, 3]
    assert batch.targets.tolist() == [2, 3, 5]
    assert batch.label_rows.tolist() == [0, 0, 1]


def test_classes():
    rows = [Example([1, 2], [False, False], "a", label=1), Example([3], [False], "b", label=0)]
    for batch in (pack(rows), pad(rows, 0)):
        assert batch.labels.tolist() == [1, 0]
        assert batch.label_positions.shape == batch.targets.shape == batch.label_rows.shape == (0,)


def test_to_moves_every_tensor():
    batch = pad(examples(2), 0).to("meta")
    tensors = [v for v in vars(batch).values() if isinstance(v, torch.Tensor)]
    assert len(tensors) == 6 and all(t.is_meta for t in tensors)


def rows_of(batch):
    """The ids of every row of a packed batch: those of its shared prefix, then its own."""
    ids, stop, rows = batch.input_ids[0].tolist(), 0, []
    for prefix, length in zip(batch.shared_prefixes, batch.lengths, strict=True):
        start, stop = stop, stop + length
        rows.append([i for a, b in [*prefix, (start, stop)] for i in ids[a:b]])
    return rows


def with_shared_prefixes(seed):
    """Rows with one of three prefixes, of which one is a prefix of another."""
    rng = random.Random(seed)
    short = [rng.randint(3, 99) for _ in range(10)]
    prefixes = [short, short + [rng.randint(3, 99) for _ in range(9)], [rng.randint(3, 99)] * 5]
    rows = []
    for i in range(11):
        ids = rng.choice(prefixes) + [rng.randint(3, 99) for _ in range(rng.randint(1, 4))]
        learned = [False, *(rng.random() < 0.5 for _ in ids[1:])]
        rows.append(Example(ids, learned, f"a:{i}"))
    return [*rows, replace(rows[0], where="a:11")]


@pytest.mark.parametrize("seed", range(20))
def test_shared_prefixes_are_in_the_batch_once(seed):
    rows = with_shared_prefixes(seed)
    batch = pack(rows, share_prefixes=True)
    assert batch.shared_prefixes is not None
    assert sorted(rows_of(batch)) == sorted(row.ids for row in rows)
    in_order = sorted(rows, key=lambda row: batch.where.index(row.where))
    assert [row.ids for row in in_order] == rows_of(batch)
    assert batch.tokens == sum(len(row.ids) for row in rows) > batch.input_ids.numel()
    assert min(batch.lengths) >= 1
    ids, positions = batch.input_ids[0].tolist(), batch.position_ids[0].tolist()
    whole = rows_of(batch)
    expected = sorted(
        (e.where, t, e.ids[t]) for e in rows for t in range(len(e.ids)) if e.learned[t]
    )
    labels = []
    for at, target, row in zip(batch.label_positions, batch.targets, batch.label_rows, strict=True):
        t = positions[at] + 1
        assert ids[at] == whole[row][t - 1]
        labels.append((batch.where[row], t, int(target)))
    assert sorted(labels) == expected


def test_rows_with_different_conditions_share_no_prefix():
    """Their adapters differ, so the hidden states of the prefix differ."""
    ids = list(range(3, 23))
    rows = [
        Example([*ids, i], [False] * 20 + [True], "a", condition=c)
        for i, c in enumerate(["x", "y", "x", "y"], 40)
    ]
    batch = pack(rows, share_prefixes=True)
    assert batch.conditions == ("x", "x", "y", "y")
    assert batch.lengths == [21, 1, 21, 1]
    assert batch.shared_prefixes == [[], [(0, 20)], [], [(22, 42)]]


def test_short_prefixes_are_not_shared():
    rows = [Example([3, 4, 5, 6, i, 7], [False, True] * 3, "a") for i in (50, 51)]
    assert pack(rows, share_prefixes=True).shared_prefixes is None
