"""Find out which rows may share a forward pass, so that each row has the logits it has alone.

    packed   rows concatenated to one sequence, see base.packing
    padded   one row each, padded on the right

Whether an architecture can, and up to which length, is tried and not looked up. LongRoPE scales
every row of a batch by the longest one, Llama-4 counts chunks and temperatures along the packed
batch, position buffers end. The rows that are tried cross each such threshold of the config; a
threshold that is far is lowered to LOWERED tokens during the trial.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from lorica.base.few_blocks import tried
from lorica.base.length_thresholds import Threshold, length_thresholds, lowered
from lorica.base.model_view import config_view_of
from lorica.core.attach import use
from lorica.core.modes import in_mode

ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Largest difference of logits, as a share of the largest logit; LOW in other dtypes."""
LOW = 5e-2
FINE = 1e-4
"""The same past a threshold, in float32: there, temperatures change logits by little."""

Forward = Callable[[nn.Module, list[Tensor]], list[Tensor]]
"""(model, rows of ids) -> logits of each row."""


@dataclass(frozen=True)
class Batching:
    """Which rows may share a forward pass; lengths in tokens, None: any.

    refused: why no rows may, whatever their lengths. longest: longer rows cannot be batched this
    way, not even alone. shared: longer rows run alone. total: the most tokens of several rows
    together. causes: the setting of the config behind each of these limits.
    """

    refused: str | None = None
    longest: int | None = None
    shared: int | None = None
    total: int | None = None
    causes: dict[str, str] = field(default_factory=dict)

    def groups(self, lengths: Sequence[int], size: int) -> list[list[int]]:
        """Indices of the rows that share a pass, `size` of them at most; long rows come last."""
        limit, alone = self.shared, []
        groups: list[list[int]] = []
        tokens = 0
        for i, length in enumerate(lengths):
            if limit is not None and length > limit:
                alone.append([i])
                continue
            full = self.total is not None and tokens + length > self.total
            if not groups or full or len(groups[-1]) == size:
                groups.append([])
                tokens = 0
            groups[-1].append(i)
            tokens += length
        return groups + alone

    def joins(self, lengths: Sequence[int]) -> bool:
        """Whether rows of these lengths may all share a pass."""
        return len(self.groups(lengths, len(lengths))) <= 1

    def notices(self, lengths: np.ndarray, size: int) -> list[str]:
        """Notices on the limits that rows of these lengths, `size` at a time, exceed."""
        notices = []
        if (limit := self.shared) is not None and (long := int((lengths > limit).sum())):
            notices.append(
                f"{long:,} of {len(lengths):,} rows are longer than {limit} tokens "
                f"({self.causes['shared']}) and run one at a time: in a batch they would change "
                "the logits of other rows"
            )
        if (most := self.total) is not None and size * lengths.max(initial=0) > most:
            notices.append(f"packed batches hold at most {most} tokens ({self.causes['total']})")
        return notices


_KNOWN: WeakKeyDictionary[nn.Module, dict[str, Batching]] = WeakKeyDictionary()


def batching_of(
    model: nn.Module,
    way: str,
    forward: Forward,
    truth: Forward | None = None,
    lengths: Sequence[int] = (5, 7),
) -> Batching:
    """How rows may be batched in a `way`, "packed" or "padded"; tried once for each model.

    Adapters are off during the trial. Padded rows have no limit in total.

    truth: what `forward` must return; None: the logits of each row alone.
    lengths: of the rows that are tried first; if they are all the same, no others are tried.
    """
    known = _KNOWN.setdefault(model, {})
    if way not in known:
        limits = ("total", "longest", "shared") if way == "packed" else ("shared",)
        limits = limits if len(set(lengths)) > 1 else ()
        trial = _Trial(model, way, forward, truth or alone)

        def batching() -> Batching:
            with use(model), in_mode(model, training=False):
                return trial.batching(lengths, limits)

        known[way] = tried(model, batching, lambda result: result == Batching())
    return known[way]


def padding_of(model: nn.Module) -> Batching:
    """How rows of `model` may be padded on the right; `refused`: they run one at a time."""
    return batching_of(model, "padded", padded_rows)


