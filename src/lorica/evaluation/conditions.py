"""Rows with conditions: prepare the model for them, and test whether the condition matters.

A network that makes an adapter from a condition may learn to make the same one for all of them,
and the loss would not show it. So the rows are scored again, each under another row's condition.
"""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from lorica.base.condition_texts import encode_conditions
from lorica.base.load import LoadedModel
from lorica.core.condition import is_conditioned, swapped_conditions, unused_conditions
from lorica.data.example import Example
from lorica.errors import DataError
from lorica.evaluation.loss import Scores, score
from lorica.evaluation.stats import ratios


def prepare_conditions(loaded: LoadedModel, examples: Sequence[Example]) -> list[str]:
    """Compute the vectors of the texts that the rows are conditioned on.

    Returns: notices, also that conditions are not used. Raises: DataError if the active adapter
        needs a condition, and the rows have none.
    """
    conditions = _conditions(examples)
    if is_conditioned(loaded.model) and not conditions:
        raise DataError(
            "the adapter is made from a condition, and the rows have none.",
            fix="name their column, data.columns: {condition: NAME}",
        )
    distinct = sorted(set(conditions))
    return unused_conditions(loaded.model, conditions) + encode_conditions(
        loaded.model, loaded.tokenizer, distinct
    )


def swapped_condition_notice(
    model: nn.Module, examples: Sequence[Example], scores: Scores, *, batch_size: int
) -> list[str]:
    """A notice: by how much the loss rises under the conditions of other rows.

    scores: under the rows' own conditions. Empty where the model takes no condition, or all rows
    have the same.
    """
    conditions = _conditions(examples)
    if not is_conditioned(model) or len(set(conditions)) < 2:
        return []
    pairs = zip(examples, swapped_conditions(conditions), strict=True)
    others = [replace(example, condition=condition) for example, condition in pairs]
    wrong = score(model, others, batch=batch_size)
    rise = ratios([scores.nll, wrong.nll], scores.tokens).difference(0, 1)
    verdict = "the condition is used" if rise.side > 0 else "not shown that the condition is used"
    notice = (
        f"with the conditions of other rows the loss is {wrong.loss:.3f}, {rise.value:+.3f} "
        f"[{rise.low:+.3f}, {rise.high:+.3f}]: {verdict}"
    )
    return [notice]


def _conditions(examples: Sequence[Example]) -> list[str]:
    return [e.condition for e in examples if e.condition is not None]
