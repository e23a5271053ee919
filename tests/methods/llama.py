"""A Llama with random weights, laid out as stories260K: five blocks, grouped queries, tied head."""

import atexit
import copy
import shutil
import tempfile
from functools import cache

from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lorica.base.load import load
from lorica.core.draws import drawing
from tests import small_base


@cache
def _llama() -> nn.Module:
    config = LlamaConfig(
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
        initializer_range=0.1,
    )
    with drawing(0):
        return LlamaForCausalLM(config).eval()


def llama() -> nn.Module:
    """A fresh copy."""
    return copy.deepcopy(_llama())


@cache
def _llama_nf4() -> nn.Module:
    folder = tempfile.mkdtemp()  # read again for the original weights
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    llama().save_pretrained(folder)  # type: ignore[operator]
    small_base.tokenizer().save_pretrained(folder)
    return load(folder, quantisation="nf4").model


def llama_nf4() -> nn.Module:
    """A fresh copy of the same in 4 bits, which knows its original weights."""
    return copy.deepcopy(_llama_nf4())
