"""How many tokens the rows of a run have, and how many of them a micro-batch computes.

Rows are read, rendered and encoded by lorica.data, as in training, without torch. Of a large file
only its first rows are counted, and the rest is estimated.
"""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np

from lorica.data.dataset import Dataset
from lorica.data.example import Example
from lorica.data.load import Data, load_data
from lorica.data.shared_prefix import shared_prefix
from lorica.data.split import validation_count
from lorica.plan.row_order import row_order
from lorica.plan.sample import COUNTED_BYTES, file_size, first_rows
from lorica.plan.shapes import Shapes, base_folder
from lorica.plan.tokenizer import open_tokenizer
from lorica.training.micro_batches import by_tokens
from lorica.training.passes import check_rows_per_step
from lorica.training.settings import TrainSettings

DRAWN, LARGEST = 150, 30
"""Micro-batches of all sizes, and of the largest ones, whose shared tokens are counted."""
EVALUATED_ROWS, MAX_EVALUATED_LOGITS = 16, 1 << 27
"""Rows, and logits, of a batch of an evaluation at most; see lorica.evaluation.loss."""
PROBE_ROWS = 32
"""Rows that a round of ALoRA evaluates, for each rank that it tries."""
MAX_DRAWN_ROWS = 200_000
"""Rows of random order in which the largest micro-batch is looked for; one of more rows is taken to
be like its first rows."""


@dataclass(frozen=True)
class MicroBatch:
    """Rows that go through the model at a time.

    rows. tokens: that are computed: shared prefixes once, padding too. labels: label positions.
    longest: tokens of its longest row. attended: tokens that attention computes: those of every
    row, with its prefix.
    """

    rows: float
    tokens: float
    labels: float
    longest: float
    attended: float


@dataclass(frozen=True)
class EvaluationBatch:
    """Rows that are evaluated at a time, padded to the longest; see lorica.evaluation.loss.

    positions: at which any of them has a label. labels: of all rows.
    """

    rows: int
    longest: int
    positions: int
    labels: int


@dataclass(frozen=True)
class TokenCounts:
    """The tokens of a run's training rows, over one epoch.

    real_tokens: of all rows. label_tokens: those that are learned. computed_tokens: after packing
    and shared prefixes, or with padding. longest: tokens of the longest row. largest, mean: of the
    run's micro-batches. validation_rows, validation_tokens: as rows and real_tokens. evaluated: the
    largest batch of an evaluation; None: not known. conditions, classes: distinct ones of the rows.
    error: standard error of the counts as a share, of a sample; 0: all rows were counted.
    """

    rows: int
    real_tokens: int
    label_tokens: int
    computed_tokens: int
    longest: int
    largest: MicroBatch
    mean: MicroBatch
    validation_rows: int = 0
    validation_tokens: int = 0
    evaluated: EvaluationBatch | None = None
    conditions: tuple[str, ...] = ()
    classes: int | None = None
    error: float = 0.0
    notices: tuple[str, ...] = ()


def count_tokens(config: TrainSettings, shapes: Shapes) -> TokenCounts:
    """Count the tokens of the rows of `config`.

    Raises: DataError for rows that cannot be trained on; FileError for a damaged tokenizer.
    """
    tokenizer = open_tokenizer(base_folder(config.base))
    tokenizer.add_tokens(config.data.add_tokens)
    with first_rows(config.data) as (sampled, share):
        if isinstance(sampled.validation, str) and file_size(sampled.validation) > COUNTED_BYTES:
            sampled = sampled.model_copy(update={"validation": 0.0})
        if tokenizer.notices and sampled.overlong is None:  # lengths are estimates: refuse no row
            sampled = sampled.model_copy(update={"overlong": "truncate"})
        data = load_data(
            sampled,
            tokenizer,
            seed=config.seed,
            max_length=_context(config, shapes),
            new_classes=True,
        )
    counts = _counts(config, data, shapes, share)
    return replace(counts, notices=(*tokenizer.notices, *counts.notices))


