"""Memory against arithmetic that is written out, and what each setting changes."""

from dataclasses import replace

import pytest

from lorica.plan.activations import kept
from lorica.plan.devices import device_named
from lorica.plan.memory import OVERHEAD, peak_memory
from lorica.plan.shapes import read_shapes
from lorica.plan.tokens import EvaluationBatch, MicroBatch, TokenCounts
from lorica.recipe.catalogue import methods
from tests.plan.planned import settings, write_base

BATCH = MicroBatch(rows=4, tokens=1000, labels=400, longest=300, attended=1100)
TOKENS = TokenCounts(1000, 250_000, 100_000, 250_000, 300, BATCH, BATCH, conditions=("a", "b"))
CARD = device_named("80GiB")


@pytest.fixture
def llama(tmp_path):
    return write_base(tmp_path / "llama")


def memory(base, device=CARD, tokens=TOKENS, **given):
    config = settings("rows.jsonl", base, **given)
    return peak_memory(read_shapes(base), config.method, config, tokens, device)


def test_llama_7b_written_out(llama):
    """LoRA of rank 8 on queries and values, in bfloat16."""
    planned = memory(llama, dtype="bfloat16", target_modules=["q_proj", "v_proj"])
    adapter = 32 * 2 * 8 * (4096 + 4096)
    assert planned.weights == 2 * 6_738_415_616
    assert planned.adapter == (4 + 4) * adapter  # tensors and gradients
    assert planned.optimizer == 8 * adapter
    # Of every token: both norms in float32, x, A x, and the MLP.
    block = 1000 * (4 * 4096 + 4096 + 2 * 8 + 3 * 11008)
    attention = 1100 * (4 * 4096 + 32)
    last = 1000 * (4 * 4096 + 4096) + 400 * (2 * 8 + 3 * 11008) + attention
    ends = 1000 * (2 * 4096 + 2 * 128) + 400 * 3 * 4096  # the last norm, positions, label positions
    elements = 31 * (block + attention) + last + ends
    config = settings("rows.jsonl", llama, dtype="bfloat16", target_modules=["q_proj", "v_proj"])
    assert kept(read_shapes(llama), config.method, config, BATCH) == elements
    assert planned.activations == int(OVERHEAD["cuda"] * 2 * elements)
    assert planned.total == sum(vars(planned).values())


def test_full_fine_tuning_of_7b_needs_sixteen_bytes_for_a_parameter(llama):
    planned = memory(llama, method="full")
    assert planned.adapter + planned.optimizer == 16 * 6_738_415_616
    assert memory(llama, method="full", optimizer="sgd").optimizer == 0


def test_qlora_of_70b_fits_into_48_gib(tmp_path):
    base = write_base(
        tmp_path / "70b",
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
    )
    given = {"dtype": "bfloat16", "gradient_checkpointing": True}
    card = device_named("48GiB")
    assert memory(base, card, quantisation="nf4", **given).total < card.memory_bytes
    assert memory(base, card, **given).total > 2.5 * card.memory_bytes


@pytest.mark.parametrize("name", methods())
def test_every_method_has_memory_of_its_own(llama, name):
    planned = memory(llama, method=name)
    frozen = memory(llama, method={"name": "prompt_tuning", "num_virtual_tokens": 1})
    assert planned.weights == frozen.weights
    assert planned.activations >= frozen.activations * 0.9
    assert planned.optimizer > 0


def test_what_each_setting_saves(llama):
    plain = memory(llama)
    assert memory(llama, gradient_checkpointing=True).activations < 0.3 * plain.activations
    half = memory(llama, dtype="bfloat16").activations / plain.activations
    assert 0.5 < half < 0.6  # norms compute in float32
    assert memory(llama, method={"name": "lora_fa"}).activations < plain.activations
    assert memory(llama, layers_to_transform=[31]).activations < 0.1 * plain.activations
    half = MicroBatch(2, 500, 200, 300, 550)
    fewer = TokenCounts(1000, 250_000, 100_000, 250_000, 300, half, half)
    assert memory(llama, tokens=fewer).activations == pytest.approx(plain.activations / 2)


def test_logits_are_those_of_a_chunk(llama):
    many = MicroBatch(400, 100_000, 90_000, 300, 100_000)
    tokens = TokenCounts(1000, 250_000, 100_000, 250_000, 300, many, many)
    assert memory(llama, tokens=tokens).logits < 300 * 2**20


def test_a_quantised_base_counts_codes_scales_and_one_unpacked_layer(llama):
    planned = memory(llama, quantisation="nf4", dtype="bfloat16")
    codes = read_shapes(llama).bytes_of("bfloat16", "nf4")
    assert planned.weights == codes + 2 * 4096 * 11008
    kept = memory(llama, quantisation="nf4", dtype="bfloat16", unpacked_gib=2.0)
    assert kept.weights == planned.weights + 2 * 2**30


def test_an_evaluation_may_be_the_peak(llama):
    """16 padded rows of 256 tokens, logits at 200 positions, and those of 2,000 labels."""
    one = MicroBatch(1, 250, 100, 250, 250)
    batch = EvaluationBatch(rows=16, longest=256, positions=200, labels=2_000)
    tokens = replace(TOKENS, largest=one, evaluated=batch)
    given = {"dtype": "bfloat16", "gradient_checkpointing": True}
    planned = memory(llama, tokens=tokens, **given)
    at_positions, at_labels = 16 * 200 * 32_000, 2_000 * 32_000
    assert planned.logits == 2 * at_positions + 2 * at_labels + 8 * 2**24
    assert planned.activations == 2 * 16 * 256 * 4096
    without = memory(llama, tokens=replace(tokens, evaluated=None), **given)
    assert planned.total - without.total > 300 * 2**20
    assert memory(llama, tokens=replace(TOKENS, evaluated=batch)) == memory(llama)
