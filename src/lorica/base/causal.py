"""Check that a base attends from left to right: otherwise it would see the answers in training."""

import torch
from torch import nn

from lorica.base.batching import alone, difference, dtype_of, probe_ids
from lorica.base.few_blocks import tried
from lorica.core.modes import in_mode
from lorica.errors import BaseError

ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-5}
"""Largest change of earlier logits, as a share of the largest; LOW in other dtypes."""
LOW = 1e-2
LENGTH, CHANGED = 12, 6


def check_causal(model: nn.Module, path: str) -> None:
    """Raises: BaseError if later tokens change the logits of earlier ones."""
    most = ROUNDING.get(dtype_of(model), LOW)
    try:
        change = tried(model, lambda: _change(model), lambda change: change <= most)
    except Exception:  # training and generation report why it does not run
        return
    if change <= most:
        return
    raise BaseError(
        f"{path} attends in both directions: in training it would see the answers.",
        architecture=type(model).__name__,
        tried=f"other tokens at the end change the logits of the first ones by {change:.2g} of the "
        "largest",
        fix="use a base that attends from left to right; for classes, give rows with a label; if "
        "the base was trained as a decoder, set is_decoder: true in its config.json",
    )


def _change(model: nn.Module) -> float:
    """How much later tokens change earlier logits, as a share of the largest; 0 if any logit is not
    finite: training and generation name the weights, or the row."""
    row = probe_ids(model, LENGTH, 0)
    other = torch.cat([row[:-CHANGED], probe_ids(model, CHANGED, 1)])
    with in_mode(model, training=False):
        logits = [of_row[:-CHANGED] for of_row in alone(model, [row, other])]
    if not all(of_row.isfinite().all() for of_row in logits):
        return 0.0
    return difference(logits[:1], logits[1:])