def _context(config: TrainSettings, shapes: Shapes) -> int | None:
    """The longest row that the base takes, less the positions of virtual tokens.

    A longer data.max_length is planned for; training refuses it on a base that cannot.
    """
    taken = config.method.get("num_virtual_tokens") or 0
    if shapes.context is None:
        return None
    return max(shapes.context, config.data.max_length or 0) - taken


def _counts(config: TrainSettings, data: Data, shapes: Shapes, share: float) -> TokenCounts:
    train, lengths = data.train, data.train.lengths
    of_epoch, of_validation = _all_rows(config, data, share)
    check_rows_per_step(config.micro_batch_size * config.gradient_accumulation_steps, of_epoch)
    packed = shapes.packs and data.labels is None
    shares = packed and not config.method.get("dropout")
    batches, largest = _drawn(
        config, data, packed, shares, rows_of_run(config, data.epoch_rows / share)
    )
    mean = MicroBatch(*np.mean([astuple(b) for b in batches], axis=0).tolist())
    rows, error, notices = len(train), 0.0, []
    if share < 1:
        error = float(lengths.std() / lengths.mean() / math.sqrt(rows)) if rows > 1 else 1.0
        notices.append(
            f"tokens are counted on the first {rows:,} rows, {share:.0%} of the file, and the rest "
            f"is taken to be like them (standard error of the tokens of a row: {error:.1%})"
        )
    scale = of_epoch / data.epoch_rows
    times = data.mixture.times() if data.mixture else 1
    held = data.validation.lengths if len(data.validation) else lengths
    real = float((lengths * times).sum()) * scale
    # The rows that were drawn are longer or shorter than the others; the share they save is not.
    computed = real * mean.tokens / mean.attended if packed else mean.tokens / mean.rows * of_epoch
    return TokenCounts(
        rows=of_epoch,
        real_tokens=round(real),
        label_tokens=of_epoch
        if data.labels
        else round(float((train.label_counts * times).sum()) * scale),
        computed_tokens=round(computed),
        longest=int(lengths.max()),
        largest=largest,
        mean=mean,
        validation_rows=of_validation,
        validation_tokens=round(of_validation * float(held.mean())),
        evaluated=_evaluated(_evaluated_rows(config, data), shapes),
        conditions=tuple(sorted(train.conditions)),
        classes=None if data.labels is None else len(data.labels),
        error=error,
        notices=tuple(notices),
    )


def _all_rows(config: TrainSettings, data: Data, share: float) -> tuple[int, int]:
    """(training, validation) rows of the run. share: of the rows of the file that were read."""
    train, held = data.epoch_rows, len(data.validation)
    validation = config.data.validation
    if isinstance(validation, str):
        every = round(train / share)
        like_training = file_size(validation) / max(file_size(config.data.path), 1)
        return every, held or round(every * like_training)
    if share == 1:
        return train, held
    every = round((train + held) / share)
    held = validation_count(every, validation)
    return every - held, held


