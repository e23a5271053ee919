"""Text from prompts: greedy, or sampled with a seed.

Rows share forward passes, and each writes what it writes alone: see generation.decoder. Models that
it cannot carry go through transformers' own `generate`: see generation.static. Texts come back in
the order of their prompts. Of the base's own generation settings only its stops are used: see
generation.sampling.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from lorica.base.condition_texts import encode_conditions
from lorica.base.load import LoadedModel
from lorica.core.condition import is_conditioned
from lorica.core.modes import in_mode
from lorica.core.peak_memory import peak_memory
from lorica.data.rendered_row import RenderedRow, TextSpan
from lorica.data.text_encoder import prompt_ids
from lorica.errors import ConfigError, counted
from lorica.generation.batches import room_for_answers
from lorica.generation.continuous import generate_continuous
from lorica.generation.prompts import (
    check_has_template,
    check_is_language_model,
    conversation_notices,
    end_of_turn,
    plain_prompt_notices,
    render_messages,
)
from lorica.generation.sampling import Sampling, ignored_settings
from lorica.generation.slots import slot_support
from lorica.generation.static import generate_static
from lorica.generation.stops import Stops, stops_of
from lorica.generation.task import OnText, Task
from lorica.progress import Progress


@dataclass(frozen=True)
class Generation:
    """The generated texts, and what they cost.

    texts: what follows each prompt, without its stop. tokens: the ids, with the stop.
    tokens_per_second: generated tokens over all rows; the time includes reading the prompts.
    peak_memory_bytes: of the GPU if the model is on one, else of the process so far; None where
        the system does not say.
    notices: sentences for the user, as on texts that were cut.
    """

    texts: list[str]
    tokens: list[list[int]]
    seconds: float
    tokens_per_second: float
    peak_memory_bytes: int | None
    notices: list[str] = field(default_factory=list)


def generate(
    loaded: LoadedModel,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    chat: bool = False,
    conditions: Sequence[str] | None = None,
    batch_size: int = 16,
) -> Generation:
    """What the model writes after each of `prompts`.

    chat: each prompt is a user's message, written in the format of the adapter's training (chat
        template, Alpaca's text); else through the base's chat template.
    conditions: for a conditioned adapter: one for each prompt, or one for all.
    seed: the same prompts and seed give the same sampled texts, whatever the batch_size.
    batch_size: the most rows of a forward pass.

    Raises: ConfigError for a setting out of range, a classifier, or a condition that is unknown,
        missing or not used; DataError for a prompt that is empty or too long, or no template.
    """
    sampling = Sampling(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed
    )
    check_is_language_model(loaded)
    if chat:
        check_has_template(loaded)
        rows = [render_messages(loaded, [{"role": "user", "content": p}]) for p in prompts]
        notices = conversation_notices(loaded)
    else:
        rows = [RenderedRow("prompt", (TextSpan(p, False),), False) for p in prompts]
        notices = plain_prompt_notices(loaded)
    generation = generate_from_ids(
        loaded,
        prompt_ids(rows, loaded.tokenizer),
        sampling,
        stops=stops_of(loaded, [end_of_turn(loaded)] if chat else ()),
        batch_size=batch_size,
        conditions=conditions,
    )
    return replace(generation, notices=[*notices, *ignored_settings(loaded), *generation.notices])


def generate_from_ids(
    loaded: LoadedModel,
    prompts: Sequence[list[int]],
    sampling: Sampling,
    *,
    stops: Stops,
    batch_size: int = 16,
    conditions: Sequence[str] | None = None,
    on_text: OnText | None = None,
) -> Generation:
    """`generate` for prompts that are token ids already.

    on_text: gets the text of a single prompt piece by piece, while it is written.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}.", fix="it must be at least 1")
    room = room_for_answers(loaded, prompts, sampling.max_new_tokens)
    conditions = _condition_per_prompt(loaded, conditions, len(prompts))
    notices = encode_conditions(loaded.model, loaded.tokenizer, conditions)
    device = next(loaded.model.parameters()).device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    with (
        in_mode(loaded.model, training=False),
        torch.no_grad(),
        Progress("generating", len(prompts), "rows") as bar,
    ):
        task = Task(
            prompts=prompts,
            room=room,
            sampling=sampling,
            stops=stops,
            slots=batch_size,
            conditions=conditions,
            on_text=on_text,
            on_rows=bar.advance if len(prompts) > 1 else lambda count: None,
            numbers=range(len(prompts)),
        )
        tokens, batch_notices = _continue(loaded, task)
    seconds = time.perf_counter() - began
    texts = [stops.text(prompt, row) for prompt, row in zip(prompts, tokens, strict=True)]
    rate = sum(map(len, tokens)) / max(seconds, 1e-9)
    notices += batch_notices + _cut_notices(loaded, tokens, room, sampling.max_new_tokens, stops)
    return Generation(texts, tokens, seconds, rate, peak_memory(device), notices)


def _continue(loaded: LoadedModel, task: Task) -> tuple[list[list[int]], list[str]]:
    """(the new tokens of each prompt, notices): in slots where they can carry a row, else in fixed
    batches."""
    support = slot_support(loaded.model)
    if support.batching.refused is not None:
        tokens, notices = generate_static(loaded, task)
        if len(task.prompts) > 1:
            why = support.batching.refused
            notices = [f"a batch runs until its longest text ends: {why}", *notices]
        return tokens, notices
    limit, count = support.batching.shared, range(len(task.prompts))
    fits = [limit is None or len(task.prompts[i]) + task.room[i] <= limit for i in count]
    tokens: list[list[int]] = [[] for _ in count]
    notices: list[str] = []
    if short := [i for i in count if fits[i]]:
        for i, row in zip(short, generate_continuous(loaded, task.part(short)), strict=True):
            tokens[i] = row
    if long := [i for i in count if not fits[i]]:
        new, _ = generate_static(loaded, task.part(long))
        cause = support.batching.causes["shared"]
        if len(count) > 1:
            notices = [
                f"a batch has prompts of one length where texts pass {limit} tokens ({cause})"
            ]
        for i, row in zip(long, new, strict=True):
            tokens[i] = row
    return tokens, notices


def _condition_per_prompt(
    loaded: LoadedModel, conditions: Sequence[str] | None, count: int
) -> list[str] | None:
    """Raises: ConfigError if there are too few, or the model uses none."""
    if conditions is None:
        return None
    if len(conditions) not in (1, count):
        raise ConfigError(
            f"{len(conditions)} conditions were given for {count} prompts.",
            fix="give one for each prompt, or one for all",
        )
    if not is_conditioned(loaded.model):
        raise ConfigError("this model takes no condition.", fix="leave it out")
    return list(conditions) if len(conditions) == count else count * list(conditions)


def _cut_notices(
    loaded: LoadedModel,
    tokens: list[list[int]],
    room: list[int],
    max_new_tokens: int,
    stops: Stops,
) -> list[str]:
    """Notices on texts that no stop ended."""
    cut = [i for i, row in enumerate(tokens) if len(row) == room[i] and not stops.has_ended(row)]
    by_context = sum(room[i] < max_new_tokens for i in cut)
    notices = []
    if not stops.tokens:
        notices.append("the base has no stop token: every text goes on to its longest")
    if by_context:
        texts = counted(by_context, "text")
        notices.append(f"the context of {loaded.max_length} tokens cut {texts}")
    if (by_limit := len(cut) - by_context) > 0:
        texts = "1 text was" if by_limit == 1 else f"{by_limit:,} texts were"
        notices.append(f"{texts} cut after {max_new_tokens} tokens")
    return notices
