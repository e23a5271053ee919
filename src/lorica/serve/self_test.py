"""Replay what an adapter's folder has recorded, before the adapter is served."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorica.base.condition_texts import encode_conditions
from lorica.base.fingerprint import Fingerprint
from lorica.core.attach import detach
from lorica.core.condition import with_conditions
from lorica.errors import FileError
from lorica.formats.adapter_file import AdapterFile
from lorica.formats.attach import attach
from lorica.formats.golden import GOLDEN, GoldenRow

BOUNDS = {torch.float32: 2e-3, torch.float16: 0.1, torch.bfloat16: 0.5}
"""The largest difference of a log-probability, in nats, by the dtype of the base. Processors differ
by about 1e-5 in float32; an adapter that is not applied, or with half its scale, by far more."""
_NAME = "self_test"


@torch.no_grad()
def self_test(
    twin: nn.Module,
    file: AdapterFile,
    rows: Sequence[GoldenRow],
    *,
    tokenizer: Any,
    here: Fingerprint | None = None,
) -> float:
    """The largest difference from the recorded log-probabilities, in nats. `twin` is unchanged.

    twin: of the base, without adapters. here: its fingerprint; None: it is computed.
    Raises: FileError if the difference is above the bound; what `attach` raises.
    """
    path = file.folder / GOLDEN
    attach(twin, file, _NAME, tokenizer=tokenizer, here=here)
    try:
        worst = max(_difference(twin, row, tokenizer, path) for row in rows)
    finally:
        detach(twin, _NAME)
    bound = BOUNDS[_dtype(twin)]
    if not worst <= bound:
        raise FileError(
            f"{file.folder} does not give what {GOLDEN} recorded.",
            largest_difference=f"{worst:.3g} nats; {bound:g} are allowed",
            fix=f"copy the folder again, or export it again if {GOLDEN} is of another adapter",
        )
    return worst


def _difference(model: nn.Module, row: GoldenRow, tokenizer: Any, path: Path) -> float:
    ids = torch.tensor([row.ids], device=next(model.parameters()).device)
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    if int(ids.max()) >= len(embedding.weight):
        raise FileError(
            f"{path} has token {int(ids.max())}, and the base has {len(embedding.weight)}.",
            fix="export it again on this base",
        )
    conditions = None if row.condition is None else [row.condition]
    encode_conditions(model, tokenizer, conditions)
    with nullcontext() if conditions is None else with_conditions(model, conditions):
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    actual = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0].cpu()
    return float((actual - torch.tensor(row.logprobs)).abs().max())


def _dtype(model: nn.Module) -> torch.dtype:
    """The dtype that the base computes in."""
    return next(p.dtype for p in model.parameters() if p.is_floating_point())
