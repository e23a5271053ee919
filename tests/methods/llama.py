"""A Llama with random weights, laid out as stories260K: five blocks, grouped queries, tied head."""

import atexit
import copy
import shutil
import tempfile
from functools import cache

from torch import nn

from lorica.base.load import load
from tests import small_base, story_base


@cache
def _llama() -> nn.Module:
    return story_base.model(std=0.1, seed=0)


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
