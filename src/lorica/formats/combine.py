"""Combine adapters of one base: a weighted sum of their changes, written as a plain LoRA.

The changes of the weights are summed, W' - W of each adapter, and not its factors: (a1 + a2)
(b1 + b2) is not a1 b1 + a2 b2, and a scale (alpha / sqrt(r)), a rank that differs by layer or a
DoRA's magnitudes are in the change and in no factor. Where every part has factors, the sum has
them too: those of the parts side by side.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lorica.core.attach import detach
from lorica.core.sums import DENSE, METHODS, CombineMethod
from lorica.errors import ConfigError, counted, listed
from lorica.formats import commit
from lorica.formats.adapter_file import read
from lorica.formats.attach import attach
from lorica.formats.open_adapter import open_file
from lorica.formats.sum_updates import SumSettings, sums
from lorica.formats.to_lora import attach_lora
from lorica.formats.verify import compare, record
from lorica.formats.written_lora import WRITTEN, check_exact, written_logits

FIRST, EXACT_SUM = "default", "lorica_sum"
CONFLICT = 0.5
"""Share of the changes that cancel, above which a notice says so."""


@dataclass(frozen=True)
class Combination:
    """What was written, and how far it is from the exact sum; see formats/verify.py.

    parts: each adapter with its weight. ranks, errors: by site, as of an export. cancelled: the
    share of the parts' changes (1-norm) that cancel in their sum.
    """

    folder: Path
    method: str
    parts: list[tuple[str, float]]
    ranks: dict[str, int]
    errors: dict[str, float]
    cancelled: float
    max_difference: float
    max_effect: float
    kl: float
    effect: float
    lost: float
    tokens: int
    notices: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**vars(self), "folder": str(self.folder)}


def combine(
    parts: Mapping[str | Path, float] | Sequence[tuple[str | Path, float]],
    output: str | Path,
    *,
    method: CombineMethod = "linear",
    rank: int | None = None,
    density: float = 0.5,
    seed: int = 0,
    base: str | None = None,
    allow_base: str | None = None,
    probe: list[str] | None = None,
) -> Combination:
    """Write the weighted sum of adapters as a plain LoRA folder, whole or not at all.

    parts: runs or adapters, with their weights; a weight below 0 takes a task away.
    method: see core/sums.py. "svd" is "linear" cut to `rank` (by default the largest of the parts);
        "cat" keeps the factors side by side, and "linear" those that are not needed are left out.
    rank: the largest rank of a layer; None: the exact sum, or an error where it has full rank.
    density: the share of each change that ties keeps, and dare draws. seed: of what dare draws.
    base: another place of the base. allow_base: see `lorica.load`.
    probe: texts to measure on, beside the built-in ones.

    Raises: MergeError, with nothing written, if a part is no change of weights or trains whole
        layers, or if the sum has full rank and no rank is given; BaseError if the parts have
        different bases; ConfigError; ResourceError if `output` exists.
    """
    pairs = list(parts.items()) if isinstance(parts, Mapping) else list(parts)
    _check(pairs, method, rank, density)
    generator = torch.Generator().manual_seed(seed)
    settings = SumSettings(method, [float(w) for _, w in pairs], rank, density, generator)
    with commit.folder(Path(output)) as staging:
        opened = open_file(read(pairs[0][0]), base=base, allow_base=allow_base)
        names = [FIRST, *(f"lorica_part_{i}" for i in range(1, len(pairs)))]
        for name, (path, _) in list(zip(names, pairs, strict=True))[1:]:
            file = read(path)
            opened.notices += attach(
                opened.model, file, name, tokenizer=opened.tokenizer, allow_base=allow_base
            )
            if file.prompt_format != opened.prompt_format:
                opened.notices.append(
                    f"{path} was trained with another prompt format than {pairs[0][0]}, whose "
                    "format the sum has"
                )
        whole, written, share = sums(opened, names, [str(p) for p, _ in pairs], settings)
        attach_lora(opened.model, FIRST, whole, EXACT_SUM)
        recorded = record(opened, EXACT_SUM, probe)
        detach(opened.model, EXACT_SUM)
        attach_lora(opened.model, FIRST, written, WRITTEN)
        difference = compare(recorded, written_logits(opened, staging, recorded.rows))
        report = Combination(
            folder=Path(output),
            method=method,
            parts=[(str(path), weight) for path, weight in pairs],
            ranks={site.name: update.r for site, update in written},
            errors={site.name: update.error for site, update in written},
            cancelled=share,
            **vars(difference),
        )
        if rank is None and method in ("linear", "cat"):
            largest = recorded.adapted.abs().max().item()
            check_exact("the sum", report.max_difference, largest)
        report.notices.extend([*opened.notices, *_notices(report)])
    return report


def _check(
    pairs: Sequence[tuple[str | Path, float]], method: str, rank: int | None, density: float
) -> None:
    """Raises: ConfigError."""
    if not pairs:
        raise ConfigError("no adapter was named.", fix="lorica combine A=0.5 B=0.5 --output DIR")
    if method not in METHODS:
        raise ConfigError(f"there is no method {method!r}.", known=", ".join(METHODS))
    if wrong := [f"{path}={weight}" for path, weight in pairs if not math.isfinite(weight)]:
        raise ConfigError(f"a weight is not a finite number: {listed(wrong)}.")
    if all(weight == 0 for _, weight in pairs):
        raise ConfigError("all weights are 0: the sum is the base.", fix="give a weight above 0")
    if rank is not None and rank < 1:
        raise ConfigError(f"rank is {rank}; it must be at least 1.", fix="try 16")
    if not 0 < density <= 1:
        raise ConfigError(f"density is {density}; it must be above 0 and at most 1.")
    if method in DENSE and rank is None:
        raise ConfigError(
            f"what {method} leaves has full rank: no LoRA equals it exactly.",
            fix="give the rank of the result, --rank 16; its error is measured",
        )
    if method == "cat" and rank is not None:
        raise ConfigError("cat keeps all factors, and takes no rank.", fix="--method svd --rank R")


def _notices(report: Combination) -> list[str]:
    """What was written and measured, in words."""
    ranks = [r for r in report.ranks.values() if r]
    written = (
        f"{report.method} of {counted(len(report.parts), 'adapter')}: a plain LoRA, {len(ranks)} "
        f"layers, rank {min(ranks, default=0)} to {max(ranks, default=0)}"
    )
    measured = (
        f"logits differ by at most {report.max_difference:.3g} from the exact sum's (which moves "
        f"them by up to {report.max_effect:.3g}), on {report.tokens} probe tokens"
    )
    lines = [written, measured]
    worst = max(report.errors, key=report.errors.__getitem__, default="")
    if worst and report.errors[worst] > 0:
        lines.append(
            f"the sum is cut: {worst} loses most, {report.errors[worst]:.2%} of its change; "
            f"{report.lost:.2%} of the sum's effect is lost"
        )
    if report.cancelled > CONFLICT:
        lines.append(
            f"the adapters pull in opposite directions: {report.cancelled:.0%} of their changes "
            "cancel in the sum; try --method ties, or measure with lorica eval"
        )
    return lines