def _evaluated_rows(config: TrainSettings, data: Data) -> Dataset:
    """The rows that a run evaluates. ALoRA's rounds evaluate training rows; see training.validation
    (probe)."""
    if config.method["name"] == "alora":
        return data.train[:: max(len(data.train) // PROBE_ROWS, 1)][:PROBE_ROWS]
    return data.validation or data.train[: config.micro_batch_size]


def _evaluated(rows: Dataset, shapes: Shapes) -> EvaluationBatch:
    """The batch with the longest rows, which comes first."""
    order = np.argsort(-rows.lengths, kind="stable")
    longest = int(rows.lengths[order[0]])
    fitting = max(MAX_EVALUATED_LOGITS // shapes.vocab // longest, 1)
    picked = [rows[int(i)] for i in order[: min(EVALUATED_ROWS, fitting)]]
    positions = {i for row in picked for i, learned in enumerate(row.learned) if learned}
    labels = sum(sum(row.learned) for row in picked)
    return EvaluationBatch(len(picked), longest, len(positions), labels)


def rows_of_run(config: TrainSettings, rows: float) -> float:
    """Rows of all steps of a run. rows: of an epoch."""
    if config.max_steps:
        return config.max_steps * config.micro_batch_size * config.gradient_accumulation_steps
    return (config.epochs or 1) * rows


def _drawn(
    config: TrainSettings, data: Data, packed: bool, shares: bool, rows: float
) -> tuple[list[MicroBatch], MicroBatch]:
    """(micro-batches of all sizes, the one with most tokens). rows: of all steps of the run."""
    if config.max_tokens_per_micro_batch is not None:
        return _drawn_by_tokens(config, data, packed, shares, rows)
    train = data.train
    size = min(config.micro_batch_size, MAX_DRAWN_ROWS)
    count = math.ceil(min(rows, MAX_DRAWN_ROWS) / size)
    groups = _order(data, config.seed, count, size)
    batches, largest = _counted(train, list(groups), packed, shares)
    factor = config.micro_batch_size / size
    return [_scaled(batch, factor) for batch in batches], _scaled(largest, factor)


def _drawn_by_tokens(
    config: TrainSettings, data: Data, packed: bool, shares: bool, rows: float
) -> tuple[list[MicroBatch], MicroBatch]:
    """`_drawn` where micro-batches are made by tokens: those of the first steps of the run."""
    size = config.micro_batch_size * config.gradient_accumulation_steps
    tokens = config.max_tokens_per_micro_batch
    assert tokens is not None
    steps = math.ceil(min(rows, MAX_DRAWN_ROWS) / size)
    train = data.train
    groups = [
        step[group]
        for step in _order(data, config.seed, steps, size)
        for group in by_tokens(train.lengths[step].tolist(), size, tokens, packed=packed)
    ]
    return _counted(train, groups, packed, shares)


def _order(data: Data, seed: int, groups: int, size: int) -> np.ndarray:
    """The numbers of the first rows of the run: (groups, size)."""
    rows = row_order(len(data.train), seed, groups * size, data.mixture)
    return np.array(rows).reshape(groups, size)


def _counted(
    train: Dataset, groups: Sequence[np.ndarray], packed: bool, shares: bool
) -> tuple[list[MicroBatch], MicroBatch]:
    """(some of the micro-batches, of all sizes; the one with most tokens).

    groups: row numbers of each micro-batch.
    """
    lengths = (train.lengths[group] for group in groups)
    sizes = [own.sum() if packed else own.max() * len(own) for own in lengths]
    by_size = np.argsort(-np.array(sizes))

    def counted(numbers: np.ndarray) -> list[MicroBatch]:
        return [_micro_batch([train[int(i)] for i in groups[g]], packed, shares) for g in numbers]

    largest = max(counted(by_size[:LARGEST]), key=lambda b: (b.tokens, b.labels))
    return counted(by_size[:: math.ceil(len(by_size) / DRAWN)]), largest


def _scaled(batch: MicroBatch, factor: float) -> MicroBatch:
    """A micro-batch of `factor` times as many rows of the same lengths."""
    counts = (factor * n for n in (batch.rows, batch.tokens, batch.labels))
    return MicroBatch(*counts, longest=batch.longest, attended=factor * batch.attended)


def _micro_batch(rows: Sequence[Example], packed: bool, shares: bool) -> MicroBatch:
    longest = max(len(row.ids) for row in rows)
    labels = sum(sum(row.learned) for row in rows)
    tokens = sum(len(row.ids) for row in rows) if packed else longest * len(rows)
    if shares:
        ordered = sorted(rows, key=lambda row: (row.condition or "", row.ids))
        tokens -= sum(map(shared_prefix, ordered, ordered[1:]))
    attended = sum(len(row.ids) for row in rows) if packed else tokens
    return MicroBatch(len(rows), tokens, labels, longest, attended)
