"""How rows may share a forward pass, so that each row gives what it gives alone.

    packed   rows concatenated to one sequence, see base.packing
    padded   one row each, filled up on the right

Whether an architecture can is tried, not looked up, and so is up to which length. LongRoPE turns
every row of a batch by the longest one, Llama-4 counts chunks and temperatures along the packed
batch, buffers of positions end. Each such threshold of the config is reached by the rows that are
tried: where it lies far, it is lowered to LOWERED tokens meanwhile.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lorica.base.length_thresholds import Threshold, lowered, thresholds
from lorica.core.attach import use
from lorica.core.modes import in_mode

ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Largest difference of logits, as a share of the largest logit; LOW in other dtypes."""
LOW = 5e-2
FINE = 1e-4
"""The same past a threshold, in float32: temperatures change logits by little."""

Forward = Callable[[nn.Module, list[Tensor]], list[Tensor]]
"""(model, rows of ids) -> logits of each row."""


@dataclass(frozen=True)
class Batching:
    """Which rows may share a pass; lengths in tokens, None: any.

    refused: why no rows may, whatever their lengths. longest: longer rows cannot go this way, not
    even alone. shared: longer rows go alone. total: the most tokens of several rows together.
    causes: the setting of the config behind each of them.
    """

    refused: str | None = None
    longest: int | None = None
    shared: int | None = None
    total: int | None = None
    causes: dict[str, str] = field(default_factory=dict)

    def groups(self, lengths: Sequence[int], size: int) -> list[list[int]]:
        """Numbers of the rows that share a pass, `size` of them at most; long rows come last."""
        limit, alone = self.shared, []
        found: list[list[int]] = []
        tokens = 0
        for i, length in enumerate(lengths):
            if limit is not None and length > limit:
                alone.append([i])
                continue
            full = self.total is not None and tokens + length > self.total
            if not found or full or len(found[-1]) == size:
                found.append([])
                tokens = 0
            found[-1].append(i)
            tokens += length
        return found + alone

    def joins(self, lengths: Sequence[int]) -> bool:
        """Whether rows of these lengths may all share a pass."""
        return len(self.groups(lengths, len(lengths))) <= 1

    def notices(self, lengths: Sequence[int], size: int) -> list[str]:
        """What rows of these lengths, `size` at a time, meet."""
        found = []
        if (limit := self.shared) is not None and (long := sum(n > limit for n in lengths)):
            found.append(
                f"{long:,} of {len(lengths):,} rows are longer than {limit} tokens "
                f"({self.causes['shared']}) and go through the model one at a time: in a batch "
                "they would change what other rows give"
            )
        if (most := self.total) is not None and size * max(lengths, default=0) > most:
            found.append(f"packed batches hold at most {most} tokens ({self.causes['total']})")
        return found


_KNOWN: WeakKeyDictionary[nn.Module, dict[str, Batching]] = WeakKeyDictionary()


def batching_of(
    model: nn.Module,
    way: str,
    forward: Forward,
    truth: Forward | None = None,
    lengths: Sequence[int] = (5, 7),
) -> Batching:
    """How rows may go `way` ("packed", "padded"), tried once for each model without its adapters.

    Padded rows are never too many tokens, and each has a row of the batch to itself.

    truth: what `forward` must give; None: the logits of each row alone.
    lengths: of the rows that are tried first; where they are all the same, no others are tried.
    """
    known = _KNOWN.setdefault(model, {})
    if way not in known:
        limits = ("total", "longest", "shared") if way == "packed" else ("shared",)
        limits = limits if len(set(lengths)) > 1 else ()
        with use(model), in_mode(model, training=False):
            known[way] = _Trial(model, way, forward, truth or alone).batching(lengths, limits)
    return known[way]


def padding_of(model: nn.Module) -> Batching:
    """How rows of `model` may be padded on the right; `refused`: they go one at a time."""
    return batching_of(model, "padded", padded_rows)


