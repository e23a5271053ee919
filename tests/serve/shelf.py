"""Adapters of several methods on the small base, and what each of them answers alone.

The answers are computed without the engine: a fresh base for each adapter, `lorica.load`, the whole
text through the model again for every token (no cache), and a sampler written out in NumPy.

Rounding differs between a batch and a row alone, so a token whose choice is a near tie is not
compared: each answer says how many of its first tokens were chosen with a clear margin, and
requests ask for no more. `test_no_mixup.py` measures that the difference is far below the margin.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import lorica
from lorica.core.condition import set_conditions
from lorica.formats.adapter_file import read
from lorica.generation.sampling import Sampling
from tests import small_base
from tests.laws.bases import SIZES, move

LOGIT_MARGIN = 1e-3
"""Between the best logit and the next: greedy decoding."""
DRAW_MARGIN = 1e-5
"""Between a drawn number and the nearest border of its token's interval, in probability."""
CONDITIONS = ("en-de", "de-en", "fr-de")
SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4},
    "dora": {"r": 4},
    "adalora": {"r": 4},
    "pissa": {"r": 4, "init": "pissa"},
    "ia3": {},
    "prefix_tuning": {"num_virtual_tokens": 5},
    "hyperlora": {"r": 4, "condition": "pair", "conditions": CONDITIONS},
}
SAMPLED: tuple[dict[str, Any], ...] = (
    {"temperature": 0.4},
    {"temperature": 0.6, "top_p": 0.9},
    {"temperature": 0.8, "top_k": 20},
    {"temperature": 0.5, "top_p": 0.95, "top_k": 50},
)
WORDS = small_base.WORDS.split()
TOKENIZER: Any = small_base.tokenizer()
Key = tuple[str, str | None]
"""Digest and condition of an adapter; ("", None): the base."""


@dataclass(frozen=True)
class Alone:
    """tokens: with the one that ends the text. clear: of the first ones, those without near ties.

    texts: of the answer after each token; None: it has bytes that are no character.
    """

    sampling: Sampling
    tokens: tuple[int, ...]
    clear: int
    texts: tuple[str, ...] | None


@dataclass(frozen=True)
class Shelf:
    """folders: what each alias may hold, one or two adapters. prompts: their token ids.

    alone: by adapter and prompt, the greedy answer and a sampled one.
    """

    folders: Mapping[str, tuple[Path, ...]]
    digests: Mapping[Path, str]
    conditions: Mapping[str, tuple[str, ...]]
    prompts: tuple[tuple[int, ...], ...]
    alone: Mapping[tuple[Key, int], tuple[Alone, ...]]

    def keys(self, alias: str | None, condition: str | None) -> set[Key]:
        """What a request for an alias may be answered by; None: the base."""
        if alias is None:
            return {("", None)}
        return {(self.digests[folder], condition) for folder in self.folders[alias]}


def stock(
    root: Path, plan: Mapping[str, int], *, twice: int, prompts: Sequence[int], tokens: int
) -> Shelf:
    """plan: how many aliases of each method. twice: aliases of which there are two contents.

    prompts: their lengths. tokens: of each answer.
    """
    kinds = [kind for i in range(max(plan.values())) for kind in plan if i < plan[kind]]
    ids = tuple(_prompt(number, length) for number, length in enumerate(prompts))
    folders, digests, alone = {}, {}, dict(_answers(("", None), small_base.model(), ids, tokens))
    for number, kind in enumerate(kinds):
        alias = f"{kind.replace('_', '-')}-{number}"
        names = (alias, f"{alias}.b")[: 1 + (number < twice)]
        folders[alias] = tuple(root / name for name in names)
        for version, folder in enumerate(folders[alias]):
            write(folder, kind, seed=1000 * version + number)
            digests[folder] = read(folder).digest
            for condition in CONDITIONS if kind == "hyperlora" else (None,):
                model = small_base.model()
                lorica.load(model, folder, tokenizer=TOKENIZER)
                if condition is not None:
                    set_conditions(model, [condition])
                alone |= _answers((digests[folder], condition), model, ids, tokens)
    conditions = {alias: CONDITIONS for alias in folders if alias.startswith("hyperlora")}
    return Shelf(folders, digests, conditions, ids, alone)


