"""Export an adapter as a plain LoRA that PEFT and the serving engines read.

Many methods are another way to find a low-rank update: they end in W + b a, and a LoRA with the
scale 1 is the same function. It is written as an adapter folder and read back, and its logits on
probe text are compared with those of the adapter. Updates of full rank have no such form; with a
given rank they are cut to the nearest LoRA of that rank, and the error is measured.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from lorica.base.condition_texts import fix_condition
from lorica.base.load import LoadedModel
from lorica.core.attach import detach
from lorica.core.bank import bank_of, spec_of
from lorica.core.blocks import routing
from lorica.core.condition import set_conditions
from lorica.core.modes import in_mode
from lorica.core.route import Everywhere
from lorica.errors import ConfigError
from lorica.formats import commit
from lorica.formats.open_adapter import open_adapter
from lorica.formats.to_lora import attach_lora, low_rank_updates
from lorica.formats.verify import compare, record
from lorica.formats.written_lora import WRITTEN, check_exact, written_logits


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote and measured; see formats/verify.py.

    ranks: R by site; 0: the adapter does nothing there. errors: by site, the Frobenius norm of
    the lost part of W' - W over that of W' - W.
    """

    folder: Path
    adapter: str
    method: str
    condition: str | None
    exact: bool
    ranks: dict[str, int]
    errors: dict[str, float]
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


def export_lora(
    source: nn.Module | str | Path,
    output: str | Path,
    *,
    name: str = "default",
    condition: str | None = None,
    rank: int | None = None,
    base: str | None = None,
    allow_base: str | None = None,
    tokenizer: Any = None,
    labels: list[str] | None = None,
    probe: list[str] | None = None,
) -> ExportReport:
    """Write an adapter as a plain LoRA folder, whole or not at all.

    source: a run or adapter folder, or a model that carries the adapter `name`; it is left as
        it was.
    condition: the one to export, of an adapter that is generated from a condition.
    rank: the largest rank of a site; None: the exact LoRA, or an error.
    base: another place of the base. allow_base: see `lorica.load`.
    tokenizer, labels: of a model; of a folder they are known.
    probe: texts to measure on, beside the built-in ones.

    Raises: MergeError, with nothing written, if the adapter is not a LoRA (see `rank`), or the
        LoRA differs from it; ResourceError if `output` exists or cannot be written.
    """
    with commit.folder(Path(output)) as staging:
        if isinstance(source, nn.Module):
            opened = LoadedModel(source, tokenizer, base or "", labels)
        else:
            opened, name = open_adapter(source, base=base, allow_base=allow_base), "default"
        report = write_lora(opened, name, staging, condition=condition, rank=rank, probe=probe)
    adapter = name if isinstance(source, nn.Module) else str(source)
    return replace(report, folder=Path(output), adapter=adapter)


def write_lora(
    opened: LoadedModel,
    name: str,
    folder: Path,
    *,
    condition: str | None = None,
    rank: int | None = None,
    one_rank: bool = False,
    probe: list[str] | None = None,
) -> ExportReport:
    """Write adapter `name` of `opened` as a plain LoRA into an empty folder; it stays as it was.

    one_rank: every layer has the largest rank, by components that are zero. Others: see
    `export_lora`. Raises: as `export_lora`.
    """
    if rank is not None and rank < 1:
        raise ConfigError(f"rank is {rank}; it must be at least 1.", fix="try 16")
    model = opened.model
    with _unchanged(model, name):
        notices = fix_condition(model, opened.tokenizer, condition)
        updates = low_rank_updates(model, name, rank)
        recorded = record(opened, name, probe)
        attach_lora(model, name, updates, WRITTEN, one_rank=one_rank)
        difference = compare(recorded, written_logits(opened, folder, recorded.rows))
    report = ExportReport(
        folder=folder,
        adapter=name,
        method=spec_of(model, name).method.name,
        condition=condition,
        exact=rank is None,
        ranks={site.name: update.r for site, update in updates},
        errors={site.name: update.error for site, update in updates},
        **vars(difference),
    )
    if report.exact:
        what, largest = f"the {report.method} adapter", recorded.adapted.abs().max().item()
        check_exact(what, report.max_difference, largest)
    report.notices.extend([*opened.notices, *notices, *_notices(report)])
    return report


@contextmanager
def _unchanged(model: nn.Module, name: str) -> Iterator[None]:
    """Inside the block the model is in eval mode with `name` active; then it is as it was before.

    Only conditions are not restored: none is set after the block.
    """
    spec_of(model, name)
    bank = bank_of(model)
    attached, route = set(bank.specs), bank.route
    trainable = [(p, p.requires_grad) for p in model.parameters()]
    try:
        with in_mode(model, training=False), routing(bank, Everywhere.of([name])):
            yield
    finally:
        set_conditions(model, None)
        for extra in bank.specs.keys() - attached:
            detach(model, extra)
        bank.route = route
        for parameter, requires_grad in trainable:
            parameter.requires_grad_(requires_grad)


def _notices(report: ExportReport) -> list[str]:
    """What was written and measured, in words."""
    ranks = [r for r in report.ranks.values() if r]
    idle = len(report.ranks) - len(ranks)
    written = (
        f"{report.method} as a plain LoRA: {len(ranks)} layers, "
        f"rank {min(ranks, default=0)} to {max(ranks, default=0)}"
    ) + (f"; {idle} more do nothing and are left out" if idle else "")
    measured = (
        f"logits differ by at most {report.max_difference:.3g} (the adapter moved them by up to "
        f"{report.max_effect:.3g}), on {report.tokens} probe tokens"
    )
    if report.exact:
        return [written, measured]
    worst = max(report.errors, key=report.errors.__getitem__)
    cut = (
        f"updates are cut to that rank: {worst} loses most, {report.errors[worst]:.2%} of its "
        f"update; KL {report.kl:.3g} of {report.effect:.3g} nats a token: {report.lost:.2%} of "
        "the adapter's effect is lost"
    )
    return [written, measured, cut]
