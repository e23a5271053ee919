"""A batch does not change a row: rows in the groups that were found give what each gives alone."""

import pytest
import torch

import lorica
from lorica.base.batching import Batching, alone, difference, padded_rows, padding_of, probe_ids
from lorica.base.dynamic_rope import reset_before_each_call
from lorica.base.length_thresholds import length_thresholds
from lorica.base.packing import packed_rows, packing_of
from tests.base.architectures import BASES, tiny

LENGTHS = [3, 30, 12, 17, 40, 9, 24, 25, 15, 16, 60, 8, 23]
QUICK = (
    "llama_dynamic",
    "phi3_longrope",
    "llama4_chunks",
    "llama4_temperature",
    "gpt_neo",
    "gemma3",
    "ministral3",
    "rwkv",
)
everywhere = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in BASES]
)


def rows(model, lengths):
    return [probe_ids(model, n, k) for k, n in enumerate(lengths)]


def off(model, forward, batching, lengths, size) -> float:
    """The largest difference between rows in their groups and each row alone."""
    every = rows(model, lengths)
    worst = 0.0
    with torch.no_grad():
        for group in batching.groups(lengths, size):
            some = [every[i] for i in group]
            worst = max(worst, difference(alone(model, some), forward(model, some)))
    return worst


@everywhere
def test_rows_in_their_groups_give_what_each_gives_alone(name):
    model = tiny(name)
    reset_before_each_call(model)
    packing, padding = packing_of(model), padding_of(model)
    for size in (2, 13):
        if packing.refused is None:
            short = [n for n in LENGTHS if packing.longest is None or n <= packing.longest]
            assert off(model, packed_rows, packing, short, size) < 1e-4
        size = 1 if padding.refused else size
        assert off(model, padded_rows, padding, LENGTHS, size) < 1e-4


@pytest.mark.parametrize(
    "name, limits",
    {
        "llama": {},
        "gemma3": {},  # windows are windows of a row
        "phi3_longrope": {"shared": 24},
        "llama_dynamic": {"shared": 24},
        "llama4_chunks": {"longest": 16, "shared": 16},
        "llama4_temperature": {"total": 16, "shared": 16, "longest": 8192},
        "gpt_neo": {"total": 96},
    }.items(),
)
def test_what_limits_a_packed_batch_is_found(name, limits):
    model = tiny(name)
    found = packing_of(model)
    assert found == Batching(**limits, causes=found.causes)
    assert found.causes.keys() == limits.keys()


def test_a_threshold_that_lies_far_is_found_all_the_same():
    """At lengths that no trial can take; afterwards every number of the model is as before."""
    far = {"original_max_position_embeddings": 4096, "max_position_embeddings": 131072}
    rope = BASES["phi3_longrope"][1]["rope_parameters"]
    model = tiny("phi3_longrope", **far, rope_parameters={**rope, **far})
    before = model.config.to_dict(), alone(model, rows(model, [9]))
    assert packing_of(model).shared == padding_of(model).shared == 4096
    assert model.config.to_dict() == before[0]
    assert torch.equal(alone(model, rows(model, [9]))[0], before[1][0])


def test_a_position_table_that_is_too_long_to_try_is_not_passed(monkeypatch):
    monkeypatch.setattr("lorica.base.length_thresholds.WORK", {"cpu": 1e5})
    assert packing_of(tiny("gpt_neo")).total == packing_of(tiny("gpt2")).total == 96
    assert packing_of(tiny("llama")).total is None


@pytest.mark.parametrize("name", ["phi3_longrope", "llama4_temperature"])
def test_rounding_hides_no_threshold(name):
    """In bfloat16 a temperature changes less than rounding does."""
    model = tiny(name).bfloat16()
    assert packing_of(model).shared == packing_of(tiny(name)).shared


def test_a_dynamic_rope_forgets_the_rows_before():
    model = tiny("llama_dynamic")
    reset_before_each_call(model)
    short, middle, long = rows(model, [20, 30, 70])
    fresh = alone(tiny("llama_dynamic"), [middle])
    alone(model, [long])
    assert torch.equal(alone(model, [middle])[0], fresh[0])
    assert torch.equal(alone(model, [short])[0], alone(tiny("llama_dynamic"), [short])[0])


def test_it_is_tried_without_adapters_and_once():
    model = tiny("llama")
    first = packing_of(model)
    calls = []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(1))
    assert packing_of(lorica.adapt(model, lorica.Lora(r=2))) is first
    handle.remove()
    assert not calls


def test_groups_keep_every_row_once():
    found = Batching(shared=10, total=25, causes={"shared": "a", "total": "b"})
    lengths = [3, 11, 10, 9, 8, 40, 10]
    groups = found.groups(lengths, 3)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or max(lengths[i] for i in group) <= 10
        assert len(group) == 1 or sum(lengths[i] for i in group) <= 25
    assert found.joins([3, 10, 9]) and not found.joins([3, 11])
    assert Batching().groups(lengths, 3) == [[0, 1, 2], [3, 4, 5], [6]]


def test_thresholds_are_those_of_the_text_model():
    assert length_thresholds(tiny("llama")) == []
    assert [t.name for t in length_thresholds(tiny("gpt_neo"))] == [
        "window_size",
        "max_position_embeddings",
    ]
