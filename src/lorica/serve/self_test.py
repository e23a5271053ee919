"""Replay what an adapter's folder has recorded, before the adapter is served.

golden.jsonl has one JSON object on each line:

    {"ids": [1, 52, 7], "logprobs": [-2.31, -0.04]}

ids: token ids. logprobs: of each id but the first, under the adapter, given those before it: the
natural logarithm. condition: of an adapter that has conditions.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorica import plain_files, strict_json
from lorica.base.condition_texts import encode_conditions
from lorica.base.fingerprint import Fingerprint
from lorica.core.attach import detach
from lorica.core.condition import with_conditions
from lorica.errors import FileError
from lorica.formats.adapter_file import AdapterFile
from lorica.formats.attach import attach

GOLDEN = "golden.jsonl"
MAX_BYTES = 4 * 2**20
MAX_ROWS = 256
MAX_IDS = 4096
"""Tokens of one row."""
BOUNDS = {torch.float32: 2e-3, torch.float16: 0.1, torch.bfloat16: 0.5}
"""The largest difference of a log-probability, in nats, by the dtype of the base. Processors differ
by about 1e-5 in float32; an adapter that is not applied, or with half its scale, by far more."""
_NAME = "self_test"


@dataclass(frozen=True)
class GoldenRow:
    """ids (T,), logprobs (T - 1,). condition: None: the adapter has none."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    condition: str | None = None


def read_golden(folder: Path) -> list[GoldenRow]:
    """The recorded rows of an adapter's folder; [] if it has none. Raises: FileError."""
    path = folder / GOLDEN
    if not plain_files.is_file(path):
        return []
    lines = plain_files.read_bytes(path, MAX_BYTES).splitlines()
    rows = [_row(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]
    if not 1 <= len(rows) <= MAX_ROWS:
        raise FileError(
            f"{path} has {len(rows)} rows; it may have 1 to {MAX_ROWS}.", fix="export it again"
        )
    return rows


def _row(line: bytes, where: str) -> GoldenRow:
    try:
        value = strict_json.parse(line)
    except ValueError as error:
        raise FileError(f"{where} cannot be read: {error}.", fix="export it again") from None
    fields = value if isinstance(value, dict) else {}
    ids, logprobs, condition = (fields.get(key) for key in ("ids", "logprobs", "condition"))
    if (
        set(fields) - {"ids", "logprobs", "condition"}
        or not isinstance(ids, list)
        or not isinstance(logprobs, list)
        or not 2 <= len(ids) <= MAX_IDS
        or len(logprobs) != len(ids) - 1
        or not all(type(i) is int and i >= 0 for i in ids)
        or not all(type(p) in (int, float) and math.isfinite(p) for p in logprobs)
        or not isinstance(condition, str | None)
    ):
        raise FileError(
            f'{where} is no row {{"ids": [...], "logprobs": [...]}} of 2 to {MAX_IDS} ids with '
            "one log-probability less.",
            fix="export it again",
        )
    return GoldenRow(tuple(ids), tuple(map(float, logprobs)), condition)


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
