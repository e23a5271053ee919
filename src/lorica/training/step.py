"""One optimizer step: forward and backward. The loss is averaged over the label tokens of the step.

Micro-batches and processes only divide the work: each contributes its sum of losses over the
one count, so that 1 x 8, 2 x 4 and 8 x 1 rows, in one process or in two, give one update. So where
memory does not hold a micro-batch, the step is repeated in halves of it.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorica.base.batching import Batching
from lorica.core.attach import routed
from lorica.core.bank import bank_of
from lorica.core.draws import Seed
from lorica.core.route import BySegment, Everywhere, Route, Segment
from lorica.data.batch import Batch, concatenate, pack, pad
from lorica.data.example import Example
from lorica.errors import TrainingError, memory_full
from lorica.training.micro_batches import MicroBatchLimit, halved, micro_batches
from lorica.training.objective import Objective
from lorica.training.placement import Placement
from lorica.training.state import RunState


@dataclass(frozen=True)
class StepInput:
    """What one run gives to a step; several runs may be trained in one.

    rows: of the step, in all processes. micro_batch_size, max_tokens: rows that go through the
    model at a time, and their tokens, at most. tensors: what the run trains. max_norm: of their
    gradients. penalty: added to the loss. adapter: its name on the model; None: the active ones.
    seed: of every draw in the step.
    """

    rows: Sequence[Example]
    micro_batch_size: int
    tensors: Mapping[str, nn.Parameter]
    max_norm: float = 1.0
    penalty: Callable[[], Tensor | float] = lambda: 0.0
    adapter: str | None = None
    seed: int = 0
    max_tokens: int | None = None

    @property
    def limit(self) -> MicroBatchLimit:
        return MicroBatchLimit(self.micro_batch_size, self.max_tokens)


@dataclass(frozen=True)
class Outcome:
    """What a step did for one run; the gradients are in the tensors.

    loss: nats per label token (per row for a classifier). penalty: what the method added to it.
    norm: of the gradients, before clipping. tokens: of all processes. where: places of the rows.
    limit: of the micro-batches, lower than that of the input if memory was full.
    """

    loss: float
    penalty: float
    norm: float
    tokens: int
    where: list[str]
    limit: MicroBatchLimit


class Stepper:
    """Computes the gradients of a step, in micro-batches.

    packed: rows are concatenated, not padded. batching: which rows may share a micro-batch.
    shared: tokens with which several rows of a micro-batch begin are computed once.
    """

    def __init__(
        self,
        placement: Placement,
        model: nn.Module,
        *,
        packed: bool,
        shared: bool,
        pad_id: int,
        batching: Batching | None = None,
    ):
        self.placement, self.packed, self.shared, self.pad_id = placement, packed, shared, pad_id
        self.model, self.batching = model, batching or Batching()
        self.objective = Objective(model, packed=packed, all_positions=not placement.has_blocks)
        self.replica = placement.replicate(self.objective)

    def __call__(self, inputs: Sequence[StepInput]) -> list[Outcome]:
        """Gradients of each input's mean loss plus its penalty, clipped. In place.

        A penalty enters once, whatever the number of micro-batches and processes.
        """
        limits = [given.limit for given in inputs]
        while True:
            torch.manual_seed(inputs[0].seed)  # what the base draws
            try:
                return self._gradients(inputs, limits)
            except (RuntimeError, MemoryError) as error:
                if not (self.placement.can_retry and memory_full(error)):
                    raise
                lower = [self._halved(g.rows, own) for g, own in zip(inputs, limits, strict=True)]
                if not any(lower):
                    raise
            # Out of the except block: the error held on to all that the forward pass had kept.
            for given in inputs:
                for tensor in given.tensors.values():
                    tensor.grad = None
            limits = [own or limit for own, limit in zip(lower, limits, strict=True)]

    def _gradients(
        self, inputs: Sequence[StepInput], limits: Sequence[MicroBatchLimit]
    ) -> list[Outcome]:
        placement, runs = self.placement, range(len(inputs))
        batches = [self._batches(inputs[k].rows, limits[k]) for k in runs]
        counts = [[sum(map(_label_count, own)), sum(b.tokens for b in own)] for own in batches]
        label_counts, tokens = placement.reduce(torch.tensor(counts)).T.tolist()
        losses = [torch.zeros((), device=placement.device) for _ in runs]
        penalties: list[Tensor | float] = [0.0 for _ in runs]
        passes = [
            (i, group) for i in range(max(map(len, batches))) for group in self._groups(i, batches)
        ]
        counted = len(passes)
        if placement.in_lockstep:  # further passes count for nothing: others make as many
            passes += [passes[-1]] * (int(placement.agree(counted)) - counted)
        for number, (i, group) in enumerate(passes):
            is_last = number == len(passes) - 1
            own = [batches[k][i] for k in group]
            with (
                nullcontext() if is_last else placement.no_sync(self.replica),
                routed(self.model, self._route(own, [inputs[k] for k in group], i)),
                self.objective.hooked(),
            ):
                total: Any = 0.0
                pass_losses = self._losses(own, [inputs[k] for k in group])
                for k, loss in zip(group, pass_losses, strict=True):
                    _check_connected(loss)
                    if number >= counted:
                        total = total + loss * 0
                        continue
                    losses[k] += loss.detach()
                    total = total + loss * placement.loss_weight(label_counts[k])
                    if i == len(batches[k]) - 1:
                        penalties[k] = inputs[k].penalty()
                        total = total + penalties[k]
                placement.backward(total)
        return [
            Outcome(
                loss=placement.reduce(losses[k]).item() / label_counts[k],
                penalty=_number(penalties[k]),
                norm=placement.clip_gradients(inputs[k].tensors, inputs[k].max_norm),
                tokens=int(tokens[k]),
                where=[row.where for row in inputs[k].rows],
                limit=limits[k],
            )
            for k in runs
        ]

    def _groups(self, i: int, batches: list[list[Batch]]) -> list[list[int]]:
        """The runs whose i-th micro-batches share a forward pass."""
        runs = [k for k, own in enumerate(batches) if i < len(own)]
        joined = self.batching.joins([n for k in runs for n in batches[k][i].lengths])
        return [runs] if joined else [[k] for k in runs]

    def _route(self, batches: list[Batch], inputs: list[StepInput], i: int) -> Route:
        """A segment for the i-th micro-batch of each run, or the active adapters everywhere."""
        segments = []
        for given in inputs:
            seed: Seed = (given.seed, i)
            if given.adapter is None:
                return Everywhere.of(bank_of(self.model).route.names, seed)
            segments.append(Segment((given.adapter,), seed))
        return BySegment(tuple(segments), tuple(batch.input_ids.shape[1] for batch in batches))

    def _losses(self, batches: list[Batch], inputs: list[StepInput]) -> list[Tensor]:
        """The sum of the losses of each micro-batch, from one forward pass."""
        device = self.placement.device
        if inputs[0].adapter is None:
            return [self.replica(batches[0].to(device))]
        label_counts = [len(batch.targets) for batch in batches]
        joined = concatenate(batches) if len(batches) > 1 else batches[0]
        return list(self.replica(joined.to(device), label_counts).unbind())

    def _batches(self, rows: Sequence[Example], limit: MicroBatchLimit) -> list[Batch]:
        """The micro-batches of this process."""
        own = self.placement.rows(rows)
        lengths = [len(row.ids) for row in own]
        groups = micro_batches(lengths, limit, self.batching, packed=self.packed)
        return [self._collate([own[i] for i in group]) for group in groups]

    def _halved(self, rows: Sequence[Example], limit: MicroBatchLimit) -> MicroBatchLimit | None:
        """A limit for half of the largest micro-batch of a step; None: every row goes alone."""
        lengths = [len(row.ids) for row in self.placement.rows(rows)]
        return halved(limit, lengths, self.batching, packed=self.packed)

    def _collate(self, rows: list[Example]) -> Batch:
        return pack(rows, share_prefixes=self.shared) if self.packed else pad(rows, self.pad_id)

    def notices(self, rows: Sequence[Example], limit: MicroBatchLimit) -> list[str]:
        """What is computed of the first micro-batch of `rows`, where that is not the usual."""
        batch = self._batches(rows, limit)[0]
        notices = []
        if batch.labels is None and self.objective.tail is None:
            notices.append(
                "the output head computes logits for all tokens, not only at label positions: the "
                "decoder of this architecture cannot be called without the head"
            )
        if batch.shared_prefixes is not None:
            skipped = batch.tokens - batch.input_ids.numel()
            notices.append(
                f"shared prefixes are computed once: {skipped:,} of the {batch.tokens:,} tokens in "
                "the first batch are skipped"
            )
        return notices


def stepper_for(states: Sequence[RunState]) -> Stepper:
    """The stepper of runs that share a base and a placement."""
    first = states[0]
    return Stepper(
        first.placement,
        first.base.model,
        packed=first.plan.packed,
        batching=first.plan.batching,
        shared=all(state.plan.can_share_prefixes for state in states),
        pad_id=first.base.tokenizer.pad_token_id or 0,
    )


def _check_connected(loss: Tensor) -> None:
    """Before the first backward pass: the loss must depend on something that is trained."""
    if not loss.requires_grad:
        raise TrainingError(
            "the loss does not depend on the adapter: no gradient can reach it.",
            fix="target layers that the model calls",
        )


def _number(x: Tensor | float) -> float:
    return x.item() if isinstance(x, Tensor) else x


def _label_count(batch: Batch) -> int:
    """What the loss is averaged over: label tokens, or the rows of a classifier."""
    return len(batch.targets) if batch.labels is None else len(batch.lengths)
