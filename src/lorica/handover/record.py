"""Record what an adapter answers, to be compared with what another runtime answers."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch

from lorica.base.fingerprint import Fingerprint, fingerprint
from lorica.base.float32_compute import computed_in_float32
from lorica.base.load import LoadedModel
from lorica.core.attach import use
from lorica.core.condition import with_conditions
from lorica.core.modes import in_mode
from lorica.errors import MergeError
from lorica.formats.golden import FORMAT, Golden, GoldenHeader, GoldenRow
from lorica.generation.generate import generate_from_ids
from lorica.generation.sampling import Sampling
from lorica.generation.stops import Stops
from lorica.handover.golden_prompts import GoldenPrompt
from lorica.handover.stop_tokens import recorded_stops

MAX_NEW_TOKENS = 48


def record_golden(
    loaded: LoadedModel,
    prompts: Sequence[GoldenPrompt],
    *,
    adapter: str,
    condition: str | None,
    name: str,
    method: str,
) -> Golden:
    """Greedy answers to `prompts` with their log-probabilities, under an adapter and the base.

    adapter: its name on the model. condition: None: it takes none. name: of the export.
    All is computed in float32, whatever dtype the weights have.
    Raises: MergeError if a log-probability is not finite.
    """
    stops = recorded_stops(loaded)
    model = loaded.model
    with computed_in_float32(model), use(model, adapter):
        answers = generate_from_ids(
            loaded,
            [prompt.ids for prompt in prompts],
            Sampling(max_new_tokens=MAX_NEW_TOKENS),
            stops=stops,
            conditions=None if condition is None else [condition],
        )
    pairs = zip(prompts, answers.tokens, answers.texts, strict=True)
    with use(model, adapter), with_conditions(model, condition and [condition]):
        rows = tuple(
            _row(loaded, adapter, prompt, tokens, text, stops)
            for prompt, tokens, text in pairs
            if tokens
        )
    return Golden(rows, _header(loaded, stops, name, method))


def _row(
    loaded: LoadedModel,
    adapter: str,
    prompt: GoldenPrompt,
    tokens: list[int],
    text: str,
    stops: Stops,
) -> GoldenRow:
    ids = [*prompt.ids, *tokens]
    own, base = (logprobs_of(loaded, ids, name) for name in ((adapter,), ()))
    chosen = torch.tensor(ids[1:])
    logprobs = own.gather(1, chosen.unsqueeze(1)).squeeze(1)
    before = len(prompt.ids) - 1
    base_best = base[before:].amax(-1)
    if not (logprobs.isfinite().all() and base_best.isfinite().all()):
        raise MergeError(
            "the model's log-probabilities are not finite.", fix="check it with lorica eval"
        )
    return GoldenRow(
        ids=tuple(ids),
        logprobs=_rounded(logprobs),
        prompt=len(prompt.ids),
        base_logprobs=_rounded(base_best),
        ended="stop" if stops.has_ended(tokens) else "length",
        text=text,
        prompt_text=prompt.text if prompt.messages is None else None,
        messages=prompt.messages,
    )


@torch.no_grad()
def logprobs_of(loaded: LoadedModel, ids: list[int], adapters: Sequence[str]) -> torch.Tensor:
    """(T - 1, V) log-probabilities of what follows each id but the last, in float32."""
    model = loaded.model
    device = next(model.parameters()).device
    with computed_in_float32(model), use(model, *adapters), in_mode(model, training=False):
        logits = model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits
    return logits[0, :-1].float().log_softmax(-1).cpu()


def _rounded(values: torch.Tensor) -> tuple[float, ...]:
    return tuple(round(value, 6) for value in values.tolist())


def _header(loaded: LoadedModel, stops: Stops, name: str, method: str) -> GoldenHeader:
    form = loaded.prompt_format
    base = fingerprint(loaded.model, path=loaded.path, tokenizer=loaded.tokenizer)
    return GoldenHeader(
        golden=FORMAT,
        name=name,
        base=loaded.path,
        base_digest=digest_of(base),
        method=method,
        kind="unknown" if form is None else form.kind,
        template_sha256=form.digest if form is not None and form.kind == "chat" else None,
        stop_tokens=stops.tokens,
        stop_strings=stops.strings,
    )


def digest_of(base: Fingerprint) -> str:
    """sha256 of all that a fingerprint says of the base's numbers and settings, not of its path."""
    fields: dict[str, Any] = {**base.as_dict(), "path": ""}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
