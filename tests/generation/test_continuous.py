"""Texts of many prompts through the decoder: the batch size and the order change nothing."""

import pytest
import torch

from lorica.base.load import LoadedModel
from lorica.base.load import load as load_base
from lorica.errors import TrainingError
from lorica.generation.generate import generate, generate_from_ids
from lorica.generation.sampling import Sampling
from lorica.generation.stops import Stops
from tests.base.architectures import tiny, tokenizer

PROMPTS = ["Once upon a time", "Lily and her mom went to the big park. They", "Tom", "The cat"]


def test_sampled_texts_do_not_depend_on_the_batch_size(small_base):
    base = load_base(str(small_base))
    options = {"max_new_tokens": 20, "temperature": 1.0, "top_p": 0.9, "top_k": 50, "seed": 4}
    want = generate(base, PROMPTS, batch_size=1, **options).tokens
    assert generate(base, PROMPTS, batch_size=3, **options).tokens == want
    assert generate(base, PROMPTS, batch_size=16, **options).tokens == want
    same = generate(base, ["Tom"] * 4, **options).tokens
    assert len(set(map(tuple, same))) > 1, "each row draws numbers of its own"


def test_a_prompt_whose_logits_are_not_finite_is_named():
    base = LoadedModel(tiny("llama"), tokenizer(), "llama")
    base.model.get_input_embeddings().weight.data[299] = torch.nan
    stops = Stops(base.tokenizer)
    with pytest.raises(TrainingError, match="prompt 2: the model's logits are not finite after 3"):
        generate_from_ids(base, [[5, 6], [299, 7, 8]], Sampling(max_new_tokens=4), stops=stops)
