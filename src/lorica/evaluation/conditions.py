"""Rows with conditions: make the model ready for them, and see whether the condition matters.

A network that makes an adapter from a condition may come to give the same one for all, and the
loss would not show it. So the rows are scored once more, each under another row's condition.
"""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from lorica.base.load import LoadedModel
from lorica.core.condition import conditioned, describe, swapped, unused
from lorica.data.example import Example
from lorica.errors import DataError
from lorica.evaluation.loss import Scores, score
from lorica.evaluation.stats import ratios


def ready(base: LoadedModel, examples: Sequence[Example]) -> list[str]:
    """Let the base read what texts the rows are conditioned on.

    Returns: named lines, also that the conditions are not used. Raises: DataError if the active
        adapter needs a condition, and the rows have none.
    """
    told = [e.condition for e in examples if e.condition is not None]
    if conditioned(base.model) and not told:
        raise DataError(
            "the adapter is made from a condition, and the rows have none.",
            fix="name their column, data.columns: {condition: NAME}",
        )
    return unused(base.model, told) + describe(base.model, base.tokenizer, sorted(set(told)))


def swap(
    model: nn.Module, examples: Sequence[Example], right: Scores, *, batch_size: int
) -> list[str]:
    """A named line: how much worse the loss is under the conditions of other rows.

    right: the scores under the rows' own. Nothing where the model takes no condition, or all
    rows have the same.
    """
    told = [e.condition for e in examples if e.condition is not None]
    if not conditioned(model) or len(set(told)) < 2:
        return []
    others = [replace(e, condition=c) for e, c in zip(examples, swapped(told), strict=True)]
    wrong = score(model, others, batch=batch_size)
    rise = ratios([right.nll, wrong.nll], right.tokens).difference(0, 1)
    says = "the condition is used" if rise.side > 0 else "that the condition is used is not shown"
    line = f"with the conditions of other rows the loss is {wrong.loss:.3f}, {rise.value:+.3f} "
    return [f"{line}[{rise.low:+.3f}, {rise.high:+.3f}]: {says}"]
