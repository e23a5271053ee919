"""A Llama with the sizes of stories260K and random weights: five blocks, a tied head.

Its 260,032 parameters are in 35 linear layers, an embedding of 512 rows and 11 norms. The tokenizer
is that of tests/small_base.py, which has fewer tokens than the embedding has rows.
"""

from pathlib import Path
from typing import Any

import transformers

from lorica.core.draws import drawing
from tests import small_base


def model(*, std: float = 0.15, seed: int = 5) -> Any:
    """std: of the random weights, which follow from the seed."""
    config = transformers.LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
        initializer_range=std,
    )
    with drawing(seed):
        return transformers.LlamaForCausalLM(config).eval()


def write(folder: Path) -> Path:
    """Write the base into `folder`. Returns: the folder."""
    model().save_pretrained(folder)
    small_base.tokenizer().save_pretrained(folder)
    return folder
