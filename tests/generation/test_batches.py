"""Prompts in a batch get the text that they get alone, on every kind of base."""

import pytest
import torch

from lorica.base.batching import Batching
from lorica.base.dynamic_rope import reset_before_each_call
from lorica.base.load import LoadedModel
from lorica.generation.batches import batches, batching_for, batching_notices
from lorica.generation.generate import generate_from_ids
from lorica.generation.sampling import Sampling
from lorica.generation.stops import Stops
from tests.base.architectures import BASES, tiny, tokenizer

QUICK = ("phi3_longrope", "llama_dynamic", "rwkv", "jamba", "mamba2", "gpt2", "llama4_temperature")
EXACT = ("llama", "gpt2", "gemma3", "qwen3", "opt")  # batches of any lengths are exact


def base(name: str) -> LoadedModel:
    model = tiny(name)
    reset_before_each_call(model)
    return LoadedModel(model, tokenizer(), name)


def prompts(*lengths: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(3)
    return [torch.randint(5, 290, (n,), generator=draw).tolist() for n in lengths]


def write(base: LoadedModel, ids: list[list[int]], size: int):
    return generate_from_ids(
        base, ids, Sampling(max_new_tokens=9), stops=Stops(base.tokenizer), batch_size=size
    )


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in BASES]
)
def test_a_batch_gives_the_text_of_each_prompt_alone(name):
    """Prompts below a length threshold, past it, and some that pass it while they grow."""
    loaded, ids = base(name), prompts(4, 11, 13, 20, 30, 11)
    ids = [p for p in ids if name != "llama_dynamic" or len(p) < 15]
    together = write(loaded, ids, 6)
    assert together.tokens == write(base(name), ids, 1).tokens
    assert together.tokens == [write(base(name), [p], 1).tokens[0] for p in ids]


@pytest.mark.parametrize("name", EXACT)
def test_prompts_of_any_length_share_a_batch_where_it_changes_nothing(name):
    loaded, ids = base(name), prompts(4, 11, 13)
    size, batching = batching_for(loaded, ids, 3)
    assert (size, batching.refused, batching.shared) == (3, None, None)
    assert [len(b) for b in batches(ids, [9] * 3, size, batching)] == [3]
    assert not any("one length" in notice for notice in write(loaded, ids, 3).notices)


def test_a_base_whose_batches_mix_rows_gets_one_prompt_at_a_time():
    """transformers' RWKV adds up the states of a batch's rows."""
    for lengths in ((4, 11, 11), (11, 11)):
        notices = write(base("rwkv"), prompts(*lengths), 3).notices
        assert any(
            "one at a time: RwkvForCausalLM mixes batched rows" in notice for notice in notices
        )
    mixed = Batching(refused="It mixes left-padded rows")
    assert batching_notices(3, mixed, prompts(4, 9), [9, 9]) == [
        "a batch has prompts of one length: It mixes left-padded rows"
    ]
    assert [len(b) for b in batches(prompts(4, 9, 9), [9] * 3, 3, mixed)] == [2, 1]


def test_a_notice_names_the_threshold_that_texts_pass():
    generation = write(base("phi3_longrope"), prompts(4, 20), 2)
    assert any(
        "where texts pass 24 tokens (original_max_position_embeddings)" in notice
        for notice in generation.notices
    )
    assert len(write(base("phi3_longrope"), prompts(4, 9), 2).notices) == 2
