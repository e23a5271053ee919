"""What is settled before the first step: how many steps, which rows in each, and their batching.

Rows and learning rate of a step are pure functions of its number, so that nothing of them is saved.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from lorica.base import packing
from lorica.base.batching import Batching
from lorica.base.load import LoadedModel
from lorica.core.attach import use
from lorica.core.bank import spec_of
from lorica.data.load import Data
from lorica.data.mixture import Mixture
from lorica.training.batching import choose_batching
from lorica.training.config import TrainConfig
from lorica.training.micro_batches import MicroBatchLimit, over_budget_notice
from lorica.training.passes import check_rows_per_step
from lorica.training.placement import Placement

Decay = Literal["cosine", "linear", "constant"]


@dataclass
class Plan:
    """The steps of a run, and how their rows go through the model.

    total, warmup, eval_steps, save_steps, epoch (one pass over the rows): optimizer steps.
        schedule: of the learning rate.
    processes: that divided a step when the run began. rows_per_step: of all of them. limit: of
        what goes through the model of this process at a time; a step that ran out of memory
        lowers it.
    packed: rows are concatenated, not padded. can_share_prefixes: tokens with which several rows
        of a micro-batch begin are computed once.
    """

    total: int
    warmup: int
    schedule: Decay
    eval_steps: int | None
    save_steps: int
    epoch: int
    processes: int
    rows_per_step: int
    limit: MicroBatchLimit
    packed: bool
    batching: Batching
    can_share_prefixes: bool

    def lr_factor(self, step: int) -> float:
        return lr_factor(step, total=self.total, warmup=self.warmup, kind=self.schedule)

    def evaluates_after(self, step: int) -> bool:
        return step == self.total or (self.eval_steps is not None and step % self.eval_steps == 0)

    def saves_after(self, step: int) -> bool:
        return step % self.save_steps == 0

    def lower_limit(self, limit: MicroBatchLimit, step: int) -> list[str]:
        """Use a lower limit after `step`, which ran out of memory. Returns: a notice."""
        before, self.limit = self.limit, limit
        change = f"micro-batches have {limit} from here on, not {before}"
        return [f"memory was full at step {step}: {change}"]


def make_plan(
    base: LoadedModel,
    config: TrainConfig,
    data: Data,
    name: str,
    placement: Placement,
    *,
    processes: int,
) -> tuple[Plan, list[str]]:
    """The plan of a run whose adapter `name` is on the base, and notices about its batching.

    processes: with which the run began. Those that continue it divide the same steps.

    Raises: ConfigError if an optimizer step would pass over the rows again and again.
    """
    packed, batching, notices = choose_batching(base, config, data, placement)
    shares = packed and why_not_shared(base, name, placement) is None
    rows_per_step = config.micro_batch_size * config.gradient_accumulation_steps * processes
    own_rows, tokens = -(-rows_per_step // placement.processes), config.max_tokens_per_micro_batch
    rows = data.epoch_rows
    check_rows_per_step(rows_per_step, rows)
    total = config.max_steps or math.ceil((config.epochs or 1) * rows / rows_per_step)
    plan = Plan(
        total=total,
        warmup=config.warmup_steps or int(config.warmup_ratio * total),
        schedule=config.schedule,
        eval_steps=config.eval_steps,
        save_steps=config.save_steps or config.eval_steps or max(total // 10, 1),
        epoch=rows // rows_per_step,
        processes=processes,
        rows_per_step=rows_per_step,
        limit=MicroBatchLimit(config.micro_batch_size if tokens is None else own_rows, tokens),
        packed=packed,
        batching=batching,
        can_share_prefixes=shares,
    )
    return plan, [*notices, *over_budget_notice(data.train.lengths, tokens)]


def why_not_shared(base: LoadedModel, name: str, placement: Placement) -> str | None:
    """Why a prefix that rows share cannot be computed once; None: it can."""
    if not placement.has_blocks:
        return "the run is split"
    if getattr(spec_of(base.model, name).method, "dropout", 0):
        return "dropout is drawn anew for each row"
    with use(base.model):
        return packing.why_not_shared(base.model)


def lr_factor(step: int, *, total: int, warmup: int, kind: Decay) -> float:
    """What the peak learning rate is multiplied by at `step`.

    step: optimizer steps, counted from 0; total: steps of the run, 0 <= warmup < total.
    Rises linearly over `warmup` steps (the first step already moves), then falls to 0 at
    `total`: half a cosine (Loshchilov & Hutter, "SGDR", 2016, arXiv:1608.03983, eq. 5, without
    restarts), a straight line, or not at all.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = min((step - warmup) / max(total - warmup, 1), 1.0)
    if kind == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    return 1 - done if kind == "linear" else 1.0


def row_order(
    rows: int, seed: int, start: int, count: int, mixture: Mixture | None = None
) -> list[int]:
    """Indices of the rows at positions start .. start + count - 1 of the run's endless stream.

    The stream is one shuffle of all `rows` after another; each follows from (seed, epoch). A
    mixture repeats or leaves out some rows of an epoch.
    """
    indices: list[int] = []
    while len(indices) < count:
        epoch, position = divmod(start + len(indices), mixture.rows if mixture else rows)
        shuffle = _shuffled(rows, seed, epoch, mixture)
        indices += shuffle[position : position + count - len(indices)].tolist()
    return indices


@lru_cache(maxsize=4)  # runs that are trained together have each their own
def _shuffled(rows: int, seed: int, epoch: int, mixture: Mixture | None) -> Tensor:
    """All rows in the order of one epoch; for 300,000 rows this takes milliseconds."""
    draw = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    if mixture is None:
        return torch.randperm(rows, generator=draw)
    used = []
    for start, stop, wanted in mixture.parts:
        count = stop - start
        whole, rest = divmod(wanted, max(count, 1))
        used.append(torch.arange(start, stop).repeat(whole))
        if rest:
            used.append(start + torch.randperm(count, generator=draw)[:rest])
    indices = torch.cat(used)
    return indices[torch.randperm(len(indices), generator=draw)]