def write(folder: Path, kind: str, seed: int) -> None:
    """An adapter that has moved away from its start."""
    name = "lora" if kind == "pissa" else kind
    model = lorica.adapt(small_base.model(), lorica.method(name, **SETTINGS[kind]))
    move(model, seed, max(0.1, SIZES.get(name, 0)))
    lorica.save(model, folder, tokenizer=TOKENIZER)


def _prompt(number: int, length: int) -> tuple[int, ...]:
    """Token ids of about as many words as needed for `length` tokens."""
    text = " ".join(WORDS[(7 * number + i) % len(WORDS)] for i in range(length))
    return tuple(TOKENIZER(text)["input_ids"][:length])


def _answers(
    key: Key, model: Any, prompts: Sequence[tuple[int, ...]], tokens: int
) -> Iterator[tuple[tuple[Key, int], tuple[Alone, ...]]]:
    for number, prompt in enumerate(prompts):
        settings = SAMPLED[number % len(SAMPLED)]
        samplings = [
            Sampling(max_new_tokens=tokens),
            Sampling(max_new_tokens=tokens, seed=100 + number, **settings),
        ]
        yield (key, number), tuple(answer(model, prompt, s) for s in samplings)


@torch.no_grad()
def answer(model: Any, prompt: tuple[int, ...], sampling: Sampling) -> Alone:
    """What the model answers to one prompt, by itself."""
    drawn = torch.rand(
        64, generator=torch.Generator().manual_seed(sampling.seed), dtype=torch.float64
    ).tolist()
    new: list[int] = []
    clear = None
    while len(new) < sampling.max_new_tokens and TOKENIZER.eos_token_id not in new:
        logits = model(torch.tensor([[*prompt, *new]]), use_cache=False).logits[0, -1].numpy()
        token, is_clear = _choose(logits, sampling, drawn[len(new)])
        if not is_clear and clear is None:
            clear = len(new)
        new.append(token)
    texts = tuple(text_of(prompt, new[: n + 1]) for n in range(len(new)))
    is_text = not any("\N{REPLACEMENT CHARACTER}" in text for text in texts)
    return Alone(
        sampling, tuple(new), len(new) if clear is None else clear, texts if is_text else None
    )


def text_of(prompt: Sequence[int], new: Sequence[int]) -> str:
    """What `new` adds to the text of the prompt."""
    new = [token for token in new if token != TOKENIZER.eos_token_id]
    before = TOKENIZER.decode(list(prompt), clean_up_tokenization_spaces=False)
    return TOKENIZER.decode([*prompt, *new], clean_up_tokenization_spaces=False)[len(before) :]


def _choose(logits: np.ndarray, sampling: Sampling, drawn: float) -> tuple[int, bool]:
    """The next token, and whether another one was far from being chosen."""
    if sampling.temperature == 0:
        second, first = np.argsort(logits)[-2:]
        return int(first), bool(logits[first] - logits[second] > LOGIT_MARGIN)
    scaled = logits.astype(np.float64) / sampling.temperature
    order = np.arange(len(scaled))
    is_cut = sampling.top_k > 0 or sampling.top_p < 1
    if is_cut:
        order = np.argsort(-scaled, kind="stable")
    weights = np.exp(scaled[order] - scaled.max())
    if sampling.top_k:
        weights[sampling.top_k :] = 0
    weights /= weights.sum()
    before = np.cumsum(weights) - weights
    kept = np.where(before < sampling.top_p, weights, 0.0)
    edge = np.abs(before - sampling.top_p).min() if sampling.top_p < 1 else 1.0
    upto = np.cumsum(kept / kept.sum())
    place = int(np.searchsorted(upto, drawn, side="right"))
    low = upto[place - 1] if place else -1.0
    distance = min(edge, drawn - low, upto[place] - drawn)
    if is_cut:  # tokens of equal probability may come in either order
        every = np.exp(scaled[order] - scaled.max())
        every /= every.sum()
        distance = min(distance, *(abs(every[place] - every[i]) for i in _beside(place, every)))
    return int(order[place]), bool(distance > DRAW_MARGIN)


def _beside(place: int, values: np.ndarray) -> list[int]:
    return [i for i in (place - 1, place + 1) if 0 <= i < len(values)]
