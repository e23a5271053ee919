"""Forgetting: the loss on rows that the base knew before training, without and with the adapter.

The difference is what the adapter has forgotten, in nats per token, as in Biderman et al., "LoRA
learns less and forgets less", 2024, arXiv:2405.09673, section 3. Which rows the base knew, only the
user can say; for the bundled base they are held-out documents of its pretraining.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path

from lorica.base import bundled
from lorica.base.load import LoadedModel
from lorica.core.attach import use
from lorica.core.condition import is_conditioned
from lorica.data.config import DataConfig
from lorica.data.example import Example
from lorica.data.load import load_data
from lorica.errors import ConfigError, DataError, counted
from lorica.evaluation.conditions import prepare_conditions
from lorica.evaluation.loss import score
from lorica.evaluation.measure import Report, token_measures

OWN = "own"
"""In place of a file: the domain that the base was pretrained on."""
NAME = "forgetting_loss"


@dataclass(frozen=True)
class BeforeRows:
    """Rows that the base knew before training. source: what they are, for a sentence."""

    examples: Sequence[Example]
    source: str
    notices: list[str] = field(default_factory=list)


def knows_own_domain(base: str) -> bool:
    """Whether `own` can be given for a base."""
    return base == bundled.NAME


def before_settings(before: str, loaded: LoadedModel) -> DataConfig:
    """The settings of the rows. before: a file, a hub data set, or "own".

    Raises: ConfigError for "own" of a base whose domain does not come with it.
    """
    if before != OWN:
        return DataConfig(path=before, validation=0.0)
    if not knows_own_domain(loaded.path):
        raise ConfigError(
            f"the domain that {loaded.path} was pretrained on does not come with it.",
            fix="pass rows of that domain: --before FILE",
        )
    return DataConfig(path=str(bundled.DOMAIN), validation=0.0)


def load_before_rows(config: DataConfig, loaded: LoadedModel) -> BeforeRows:
    """Tokenise the rows. Raises: DataError if they cannot be used, or have classes."""
    rows = load_data(config, loaded.tokenizer, seed=0, max_length=loaded.max_length)
    if rows.labels is not None:
        raise DataError(
            f"{config.path} has rows with classes, and a language model has no loss on them.",
            fix="give rows of text, or of prompts and answers",
        )
    count, name = len(rows.train), Path(config.path).name
    if config.path == str(bundled.DOMAIN):
        source = f"{counted(count, 'document')} of the kind that the base was pretrained on"
    else:
        source = f"{counted(count, 'row')} of {name}"
    return BeforeRows(list(rows.train), source, rows.notices)


def give_conditions(
    before: BeforeRows, loaded: LoadedModel, examples: Sequence[Example]
) -> BeforeRows:
    """The rows for an adapter that is made from a condition: those of `examples`, in turn.

    Unchanged where the model takes none, or the rows have their own.
    """
    conditions = sorted({e.condition for e in examples if e.condition is not None})
    has_own = any(e.condition is not None for e in before.examples)
    if not is_conditioned(loaded.model) or has_own or not conditions:
        return before
    pairs = zip(before.examples, cycle(conditions), strict=False)
    rows = [replace(example, condition=condition) for example, condition in pairs]
    return replace(before, examples=rows, source=f"{before.source}, under the conditions in turn")


def measure_forgetting(
    report: Report,
    loaded: LoadedModel,
    before: BeforeRows,
    examples: Sequence[Example],
    adapted: bool,
    batch_size: int,
) -> Report:
    """The report with the loss on the rows that the base knew, without and with the adapter.

    examples: the measured rows. Raises: TrainingError if a loss is not finite.
    """
    rows = give_conditions(before, loaded, examples)
    notices = [*rows.notices, *prepare_conditions(loaded, rows.examples)]
    scores = []
    for context in [use(loaded.model), nullcontext()] if adapted else [nullcontext()]:
        with context:
            scores.append(score(loaded.model, rows.examples, batch=batch_size))
    loss, *_ = token_measures(scores)
    return replace(
        report,
        measures=[*report.measures, replace(loss, name=NAME)],
        notices=[*report.notices, f"forgetting loss: on {rows.source}", *notices],
    )
