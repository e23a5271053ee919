"""Text from prompts, through transformers' own `generate`: greedy, or sampled from a seed.

Prompts of like length share a left-padded batch with a key-value cache, and come back in the
order they were given. Nothing of the base's own generation settings enters but its stop tokens and
stop strings: a repetition penalty that a model's author chose would make two systems incomparable.
A batch never changes what a row says: see evaluation.prompts.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from lorica.base.load import LoadedModel
from lorica.core.condition import describe, given
from lorica.core.peak_memory import peak_memory
from lorica.data.rendered import Rendered, Segment
from lorica.data.tokenise import prompt_ids
from lorica.errors import ConfigError, listed
from lorica.evaluation.asking import (
    ask,
    check_can_ask,
    end_of_turn,
    how_asked,
    not_asked,
    stop_tokens,
)
from lorica.evaluation.conditions import one_each
from lorica.evaluation.loss import check_logits, still
from lorica.evaluation.prompts import (
    batches,
    batching_for,
    generating,
    left_notices,
    pad_left,
    room_of,
)
from lorica.evaluation.stop_strings import StopStrings
from lorica.progress import Progress

CHOOSING = (
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "num_beams",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "length_penalty",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
)
"""Keys of a generation config that change which tokens are chosen."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen. temperature 0 takes the most probable one."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        for name, value, good, want in (
            ("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature, self.temperature >= 0, "0 (greedy) or more"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1"),
        ):
            if not good:
                raise ConfigError(f"{name} is {value}; it must be {want}.", fix=f"change {name}")


@dataclass(frozen=True)
class Generation:
    """texts: what follows each prompt, without what stopped it; tokens: its ids, with that.

    tokens_per_second: generated tokens over all rows, the reading of the prompts included.
    peak_memory_bytes: of the GPU if the model is on one, else of the process so far; None where
        the system does not say.
    notices: sentences for the user on texts that were cut.
    """

    texts: list[str]
    tokens: list[list[int]]
    seconds: float
    tokens_per_second: float
    peak_memory_bytes: int | None
    notices: list[str] = field(default_factory=list)


def generate(
    base: LoadedModel,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    chat: bool = False,
    conditions: Sequence[str] | None = None,
    batch_size: int = 16,
) -> Generation:
    """What the model writes after each of `prompts`.

    chat: each prompt is a user's message: what the adapter was trained with is put around it
        (chat template, Alpaca's text), or else the base's chat template.
    conditions: what a conditioned adapter is asked for: one of each prompt, or one for all.
    seed: sampled texts follow from it, given the same prompts and batch_size.

    Raises: ConfigError for a setting out of range, a classifier, or a condition that is unknown,
        missing or of no use; DataError for a prompt that is empty or too long, or no template.
    """
    sampling = Sampling(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed
    )
    if chat:
        check_can_ask(base)
        rows = [ask(base, [{"role": "user", "content": p}]) for p in prompts]
        lines = how_asked(base)
    else:
        rows = [Rendered("prompt", (Segment(p, False),), False) for p in prompts]
        lines = not_asked(base)
    ids = prompt_ids(rows, base.tokenizer)
    stops = stop_tokens(base, end_of_turn(base) if chat else "")
    done = continue_ids(
        base, ids, sampling, stops=stops, batch_size=batch_size, conditions=conditions
    )
    return replace(done, notices=[*lines, *own_settings(base), *done.notices])


def own_settings(base: LoadedModel) -> list[str]:
    """A notice on what the base's generation_config.json asks for, and generation does not use."""
    config: Any = getattr(base.model, "generation_config", None)
    asked = {} if config is None else config.to_diff_dict()
    told = [f"{key} {asked[key]}" for key in CHOOSING if asked.get(key) not in (None, False)]
    line = (
        "of the base's generation settings only what stops a text is used, not "
        f"{listed(told, 8)}; --temperature and --top_p set how tokens are chosen"
    )
    return [line] if told else []


