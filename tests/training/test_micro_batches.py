"""Micro-batches by tokens: which rows go together, and that the update does not depend on it."""

from itertools import pairwise

import numpy as np
import pytest
import torch

import lorica
from lorica.base.batching import Batching
from lorica.training.micro_batches import (
    MicroBatchLimit,
    halved,
    micro_batches,
    over_budget_notice,
)
from lorica.training.objective import Objective
from tests.training.rows import ROUNDING, adapter, farthest, settings

LENGTHS = [
    [7] * 8,
    [100, 3, 5, 90, 40, 40, 8, 9],
    [500, 1, 1, 1],
    [1],
    list(range(1, 60)),
]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("tokens", [1, 40, 128, 10_000])
@pytest.mark.parametrize("rows", [3, 64])
@pytest.mark.parametrize("packed", [True, False])
def test_every_row_is_in_one_micro_batch_within_the_limit(lengths, tokens, rows, packed):
    limit = MicroBatchLimit(rows, tokens)
    groups = micro_batches(lengths, limit, Batching(), packed=packed)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        own = [lengths[i] for i in group]
        computed = sum(own) if packed else max(own) * len(own)
        assert len(group) <= rows
        assert computed <= tokens or len(group) == 1


def test_packed_micro_batches_are_even_and_few():
    """No micro-batch is lighter than another by more than the longest row."""
    draw = np.random.default_rng(0)
    lengths = draw.integers(5, 300, 64).tolist()
    groups = micro_batches(lengths, MicroBatchLimit(64, 2_000), Batching(), packed=True)
    sizes = [sum(lengths[i] for i in group) for group in groups]
    assert max(sizes) - min(sizes) <= max(lengths)
    assert len(groups) <= -(-sum(lengths) // 2_000) + 1


def test_padded_micro_batches_hold_rows_of_similar_length():
    lengths = [9, 90, 10, 95, 11, 100, 8, 92]
    groups = micro_batches(lengths, MicroBatchLimit(8, 400), Batching(), packed=False)
    assert sorted(map(sorted, groups)) == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_limits_of_the_architecture_hold_too():
    lengths = [30, 5, 5, 5, 40, 5]
    limit = MicroBatchLimit(64, 1_000)
    groups = micro_batches(lengths, limit, Batching(shared=20), packed=True)
    assert [4] in groups
    assert [0] in groups
    total = micro_batches(lengths, limit, Batching(total=45), packed=True)
    assert all(sum(lengths[i] for i in group) <= 45 for group in total)
    one_by_one = micro_batches(lengths, limit, Batching("no rows together"), packed=True)
    assert sorted(one_by_one) == [[i] for i in range(6)]


@pytest.mark.parametrize("limit", [MicroBatchLimit(8), MicroBatchLimit(8, 1 << 20)])
@pytest.mark.parametrize("packed", [True, False])
def test_halving_ends_with_every_row_alone(limit, packed):
    """Each lower limit has a smaller heaviest micro-batch."""
    lengths = [100, 3, 5, 90, 40, 40, 8, 9]
    heaviest, counts = [], []
    while limit is not None:
        groups = micro_batches(lengths, limit, Batching(), packed=packed)
        counts.append(len(groups))
        tokens = [[lengths[i] for i in group] for group in groups]
        heaviest.append(max(sum(own) if packed else max(own) * len(own) for own in tokens))
        limit = halved(limit, lengths, Batching(), packed=packed)
    assert counts[0] == 1
    assert counts[-1] == 8
    assert all(a >= b for a, b in pairwise(heaviest))
    assert len(counts) < 10


def test_rows_above_the_budget_are_named():
    lengths = np.array([10, 700, 30, 800])
    (notice,) = over_budget_notice(lengths, 512)
    assert "2 of 4 rows" in notice
    assert "800 tokens" in notice
    assert over_budget_notice(lengths, None) == over_budget_notice(lengths, 800) == []


@pytest.mark.parametrize("padded", [False, True])
def test_a_token_budget_gives_the_same_update(small_base, tmp_path, monkeypatch, padded):
    if padded:
        monkeypatch.setattr("lorica.base.packing.why_not_packed", lambda model: "for this test")
    asked, own = [], Objective.forward

    def forward(self, batch):
        asked.append(batch.input_ids.numel())
        return own(self, batch)

    monkeypatch.setattr(Objective, "forward", forward)
    whole = lorica.train(**settings(small_base, tmp_path / "a", learning_rate=2e-4), show=False)
    largest = max(asked)
    asked.clear()
    changed = {"learning_rate": 2e-4, "max_tokens_per_micro_batch": largest // 2}
    parts = lorica.train(**settings(small_base, tmp_path / "b", **changed), show=False)
    assert max(asked) <= largest // 2
    assert farthest(adapter(whole.folder), adapter(parts.folder)) < ROUNDING


def test_a_micro_batch_of_tokens_that_does_not_fit_is_halved(small_base, tmp_path, monkeypatch):
    """The update is that of the budget that fits, and a notice gives it."""
    own = Objective.forward

    def forward(self, batch):
        if len(batch.lengths) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return own(self, batch)

    whole = lorica.train(**settings(small_base, tmp_path / "a", learning_rate=2e-4), show=False)
    monkeypatch.setattr(Objective, "forward", forward)
    changed = {"learning_rate": 2e-4, "max_tokens_per_micro_batch": 1 << 20}
    done = lorica.train(**settings(small_base, tmp_path / "b", **changed), show=False)
    (notice,) = [line for line in done.notices if "memory was full" in line]
    assert "tokens from here on, not 1048576 tokens" in notice
    assert farthest(adapter(whole.folder), adapter(done.folder)) < ROUNDING
