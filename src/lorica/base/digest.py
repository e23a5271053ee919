"""Digests of every number of a model's weights, and of the behaviour of its tokenizer.

Tensors are hashed with sha256 in threads, a few million numbers at a time: hashlib releases the
interpreter's lock, and no copy of a model is made. A file's own digest would be as fast, but a
model that came from Python has no file.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from lorica.base.mapped_memory import mapped_weights, release_pages
from lorica.progress import Progress

CHUNK = 1 << 22
"""Numbers that are hashed at a time; a thread copies no more."""
DIGITS = 16
"""Hexadecimal digits that are kept: two different tensors agree once in 10^19."""
PROBE = (
    "Hello world! It's 10,234.5 km,  twice\tas far.\n\n    def f(x): return x**2  # naïve\n"
    "Größe ÄÖÜ, ¿qué?, Москва, 東京都, 한국어, مرحبا, 🙂👍🏽, ﬁ, e\u0301"
)
"""A text that shows how a tokenizer treats case, spaces, digits, accents and scripts."""


def digests(tensors: Mapping[str, Tensor], *, rounded: bool) -> dict[str, str]:
    """A digest of each tensor, by its name. rounded: of the numbers as bfloat16 holds them.

    The pages of a mapped tensor are released once it is hashed.
    """
    ranges = mapped_weights()

    def digest_and_release(tensor: Tensor) -> str:
        try:
            return digest(tensor, rounded=rounded)
        finally:
            release_pages(tensor, ranges)

    # In a forked process torch makes its thread pool anew at first use; two threads that do so at
    # once find none. Setting the number of threads, to what it is, makes the pool here.
    torch.set_num_threads(torch.get_num_threads())
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        by_name = dict[str, str]()
        with Progress("hashing the base", sum(t.nbytes for t in tensors.values()), "B") as progress:
            for name, hexadecimal in zip(
                tensors, pool.map(digest_and_release, tensors.values()), strict=True
            ):
                by_name[name] = hexadecimal
                progress.advance(tensors[name].nbytes)
        return by_name


@torch.no_grad()
def digest(tensor: Tensor, *, rounded: bool) -> str:
    """A digest of all numbers of a tensor in their order.

    rounded: round floats to bfloat16 first, so that a base loaded in float32 and in bfloat16 has
        one digest. Otherwise the bits are hashed as they are held.
    """
    sha = hashlib.sha256()
    for part in tensor.detach().reshape(-1).split(CHUNK):
        if rounded and part.is_floating_point():
            part = part.to(torch.bfloat16)
        sha.update(part.cpu().contiguous().view(torch.uint8).numpy())  # type: ignore[arg-type]
    return sha.hexdigest()[:DIGITS]


def tokenizer_parts(tokenizer: Any) -> dict[str, str]:
    """A digest of each part of a tokenizer, by the part's name in tokenizer.json.

    `probe` is of the ids of a fixed text: it shows what is set outside of these parts. The pad
    token is left out, because padding is masked.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        parts: dict[str, Any] = {"vocabulary": sorted(tokenizer.get_vocab().items())}
    else:
        parts = json.loads(backend.to_str())
        for state in ("version", "truncation", "padding"):  # of the last call, not of the tokenizer
            parts.pop(state, None)
    special = {k: str(v) for k, v in tokenizer.special_tokens_map.items() if k != "pad_token"}
    parts["special_tokens"] = special
    text = PROBE + " ".join(special.values())
    parts["probe"] = list(tokenizer(text)["input_ids"])
    return {key: _sha(_plain(value)) for key, value in parts.items()}


def _plain(value: Any) -> Any:
    """`value` without settings that are off: a newer library writes more of them."""
    match value:
        case dict():
            return {k: _plain(v) for k, v in value.items() if v is not None and v is not False}
        case list() | tuple():
            return [_plain(v) for v in value]
    return value


def _sha(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
