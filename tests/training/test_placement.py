"""Placements: what a step asks of one process and of several, and which one a run gets."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import lorica
from lorica.data.example import Example
from lorica.errors import ConfigError
from lorica.training import placement
from lorica.training.config import read
from lorica.training.placement import Replicated, Single, Split, choose_placement
from lorica.training.step import Stepper
from tests import small_base as small

CPU = torch.device("cpu")
ROWS = [Example([1, 2, 3], [False, True, True], f"row {i}") for i in range(6)]


def process(index: int, count: int = 2) -> Replicated:
    accelerator: Any = SimpleNamespace(
        device=torch.device("cpu", index),
        num_processes=count,
        process_index=index,
        is_main_process=index == 0,
    )
    return Replicated(accelerator)


def test_processes_divide_the_rows_and_draw_their_own_numbers():
    first, second = process(0), process(1)
    assert [row.where for row in first.rows(ROWS)] == ["row 0", "row 2", "row 4"]
    assert [row.where for row in second.rows(ROWS)] == ["row 1", "row 3", "row 5"]
    seeds = [p.seed(step) for step in range(3) for p in (first, second)]
    assert len(set(seeds)) == 6
    assert (first.is_writer, second.is_writer) == (True, False)


def test_placing_a_model_on_the_cpu_copies_nothing():
    """accelerate's "cpu:0" would: every process would hold a copy of what is mapped."""
    layer = torch.nn.Linear(3, 3)
    address = layer.weight.data_ptr()
    process(1).place(layer)
    assert layer.weight.data_ptr() == address


def test_averaged_gradients_of_processes_are_those_of_the_mean_over_all_labels():
    weights = [process(i).loss_weight(10) for i in range(2)]
    losses = [3.0, 5.0]
    averaged = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / 2
    assert averaged == pytest.approx(sum(losses) * Single(CPU).loss_weight(10))


def test_a_step_is_repeated_only_where_no_other_process_waits():
    assert Single(CPU).can_retry
    assert process(0, count=1).can_retry
    assert not process(0).can_retry
    assert not Split(CPU).can_retry


def test_the_settings_choose_the_placement():
    data = {"data": "rows.jsonl"}
    assert type(choose_placement(read(None, data))) is Single
    split = read(None, {**data, "split": "device", "peer": "localhost:1"})
    assert type(choose_placement(split)) is Split


def test_several_processes_do_not_train_several_runs(monkeypatch):
    monkeypatch.setattr(placement, "choose_placement", lambda config: process(0))
    with pytest.raises(ConfigError, match="one process, and 2 were started"):
        placement.placement_for_several(read(None, {"data": "rows.jsonl"}))


def hooks_of(model: torch.nn.Module) -> list[int]:
    return [
        len(hooks)
        for module in model.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
    ]


def test_what_takes_the_steps_leaves_the_model_as_it_is():
    """Hooks are there during a step, not from the moment that its stepper is made."""
    model = lorica.adapt(small.model(), lorica.Lora(r=2))
    before = hooks_of(model)
    Stepper(Single(CPU), model, packed=True, shared=False, pad_id=0)
    assert hooks_of(model) == before
