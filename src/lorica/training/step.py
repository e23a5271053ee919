"""One optimizer step. The loss is the mean over the label tokens of the whole step.

Micro-batches and processes only divide the work: each contributes its sum of losses over the
one count, so that 1 x 8, 2 x 4 and 8 x 1 rows, in one process or in two, give one update. So where
the memory does not hold a micro-batch, the step is taken again in halves of it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorica.base.batching import Batching
from lorica.base.last_block import LABEL_POSITIONS, LabelPositions, last_block_of
from lorica.base.tail import tail_of
from lorica.core.attach import routed
from lorica.core.condition import conditioned, set_conditions
from lorica.core.port import switch_of
from lorica.core.route import BySegment, Everywhere, Route, Segment
from lorica.data.batch import Batch, concatenate, pack, pad
from lorica.data.example import Example
from lorica.errors import memory_full
from lorica.kernels.loss import label_loss
from lorica.training.watch import check_connected

MOST = 0.8
"""Share of the positions that may be read of the last block, so that choosing them still pays."""


@dataclass(frozen=True)
class Part:
    """What one run brings to a step: several may be trained in one.

    rows: those of the step. micro: of them, how many go through the model at a time. tensors: what
    it trains. penalty: added to its loss. adapter: its name on the model; None: the active one.
    seed: every draw of the step follows from it.
    """

    rows: Sequence[Example]
    micro: int
    tensors: Mapping[str, nn.Parameter]
    max_norm: float = 1.0
    penalty: Callable[[], Tensor | float] = lambda: 0.0
    adapter: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """What one step did for one run.

    loss: nats per label token (per row for a classifier). penalty: what the method added to it.
    """

    loss: float
    penalty: float
    norm: float
    tokens: int
    where: list[str]


class Objective(nn.Module):
    """A batch in, the sum of the losses over its label tokens (rows of a classifier) out.

    The output head sees the label tokens alone, wherever the model can be taken apart for it, and
    so does the last block, as far as it acts on each position alone.

    whole: the last block sees every position all the same.
    """

    def __init__(self, model: nn.Module, *, packed: bool, whole: bool = False):
        super().__init__()
        self.model, self.packed, self.tail = model, packed, tail_of(model)
        self.last = None
        if self.tail and not whole and not conditioned(model):  # conditions are told by position
            self.last = last_block_of(model, self.tail.decoder, by_row=packed)
        ignored = getattr(model, "_ddp_params_and_buffers_to_ignore", ())
        self._ddp_params_and_buffers_to_ignore = [f"model.{name}" for name in ignored]

    def hooked(self) -> AbstractContextManager[None]:
        """Inside the block the last block sees label positions only. For forward and backward."""
        return nullcontext() if self.last is None else self.last.hooked(switch_of(self.model))

    def forward(self, batch: Batch, parts: Sequence[int] = ()) -> Tensor:
        """parts: the label tokens of each segment of the route.

        Returns: a scalar; with parts a sum for each, (K,).
        """
        set_conditions(self.model, batch.conditions, batch.lengths if self.packed else None)
        if batch.labels is not None:
            inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
            return F.cross_entropy(
                self.model(**inputs).logits.float(), batch.labels, reduction="sum"
            )
        options: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
        if self.packed:
            options |= {"position_ids": batch.position_ids, "row_lengths": batch.lengths}
            options |= {"row_shared": batch.shared_prefixes} if batch.shared_prefixes else {}
        else:
            options["attention_mask"] = batch.attention_mask
        if self.tail is None:
            logits = self.model(**options).logits.flatten(0, 1)[batch.label_positions]
            losses = F.cross_entropy(logits.float(), batch.targets, reduction="none")
            sums = [part.sum() for part in losses.split(list(parts) or [len(losses)])]
            return torch.stack(sums) if parts else sums[0]
        options |= self._label_positions(batch)
        hidden = self.tail.decoder(**options).last_hidden_state.flatten(0, 1)[batch.label_positions]
        tail = self.tail
        return label_loss(hidden, batch.targets, tail, tail.vocabulary, tail.learned(), parts)

    def _label_positions(self, batch: Batch) -> dict[str, LabelPositions]:
        """What the last block receives. A segment is given the positions that it is given alone."""
        if self.last is None or not self.last.is_hooked:
            return {}
        # Rows that share a prefix may have labels behind one and the same position.
        index = batch.label_positions.unique() if batch.shared_prefixes else batch.label_positions
        route, size = switch_of(self.model).route, batch.input_ids.numel()
        at_labels = route.at(index)
        sizes, counts = _sizes(route, size), _sizes(at_labels, len(index))
        few = [0 < n <= MOST * size for n, size in zip(counts, sizes, strict=True)]
        if not any(few):
            return {}
        if not all(few):
            every = torch.arange(size, device=index.device).split(sizes)
            chosen = zip(few, index.split(counts), every, strict=True)
            index = torch.cat([labels if less else whole for less, labels, whole in chosen])
            at_labels = route.at(index)
        return {LABEL_POSITIONS: LabelPositions(index, at_labels)}


def _sizes(route: Route, tokens: int) -> list[int]:
    return list(route.sizes) if isinstance(route, BySegment) else [tokens]


class Stepper:
    """Forward and backward over the rows of a step, on whatever accelerate has set up.

    shared: tokens with which several rows of a micro-batch begin are computed once.
    batching: which rows may be in a micro-batch together.
    halves: whether a step for which there is not the memory may be taken again, in smaller
        micro-batches. One process among several cannot: the others wait for its part.
    whole: the last block sees every position; see Objective.
    """

    def __init__(
        self,
        accelerator: Any,
        model: nn.Module,
        *,
        packed: bool,
        shared: bool,
        pad_id: int,
        batching: Batching | None = None,
        halves: bool = True,
        whole: bool = False,
    ):
        self.accelerator, self.packed, self.shared, self.pad_id = (
            accelerator,
            packed,
            shared,
            pad_id,
        )
        self.model, self.batching = model, batching or Batching()
        self.halves, self.times = halves and accelerator.num_processes == 1, 1
        objective = Objective(model, packed=packed, whole=whole)
        self.tail = objective.tail
        self.unwrapped = objective
        self.objective = accelerator.prepare_model(objective)

    def micro(self, part: Part) -> int:
        """Rows of a part that go through the model at a time."""
        return math.ceil(part.micro / self.times)

    def __call__(self, parts: Sequence[Part]) -> list[Outcome]:
        """Gradients of each part's mean loss plus its penalty, clipped. In place.

        A penalty enters once, whatever the number of micro-batches and processes. `micro` is less
        afterwards if the memory was full.
        """
        while True:
            torch.manual_seed(parts[0].seed)  # what the base draws
            try:
                return self._gradients(parts)
            except (RuntimeError, MemoryError) as error:
                most = max(self.micro(part) for part in parts)
                if not (self.halves and most > 1 and memory_full(error)):
                    raise
            # Out of the except block: the error held on to all that the forward pass had kept.
            for part in parts:
                for tensor in part.tensors.values():
                    tensor.grad = None
            self.times *= 2

    def _gradients(self, parts: Sequence[Part]) -> list[Outcome]:
        acc = self.accelerator
        cut = [self._batches(part) for part in parts]
        counts = [[sum(map(_weight, some)), sum(b.tokens for b in some)] for some in cut]
        labels, tokens = acc.reduce(torch.tensor(counts).to(acc.device), reduction="sum").T.tolist()
        summed = [torch.zeros((), device=acc.device) for _ in parts]
        extra: list[Tensor | float] = [0.0 for _ in parts]
        passes = [(i, group) for i in range(max(map(len, cut))) for group in self._groups(i, cut)]
        for i, group in passes:
            last = (i, group) == passes[-1]
            batches = [cut[k][i] for k in group]
            segments = [(parts[k].adapter, (parts[k].seed, i)) for k in group]
            with (
                nullcontext() if last else acc.no_sync(self.objective),
                routed(self.model, self._route(batches, segments)),
                self.unwrapped.hooked(),
            ):
                losses = self._losses(batches)
                total: Tensor | float = 0.0
                for k, loss in zip(group, losses, strict=True):
                    check_connected(loss)
                    extra[k] = parts[k].penalty() if i == len(cut[k]) - 1 else 0.0
                    total = total + loss * (acc.num_processes / labels[k]) + extra[k]
                    summed[k] += loss.detach()
                acc.backward(total)  # processes are averaged
        losses = [
            acc.reduce(one, reduction="sum").item() / n
            for one, n in zip(summed, labels, strict=True)
        ]
        more = [e.item() if isinstance(e, Tensor) else e for e in extra]
        return [
            Outcome(losses[k], more[k], _clipped(p), int(tokens[k]), [r.where for r in p.rows])
            for k, p in enumerate(parts)
        ]

    def _groups(self, i: int, cut: list[list[Batch]]) -> list[list[int]]:
        """The numbers of the parts whose i-th batches share a forward pass."""
        here = [k for k, batches in enumerate(cut) if i < len(batches)]
        joined = self.batching.joins([n for k in here for n in cut[k][i].lengths])
        return [here] if joined else [[k] for k in here]

    def _route(
        self, batches: list[Batch], segments: list[tuple[str | None, tuple[int, int]]]
    ) -> Route:
        """The route of one pass: a segment for each batch, or the active adapters everywhere."""
        name, seed = segments[0]
        if name is None:
            return Everywhere.of(switch_of(self.model).route.names, seed)
        named = tuple(Segment((name,), seed) for name, seed in segments if name is not None)
        return BySegment(named, tuple(batch.input_ids.shape[1] for batch in batches))

    def _losses(self, batches: list[Batch]) -> list[Tensor]:
        """The sum of the losses of each batch, from one forward pass."""
        device = self.accelerator.device
        if isinstance(switch_of(self.model).route, Everywhere):
            return [self.objective(batches[0].to(device))]
        labels = [len(batch.targets) for batch in batches]
        whole = concatenate(batches) if len(batches) > 1 else batches[0]
        return list(self.objective(whole.to(device), labels).unbind())

    def _batches(self, part: Part) -> list[Batch]:
        """The micro-batches of this process."""
        acc = self.accelerator
        size = 1 if self.batching.refused else self.micro(part)
        mine = list(part.rows)[acc.process_index :: acc.num_processes]
        groups = self.batching.groups([len(row.ids) for row in mine], size)
        return [self._batch([mine[i] for i in group]) for group in groups]

    def said(self, rows: Sequence[Example]) -> list[str]:
        """Named lines on what is computed, and what a micro-batch of `rows` leaves out."""
        batch = self._batches(Part(rows, len(rows), {}))[0]
        lines = []
        if batch.labels is None and self.tail is None:
            lines.append(
                "this architecture cannot be taken apart at its decoder: the output head "
                "sees every token, not those alone that are learned"
            )
        if batch.shared_prefixes is not None:
            left = batch.tokens - batch.input_ids.numel()
            lines.append(
                f"what rows begin with alike is computed once: {left:,} of the "
                f"{batch.tokens:,} tokens of the first rows are left out"
            )
        return lines

    def _batch(self, rows: list[Example]) -> Batch:
        return pack(rows, share_prefixes=self.shared) if self.packed else pad(rows, self.pad_id)


def _weight(batch: Batch) -> int:
    """What the loss is a mean over: label tokens, or the rows of a classifier."""
    return len(batch.targets) if batch.labels is None else len(batch.lengths)


def _clipped(part: Part) -> float:
    """The norm of a part's gradients, before they are scaled down to its `max_norm`. In place."""
    tensors = list(part.tensors.values())
    return float(torch.nn.utils.clip_grad_norm_(tensors, part.max_norm, foreach=True))