def continue_ids(
    base: LoadedModel,
    prompts: Sequence[list[int]],
    sampling: Sampling,
    *,
    stops: list[int],
    batch_size: int = 16,
    conditions: Sequence[str] | None = None,
    streamer: Any = None,
) -> Generation:
    """`generate` for prompts that are token ids already.

    streamer: transformers' streamer, for a single prompt.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}.", fix="it must be at least 1")
    room = room_of(base, prompts, sampling.max_new_tokens)
    size, batching = batching_for(base, prompts, batch_size)
    told, strings = one_each(base, conditions, len(prompts)), StopStrings(base)
    lines = describe(base.model, base.tokenizer, told)
    lines += left_notices(size, batching, prompts, room)
    device = next(base.model.parameters()).device
    tokens: list[list[int]] = [[] for _ in prompts]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    devices = [device] if device.type == "cuda" else []
    with (
        still(base.model),
        torch.random.fork_rng(devices=devices),
        Progress("writing answers", len(prompts), "rows") as bar,
    ):
        torch.manual_seed(sampling.seed)
        for picked in batches(prompts, room, size, batching):
            some = [prompts[i] for i in picked]
            with given(base.model, told and [told[i] for i in picked]):
                new = _run(base, some, sampling, room[picked[0]], stops, strings, streamer)
            for i, row in zip(picked, new, strict=True):
                tokens[i] = row
            if len(prompts) > 1:
                bar.advance(len(picked))
    seconds = time.perf_counter() - began
    texts = [text_after(base, p, t, stops) for p, t in zip(prompts, tokens, strict=True)]
    rate = sum(map(len, tokens)) / max(seconds, 1e-9)
    going_on = [[] if strings.ends(row) else row for row in tokens]
    lines += _cut_lines(base, going_on, room, sampling.max_new_tokens, stops)
    return Generation(texts, tokens, seconds, rate, peak_memory(device), lines)


def text_after(
    base: LoadedModel, prompt: list[int], new: list[int], stops: list[int], *, goes_on: bool = False
) -> str:
    """The text of the new tokens as it stands behind the prompt, without what stopped it.

    goes_on: more tokens are to come.
    """
    strings = StopStrings(base)
    text = _text_behind(base, prompt, new[:-1] if new and new[-1] in stops else new)
    return strings.cut(text, goes_on=goes_on)


def _text_behind(base: LoadedModel, prompt: list[int], new: list[int]) -> str:
    decode = base.tokenizer.decode
    before = decode(prompt, clean_up_tokenization_spaces=False)
    whole = decode(prompt + new, clean_up_tokenization_spaces=False)
    if whole.startswith(before):  # some tokenizers drop the first space of a text
        return whole[len(before) :]
    return decode(new, clean_up_tokenization_spaces=False)


def _run(
    base: LoadedModel,
    prompts: list[list[int]],
    sampling: Sampling,
    room: int,
    stops: list[int],
    strings: StopStrings,
    streamer: Any,
) -> list[list[int]]:
    """New token ids of one batch, each up to what stops it."""
    model: Any = base.model
    filler = base.tokenizer.pad_token_id
    filler = filler if filler is not None else (stops[0] if stops else 0)
    ids, mask = pad_left(prompts, filler)
    width, device = ids.shape[1], next(model.parameters()).device
    choice: dict[str, Any] = {}
    if sampling.temperature > 0:
        choice = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": 0,
        }
    with generating(model, room, stops, filler, **choice):
        out = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            streamer=streamer,
            logits_processor=[check_logits],
            stopping_criteria=strings.criteria(width),
        )
    new = [_until_stop(row, stops) for row in out[:, width:].tolist()]
    return [row[: strings.end(row)] for row in new]


def _until_stop(row: list[int], stops: list[int]) -> list[int]:
    end = next((i for i, token in enumerate(row) if token in stops), len(row) - 1)
    return row[: end + 1]


def _cut_lines(
    base: LoadedModel, tokens: list[list[int]], room: list[int], most: int, stops: list[int]
) -> list[str]:
    cut = [i for i, row in enumerate(tokens) if len(row) == room[i] and row[-1] not in stops]
    full = [i for i in cut if room[i] < most]
    lines = []
    if not stops:
        lines.append("the base has no stop token: every text goes on to its longest")
    if full:
        lines.append(f"{len(full)} texts were cut where the context of {base.max_length} ended")
    if len(cut) > len(full):
        lines.append(f"{len(cut) - len(full)} texts were cut after {most} tokens")
    return lines
