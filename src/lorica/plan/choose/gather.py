"""Read the situation: the base's sizes, the rows, and what a training takes on the device."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from lorica.data.check import Report, check
from lorica.plan.choose.fit import ROWS_PER_STEP
from lorica.plan.choose.run_length import choose_length
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
    counted = _counter(shapes)
    counts = None if report.problems else counted(_recipe(config, device))
    rows = _rows(report, counts, estimated=bool(tokenizer.notices))
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
        device=_name(device),
        kind=device.kind,
    )
    if counts is not None:
        length = {reason.what: reason.value for reason in choose_length(situation)}
        recipe = _recipe(config, device).model_copy(update={"epochs": length["epochs"]})
        situation = replace(situation, peak=_peak(recipe, shapes, device, counted))
    return Gathered(situation, changed, why, (*shapes.notices, *tokenizer.notices))


def _name(device: Device) -> str:
    if device.kind == "cpu":
        return "this machine"
    return device.name if device.name in devices() else "the device"


def _rows(report: Report, counts: TokenCounts | None, *, estimated: bool) -> Rows:
    """The rows of a report, with the tokens of their plan; None: they cannot be trained on.

    estimated: the tokens are; then texts cannot be decoded.
    """
    (kind,) = report.kinds
    known = (*COUNTED, "in pieces") if estimated else COUNTED
    return Rows(
        kind,
        report.rows,
        report.train,
        report.validation,
        counts.label_tokens if counts and kind != "label" else 0,
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


def _recipe(config: TrainConfig, device: Device) -> TrainConfig:
    """The settings that every recipe for this device has."""
    update: dict[str, Any] = {"micro_batch_size": ROWS_PER_STEP, "target_modules": "all-linear"}
    if device.kind == "cuda":
        update["dtype"] = "bfloat16"
    return config.model_copy(update=update)


def _counter(shapes: Shapes) -> Callable[[TrainConfig], TokenCounts]:
    """`count_tokens`, which counts once for settings by which the counts do not differ."""
    known: dict[tuple[Any, ...], TokenCounts] = {}

    def counted(config: TrainConfig) -> TokenCounts:
        own = config.method
        key = (config.micro_batch_size, config.epochs, own["name"] == "alora", own.get("dropout"))
        if key not in known:
            known[key] = count_tokens(config, shapes)
        return known[key]

    return counted


def _peak(
    recipe: TrainConfig,
    shapes: Shapes,
    device: Device,
    counted: Callable[[TrainConfig], TokenCounts],
) -> Peak:
    def peak(settings: Settings) -> int:
        own = settings["method"]
        full = with_defaults(method(own["name"]), own)
        update = {**settings, "method": full}
        if own["name"] == "full":
            update["target_modules"] = None
        changed = recipe.model_copy(update=update)
        return peak_memory(shapes, full, changed, counted(changed), device).total

    return peak