@dataclass(frozen=True)
class _Trial:
    """Rows that go one way, held against what each gives alone."""

    model: nn.Module
    way: str
    forward: Forward
    truth: Forward

    def batching(self, lengths: Sequence[int], limits: Sequence[str]) -> Batching:
        model, name = self.model, type(self.model).__name__
        try:
            off = self.off([probe_ids(model, n, k) for k, n in enumerate(lengths)])
        except Exception as error:  # an unknown architecture may refuse in any way at all
            return Batching(f"{name} refuses {self.way} rows ({_named(error)})")
        if off > ROUNDING.get(dtype_of(model), LOW):
            return Batching(f"{name} mixes {self.way} rows (difference {off:.2g})")
        least: dict[str, int] = {}
        causes: dict[str, str] = {}
        for threshold in thresholds(model) if limits else ():
            unset = [limit for limit in limits if limit not in least]
            for limit in self.crossed(threshold, unset, least.get("shared")):
                least[limit], causes[limit] = threshold.tokens, threshold.name
        return Batching(None, **least, causes=causes)

    def crossed(self, threshold: Threshold, limits: Sequence[str], shared: int | None) -> list[str]:
        """Those of `limits` that a threshold sets: what fails just past it, and not before.

        shared: the longest rows that are ever in a batch with others.
        """
        if not threshold.tried:
            return ["total"] if "total" in limits else []
        model = self.model
        with lowered(model, threshold) as tokens:
            short, long = probe_ids(model, 4, 0), probe_ids(model, tokens + 3, 1)
            part = max(min(tokens - 2, shared or tokens), 1)
            many = [probe_ids(model, part, k) for k in range((tokens + 2) // part + 1)]
            try:
                own = alone(model, [long])
            except Exception:  # the model takes no row of that length
                own = None
            cases = {"total": many}
            if own is not None:
                cases |= {"longest": [long], "shared": [short, long]}
            cases = {limit: rows for limit, rows in cases.items() if limit in limits}
            fails = {limit for limit, rows in cases.items() if self.fails(rows)}
        coarse = dtype_of(model) not in ROUNDING
        if own is not None and coarse and threshold.movable and not threshold.is_window:
            # Rounding may hide the difference: what the threshold changes is kept apart.
            changes = not torch.equal(own[0], alone(model, [long])[0])
            fails |= {"shared", "total"} & cases.keys() if changes else set()
        return sorted(fails)

    def fails(self, rows: list[Tensor]) -> bool:
        try:
            return self.off(rows) > (FINE if dtype_of(self.model) in ROUNDING else LOW)
        except Exception:  # a buffer that ends, and whatever else there is
            return True

    def off(self, rows: list[Tensor]) -> float:
        return difference(self.truth(self.model, rows), self.forward(self.model, rows))


# -- forward passes ---------------------------------------------------------------------------


@torch.no_grad()
def alone(model: nn.Module, rows: Sequence[Tensor]) -> list[Tensor]:
    """The logits of each row (T,) by itself: (T, V), or (1, C) of a classifier."""
    foreign: Any = model
    found = (foreign(input_ids=row.unsqueeze(0), **no_cache(model)).logits for row in rows)
    return [logits.squeeze(0) if logits.ndim == 3 else logits for logits in found]


@torch.no_grad()
def padded_rows(model: nn.Module, rows: list[Tensor]) -> list[Tensor]:
    foreign: Any = model
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_id(model))
    lengths = torch.tensor([len(row) for row in rows], device=ids.device)
    mask = (torch.arange(ids.shape[1], device=ids.device) < lengths.unsqueeze(1)).long()
    logits = foreign(input_ids=ids, attention_mask=mask, **no_cache(model)).logits
    if logits.ndim == 2:
        return list(logits.split(1))
    return [one[: len(row)] for one, row in zip(logits, rows, strict=True)]


def no_cache(model: nn.Module) -> dict[str, Any]:
    """Arguments of a call that keeps no keys and values; classifiers are not asked for them."""
    return {} if "Classification" in type(model).__name__ else {"use_cache": False}


def probe_ids(model: nn.Module, n: int, start: int) -> Tensor:
    """(n,) token ids, none of them the padding token."""
    foreign: Any = model
    size = int(getattr(foreign.config.get_text_config(), "vocab_size", None) or 2)
    ids = (torch.arange(n, device=next(model.parameters()).device) * 7 + 3 + 11 * start) % size
    return torch.where(ids == pad_id(model), (ids + 1) % size, ids)


def pad_id(model: nn.Module) -> int:
    foreign: Any = model
    return max(getattr(foreign.config, "pad_token_id", None) or 0, 0)


def dtype_of(model: nn.Module) -> torch.dtype:
    """The dtype of the computation."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def difference(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The largest difference, as a share of the largest number."""
    pairs = zip(one, other, strict=True)
    offs = [((a - b).abs().max() / a.abs().max().clamp_min(1e-6)).item() for a, b in pairs]
    return max(float("inf") if off != off else off for off in offs)


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
