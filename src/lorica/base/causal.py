"""Whether a base reads from left to right: else it would learn to copy the answers that it sees."""

import torch
from torch import nn

from lorica.base.batching import alone, difference, dtype_of, probe_ids
from lorica.core.modes import in_mode
from lorica.errors import BaseError

ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-5}
"""Largest change of earlier logits, as a share of the largest; LOW in other dtypes."""
LOW = 1e-2
LENGTH, CHANGED = 12, 6


def check_causal(model: nn.Module, path: str) -> None:
    """Raises: BaseError if later tokens change the logits of earlier ones."""
    row = probe_ids(model, LENGTH, 0)
    other = torch.cat([row[:-CHANGED], probe_ids(model, CHANGED, 1)])
    try:
        with in_mode(model, training=False):
            found = [logits[:-CHANGED] for logits in alone(model, [row, other])]
            off = difference(found[:1], found[1:])
    except Exception:  # what keeps it from running is named where it runs
        return
    if not all(logits.isfinite().all() for logits in found):
        return  # training and generation name the weights, or the row
    if off <= ROUNDING.get(dtype_of(model), LOW):
        return
    raise BaseError(
        f"{path} reads rows in both directions: trained on text it sees the answers.",
        architecture=type(model).__name__,
        tried=f"other tokens at the end change the logits of the first ones by {off:.2g} of the "
        "largest",
        fix="use a base that reads from left to right; for classes, give rows with a label; if the "
        "base was trained as a decoder, set is_decoder: true in its config.json",
    )
