"""Measure what a merge or an export changed: logits on probe text, before and after.

    kl      mean KL(adapter || written), in nats per token
    effect  mean KL(adapter || base): how far the adapter moved the predictions
    lost    sqrt(kl / effect)

KL grows with the square of a change of the logits, so `lost` is the error as a share of the
adapter's own change, weighted by probability. The largest difference of a logit says little by
itself: an improbable token may be far off and change nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lorica.base.batching import padded_rows
from lorica.base.float32_compute import computed_in_float32
from lorica.base.load import LoadedModel
from lorica.base.model_view import config_view_of
from lorica.base.offload import released_after_use
from lorica.core.attach import use
from lorica.errors import ConfigError, DataError, MergeError

TOKENS_OF_PASS = 512
"""Tokens of the probe rows that are computed together, padding included."""
KL_NOISE = 1e-8
"""Nats per token; a smaller KL is rounding in float32."""
PROBE = (
    "Once upon a time, a small grey cat lived near the old mill and slept all day.",
    "The committee will meet on Tuesday at nine; please bring the figures for March.",
    "def area(width, height):\n    return width * height\n",
    "Question: How many legs do three spiders have?\nAnswer: 24",
    '{"name": "Ada", "year": 1843, "tags": ["engine", "notes"]}',
    "Der Zug nach Hause fährt um halb sechs. Le train part à six heures.",
)


@dataclass(frozen=True)
class Recorded:
    """Logits of a model on probe rows. rows: token ids.

    adapted, bare: with the adapter and without, (N, V), float32 on the CPU.
    """

    rows: list[list[int]]
    adapted: Tensor
    bare: Tensor


@dataclass(frozen=True)
class Difference:
    """How far a written model is from base and adapter, on `tokens` probe tokens.

    max_difference: largest error of a logit; max_effect: largest change by the adapter.
    kl, effect, lost: see the module; lost is 0 where the kl is rounding.
    """

    max_difference: float
    max_effect: float
    kl: float
    effect: float
    lost: float
    tokens: int


def record(base: LoadedModel, name: str, texts: Sequence[str] | None) -> Recorded:
    """The logits of adapter `name` and of the base on the probe texts, and on `texts` if given."""
    rows = probe_ids(base, [*PROBE, *(texts or ())])
    with use(base.model, name):
        adapted = logits_of(base, rows)
    with use(base.model):
        bare = logits_of(base, rows)
    return Recorded(rows, adapted, bare)


def probe_ids(base: LoadedModel, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, cut at the length that the base takes.

    Without a tokenizer: one row of ids from the whole vocabulary.
    Raises: DataError if no text has a token; ConfigError if there is no vocabulary either.
    """
    if base.tokenizer is None:
        size = config_view_of(base.model).vocab_size
        if size is None:
            raise ConfigError(
                "this model has no vocabulary to probe it with.",
                fix="pass a language model, or the folder of a run",
            )
        return [[7919 * i % size for i in range(1, 33)]]
    cut: dict[str, Any] = {}
    if base.max_length is not None:  # special tokens at the end stay: BART's classifier reads one
        cut = {"truncation": True, "max_length": base.max_length}
    rows = [base.tokenizer(text, **cut)["input_ids"] for text in texts]
    if not any(rows):
        raise DataError(
            "the base's tokenizer makes no token of any probe text.",
            fix="pass probe texts that it knows",
        )
    return [row for row in rows if row]


@torch.no_grad()
def logits_of(base: LoadedModel, rows: list[list[int]]) -> Tensor:
    """Logits at every position of each row (N, V), or of each row (N, C), float32 on the CPU.

    They are computed in float32, whatever dtype the weights have. One layer's weights at a time
    are in memory, if they are mapped.
    """
    device = next(base.model.parameters()).device
    tensors, logits = [torch.tensor(row, device=device) for row in rows], []
    with computed_in_float32(base.model), released_after_use(base.model):
        for group in _groups(rows):
            for of_row in padded_rows(base.model, [tensors[i] for i in group]):
                logits.append(of_row.float().cpu())
    return torch.cat(logits)


def _groups(rows: list[list[int]]) -> list[list[int]]:
    """Indices of consecutive rows that are computed together, padded to the longest of them.

    Every pass reads all weights, so that short rows take as long alone as together.
    """
    groups: list[list[int]] = []
    longest = 0
    for i, row in enumerate(rows):
        longest = max(longest, len(row))
        if not groups or (1 + len(groups[-1])) * longest > TOKENS_OF_PASS:
            groups.append([])
            longest = len(row)
        groups[-1].append(i)
    return groups


def compare(recorded: Recorded, written: Tensor) -> Difference:
    """Compare recorded logits with those of the written files (N, V).

    Raises: MergeError if logits are not finite.
    """
    adapted, bare = recorded.adapted, recorded.bare
    kl, effect = divergence(adapted, written), divergence(adapted, bare)
    if not math.isfinite(kl + effect):
        raise MergeError(
            "the model's logits on the probe text are not finite.",
            adapter="finite" if adapted.isfinite().all() else "not finite",
            written="finite" if written.isfinite().all() else "not finite",
            fix="check the adapter with lorica eval",
        )
    return Difference(
        max_difference=(adapted - written).abs().max().item(),
        max_effect=(adapted - bare).abs().max().item(),
        kl=kl,
        effect=effect,
        lost=0.0 if kl <= KL_NOISE else math.sqrt(kl / effect) if effect > 0 else math.inf,
        tokens=len(adapted),
    )


def divergence(true: Tensor, other: Tensor) -> float:
    """Mean KL(true || other) over rows of logits (N, V), in nats; float64, never below 0."""
    total = 0.0
    for p_logits, q_logits in zip(true.split(64), other.split(64), strict=True):
        p, q = p_logits.double().log_softmax(-1), q_logits.double().log_softmax(-1)
        total += F.kl_div(q, p, log_target=True, reduction="sum").item()
    return max(total / len(true), 0.0) if math.isfinite(total) else total
