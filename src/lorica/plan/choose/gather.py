"""Read the situation: the base's sizes, the rows, and what a training takes on the device."""

from dataclasses import dataclass
from typing import Any

from lorica.data.check import Report, check
from lorica.plan.choose.situation import Base, Engine, Goal, Peak, Rows, Settings, Situation
from lorica.plan.devices import Device, devices
from lorica.plan.memory import peak_memory
from lorica.plan.shapes import Shapes, base_folder, read_shapes
from lorica.plan.tokenizer import open_tokenizer
from lorica.plan.tokens import TokenCounts, count_tokens
from lorica.recipe.catalogue import method
from lorica.recipe.method_settings import with_defaults
from lorica.training.config import TrainConfig

COUNTED = (
    "repeat an earlier row",
    "different answers",
    "different classes",
    "are longer than",
    "have nothing to learn",
)
"""Notices of the check that `quality` says in its own words, with a fix."""
FEW_OVERLONG = 0.05
"""Up to this share of rows, rows above the limit are left out instead of stopping the training."""


@dataclass(frozen=True)
class Gathered:
    """situation. data: settings of the rows that the recipe changes, with the reason in `why`.
    notices: of the base and of the tokenizer."""

    situation: Situation
    data: dict[str, Any]
    why: str
    notices: tuple[str, ...]


def gather(config: TrainConfig, device: Device, goal: Goal, serve: Engine) -> Gathered:
    """Read base and rows. config: base, data and seed count.

    Raises: BaseError, DataError, FileError for what cannot be read.
    """
    shapes = read_shapes(config.base)
    tokenizer = open_tokenizer(base_folder(config.base))
    tokenizer.add_tokens(config.data.add_tokens)

    def report_on(config: TrainConfig) -> Report:
        return check(config.data, tokenizer, seed=config.seed, max_length=shapes.context)

    report, changed, why = report_on(config), {}, ""
    if report.policy == "raise" and 0 < report.overlong <= FEW_OVERLONG * report.rows:
        changed = {"overlong": "drop"}
        why = (
            f"{report.overlong:,} of {report.rows:,} rows are longer than {report.max_length:,} "
            "tokens; cut, they would lose their answers"
        )
        config = config.model_copy(update={"data": config.data.model_copy(update=changed)})
        report = report_on(config)
    rows = _rows(report, estimated=bool(tokenizer.notices))
    base = Base(
        config.base,
        shapes.hidden,
        shapes.parameters,
        [(s.inputs, s.outputs) for s in shapes.sites if s.kind == "linear" and not s.is_head],
    )
    situation = Situation(
        rows,
        base,
        goal,
        serve,
        memory=device.memory_bytes or None,
        peak=None if rows.problems else _peak(config, shapes, device),
        device=_name(device),
        kind=device.kind,
    )
    return Gathered(situation, changed, why, (*shapes.notices, *tokenizer.notices))


def _name(device: Device) -> str:
    if device.kind == "cpu":
        return "this machine"
    return device.name if device.name in devices() else "the device"


def _rows(report: Report, *, estimated: bool) -> Rows:
    """The counts of a report. estimated: the tokens are; then texts cannot be decoded."""
    (kind,) = report.kinds
    known = (*COUNTED, "in pieces") if estimated else COUNTED
    share = report.train / max(report.train + report.validation, 1)
    return Rows(
        kind,
        report.rows,
        report.train,
        report.validation,
        round(report.label_tokens * share),
        longest=report.longest,
        median=report.median,
        max_length=report.max_length,
        overlong=report.overlong,
        policy=report.policy,
        classes=report.classes,
        conditions=report.conditions,
        duplicates=report.duplicates,
        empty=report.unlearned if estimated else report.answers.empty,
        conflicting=(report.answers.prompts, report.answers.rows),
        structure=None if estimated else report.answers.structure,
        problems=report.problems,
        notices=[n for n in report.notices if not any(words in n for words in known)],
    )


def _peak(config: TrainConfig, shapes: Shapes, device: Device) -> Peak:
    counts: dict[int, TokenCounts] = {}  # by rows at a time

    def peak(settings: Settings) -> int:
        own = settings["method"]
        full = with_defaults(method(own["name"]), own)
        dtype = "bfloat16" if device.kind == "cuda" else config.dtype
        update = {"dtype": dtype, **settings, "method": full}
        changed = config.model_copy(update=update)
        size = changed.micro_batch_size
        if size not in counts:
            counts[size] = count_tokens(changed, shapes)
        return peak_memory(shapes, full, changed, counts[size], device).total

    return peak
