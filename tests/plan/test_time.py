"""Time of a step, from operations and bytes."""

import json
from dataclasses import replace

import pytest

from lorica.plan import time as plan_time
from lorica.plan.devices import device_named, devices
from lorica.plan.shapes import Shapes, read_shapes
from lorica.plan.time import SHARES, Rates, Span, seconds, step_time, waits_for_launches, work_of
from lorica.plan.tokens import MicroBatch, TokenCounts
from lorica.recipe.catalogue import method as catalogued
from lorica.training.settings import TrainSettings

C, F, LAYERS, V = 4096, 11008, 32, 32_000
"""LLaMA-7B."""
BLOCK = 4 * C * C + 3 * C * F
BATCH = MicroBatch(rows=4, tokens=512, labels=512, longest=128, attended=512)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Shapes:
    folder = tmp_path_factory.mktemp("llama")
    config = {
        "model_type": "llama",
        "hidden_size": C,
        "intermediate_size": F,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 32,
        "vocab_size": V,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return read_shapes(str(folder))


def settings(name: str = "lora", **more) -> TrainSettings:
    own = {option.name: option.value for option in catalogued(name).options}
    own |= more.pop("method", {})
    return TrainSettings(data={"path": "rows.jsonl"}, method={"name": name, **own}, **more)


def work(llama, name="lora", batch=BATCH, **more):
    given = settings(name, **more)
    return work_of(llama, given.method, given, batch)


def test_a_frozen_base_costs_four_operations_a_weight_and_token_and_a_full_one_six(llama):
    weights = LAYERS * BLOCK + V * C  # of the products: blocks and head
    tokens, attention = 512, 2 * LAYERS * C * 4 * 128**2
    frozen, full = work(llama, "ia3"), work(llama, "full")
    assert frozen.products == 4 * weights * tokens + 2 * attention
    assert full.products == 6 * weights * tokens + 3 * attention
    assert llama.parameters == pytest.approx(weights + V * C, rel=1e-4)  # 6 P T, but for the table


def test_lora_adds_its_two_products_in_three_passes(llama):
    r = 8
    pairs = LAYERS * r * (4 * 2 * C + 3 * (C + F))
    assert work(llama).products - work(llama, "ia3").products == 6 * pairs * 512


def test_checkpointing_computes_the_blocks_once_more(llama):
    extra = work(llama, "ia3", gradient_checkpointing=True).products - work(llama, "ia3").products
    assert extra == 2 * LAYERS * BLOCK * 512 + 2 * LAYERS * C * 4 * 128**2


def test_the_last_block_computes_label_positions_only(llama):
    few = replace(BATCH, labels=100)
    fewer = work(llama, "ia3").products - work(llama, "ia3", few).products
    last = 2 * (C * C + C * C + 3 * C * F)  # queries, output and MLP; keys and values stay
    assert fewer == 2 * last * 412 + 4 * V * C * 412


def test_four_bits_are_unpacked_in_each_pass(llama):
    assert work(llama, quantisation="nf4").unpacked == 2 * LAYERS * BLOCK
    again = work(llama, quantisation="nf4", gradient_checkpointing=True)
    assert again.unpacked == 3 * LAYERS * BLOCK
    assert work(llama).unpacked == 0


def test_full_fine_tuning_updates_every_parameter(llama):
    assert work(llama, "full").update_bytes == 28 * llama.parameters


def counts(batch: MicroBatch) -> TokenCounts:
    return TokenCounts(1000, 128_000, 32_000, 128_000, 128, batch, batch)


def test_a_card_gives_a_range_and_accumulation_multiplies_it(llama):
    card, given = device_named("a100-80"), settings(dtype="bfloat16")
    one = step_time(llama, given.method, given, counts(BATCH), card)
    assert one and one.low < one.expected < one.high
    least = work(llama, dtype="bfloat16").products / card.flops["bfloat16"]
    assert one.low > least
    four = settings(dtype="bfloat16", gradient_accumulation_steps=4)
    more = step_time(llama, four.method, four, counts(BATCH), card)
    assert more and 3.8 < more.expected / one.expected <= 4


@pytest.mark.parametrize("card", list(devices()))
@pytest.mark.parametrize("name", ["lora", "full"])
@pytest.mark.parametrize("rows", [1, 64])
def test_a_range_lies_on_both_sides(llama, card, name, rows):
    """Whatever decides: products, the bytes of weights or of the optimizer, or launches."""
    batch = MicroBatch(rows, rows * 60, rows * 20, 60, rows * 60)
    for shapes in (llama, read_shapes("bundled")):
        given = settings(name, dtype="bfloat16")
        span = step_time(shapes, given.method, given, counts(batch), device_named(card))
        assert span and 1.1 * span.low < span.expected < span.high / 1.1


def test_a_note_says_when_launches_decide(llama):
    def waits(rows: int, device: str, shapes: Shapes = llama) -> bool:
        batch = MicroBatch(rows, rows * 60, rows * 20, 60, rows * 60)
        given = settings(dtype="bfloat16")
        return waits_for_launches(shapes, given.method, given, counts(batch), device_named(device))

    assert waits(4, "h100") and not waits(64, "h100") and not waits(4, "t4")
    assert waits(4, "t4", read_shapes("bundled")) and not waits(4, "cpu")
    assert not waits(4, "24GiB")


def test_float32_is_slower_and_a_card_without_bfloat16_computes_it_as_float32(llama):
    def expected(device: str, dtype: str) -> float:
        given = settings(dtype=dtype)
        span = step_time(llama, given.method, given, counts(BATCH), device_named(device))
        assert span
        return span.expected

    assert expected("h100", "float32") > 4 * expected("h100", "bfloat16")
    assert expected("t4", "bfloat16") > 4 * expected("l4", "bfloat16")


def test_a_size_alone_gives_no_time(llama):
    given = settings()
    assert step_time(llama, given.method, given, counts(BATCH), device_named("24GiB")) is None


def test_bfloat16_on_a_cpu_without_its_instructions_is_not_predicted(llama, monkeypatch):
    monkeypatch.setattr(plan_time, "cpu_rates", lambda: Rates(1e11, 1e10))
    given, cpu = settings(dtype="bfloat16"), device_named("cpu")
    monkeypatch.setattr(plan_time, "cpu_has_bfloat16", lambda: False)
    assert step_time(llama, given.method, given, counts(BATCH), cpu) is None
    monkeypatch.setattr(plan_time, "cpu_has_bfloat16", lambda: True)
    assert step_time(llama, given.method, given, counts(BATCH), cpu) is not None


def test_a_cpu_is_measured():
    rates = plan_time.cpu_rates()
    assert 1e9 < rates.products < 1e14
    assert 1e8 < rates.bandwidth < 1e13


def test_small_batches_are_bound_by_the_weights_bytes(llama):
    tiny = work(llama, "ia3", MicroBatch(1, 4, 4, 4, 4), dtype="bfloat16")
    rates = Rates(312e12, 1555e9)
    spent = seconds(replace(tiny, calls=0), rates, device_named("a100-40"), SHARES["cuda"][1], 1)
    assert spent >= 2 * 2 * llama.parameters / 1555e9


def test_a_span_scales_and_adds():
    assert Span(1, 2, 3) * 2 + Span(1, 1, 1) == Span(3, 5, 7)