@dataclass(frozen=True)
class _Trial:
    """Logits of batched rows, compared with those of each row alone."""

    model: nn.Module
    way: str
    forward: Forward
    truth: Forward

    def batching(self, lengths: Sequence[int], limits: Sequence[str]) -> Batching:
        model, name = self.model, type(self.model).__name__
        try:
            error = self.error([probe_ids(model, n, k) for k, n in enumerate(lengths)])
        except Exception as failure:  # an unknown architecture may refuse in any way at all
            return Batching(f"{name} refuses {self.way} rows ({_describe(failure)})")
        if error > ROUNDING.get(dtype_of(model), LOW):
            return Batching(f"{name} mixes {self.way} rows (difference {error:.2g})")
        least: dict[str, int] = {}
        causes: dict[str, str] = {}
        for threshold in length_thresholds(model) if limits else ():
            unset = [limit for limit in limits if limit not in least]
            for limit in self.crossed(threshold, unset, least.get("shared")):
                least[limit], causes[limit] = threshold.tokens, threshold.name
        return Batching(None, **least, causes=causes)

    def crossed(self, threshold: Threshold, limits: Sequence[str], shared: int | None) -> list[str]:
        """Those of `limits` that a threshold sets: their rows fail just past it, and not before.

        shared: the longest rows that are ever in a batch with others.
        """
        if not threshold.tried:
            return ["total"] if "total" in limits else []
        model = self.model
        with lowered(model, threshold) as tokens:
            short, long = probe_ids(model, 4, 0), probe_ids(model, tokens + 3, 1)
            size = max(min(tokens - 2, shared or tokens), 1)
            many = [probe_ids(model, size, k) for k in range((tokens + 2) // size + 1)]
            try:
                own = alone(model, [long])
            except Exception:  # the model refuses a row of that length
                own = None
            cases = {"total": many}
            if own is not None:
                cases |= {"longest": [long], "shared": [short, long]}
            cases = {limit: rows for limit, rows in cases.items() if limit in limits}
            fails = {limit for limit, rows in cases.items() if self.fails(rows)}
        coarse = dtype_of(model) not in ROUNDING
        if own is not None and coarse and threshold.movable and not threshold.is_window:
            # Rounding may hide the difference, so any change by the threshold counts.
            changes = not torch.equal(own[0], alone(model, [long])[0])
            fails |= {"shared", "total"} & cases.keys() if changes else set()
        return sorted(fails)

    def fails(self, rows: list[Tensor]) -> bool:
        try:
            return self.error(rows) > (FINE if dtype_of(self.model) in ROUNDING else LOW)
        except Exception:  # a buffer that ends, or any other failure
            return True

    def error(self, rows: list[Tensor]) -> float:
        return difference(self.truth(self.model, rows), self.forward(self.model, rows))


# -- forward passes ---------------------------------------------------------------------------


@torch.no_grad()
def alone(model: nn.Module, rows: Sequence[Tensor]) -> list[Tensor]:
    """The logits of each row (T,) by itself: (T, V), or (1, C) of a classifier."""
    foreign: Any = model
    of_rows = (foreign(input_ids=row.unsqueeze(0), **no_cache(model)).logits for row in rows)
    return [logits.squeeze(0) if logits.ndim == 3 else logits for logits in of_rows]


@torch.no_grad()
def padded_rows(model: nn.Module, rows: list[Tensor]) -> list[Tensor]:
    foreign: Any = model
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_id(model))
    lengths = torch.tensor([len(row) for row in rows], device=ids.device)
    mask = (torch.arange(ids.shape[1], device=ids.device) < lengths.unsqueeze(1)).long()
    logits = foreign(input_ids=ids, attention_mask=mask, **no_cache(model)).logits
    if logits.ndim == 2:
        return list(logits.split(1))
    return [of_row[: len(row)] for of_row, row in zip(logits, rows, strict=True)]


def no_cache(model: nn.Module) -> dict[str, Any]:
    """Arguments of a call that keeps no keys and values; classifiers are not asked for them."""
    return {} if "Classification" in type(model).__name__ else {"use_cache": False}


def probe_ids(model: nn.Module, n: int, start: int) -> Tensor:
    """(n,) token ids, none of them the padding token."""
    size = int(config_view_of(model).vocab_size or 2)
    ids = (torch.arange(n, device=next(model.parameters()).device) * 7 + 3 + 11 * start) % size
    return torch.where(ids == pad_id(model), (ids + 1) % size, ids)


def pad_id(model: nn.Module) -> int:
    """The padding token; 0 if the config names none."""
    return max(config_view_of(model).pad_token_id or 0, 0)


def dtype_of(model: nn.Module) -> torch.dtype:
    """The dtype of the computation."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def difference(true: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The largest difference, as a share of the largest number."""
    pairs = zip(true, other, strict=True)
    errors = [((a - b).abs().max() / a.abs().max().clamp_min(1e-6)).item() for a, b in pairs]
    return max(float("inf") if error != error else error for error in errors)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
