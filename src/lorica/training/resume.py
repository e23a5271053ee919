"""Go on with a run from its newest checkpoint: what must be as it was, and what may change.

A run that goes on ends with the bits of one that was never stopped, so that its settings, rows and
base must be those that it began with. What may change is what cannot reach the adapter (FREE), and
the length of the run: `max_steps` or `epochs` may be larger, also of a run that has ended.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lorica.base.fingerprint import differences
from lorica.core.state import load_adapter_state
from lorica.errors import BaseError, ConfigError, DataError, FileError, LoricaError, listed
from lorica.recipe.versions import versions
from lorica.training import checkpoint as ckpt
from lorica.training import optim
from lorica.training.config import TrainConfig, plain_settings
from lorica.training.schedule import factor

if TYPE_CHECKING:
    from lorica.training.loop import Trainer

FREE = ("base", "report_to", "save_steps", "keep_checkpoints", "loss_limit", "output", "peer")
PATHS = ("data.path", "data.validation")
"""Settings that may name another file with the same content, which is compared itself, as may
`base`; a file is read by its suffix."""
LENGTH = ("max_steps", "epochs")


def continue_from(trainer: "Trainer", found: ckpt.Checkpoint) -> list[str]:
    """Put a checkpoint of the run into the trainer and its model. In place.

    Returns: notices. Raises: ConfigError, DataError, BaseError, FileError if it is not of this
        run, before anything is changed.
    """
    check_same(trainer, found)
    notices = _length(trainer, found) + _versions(trainer, found)
    _check_schedule(trainer, found)
    load_adapter_state(trainer.base.model, found.adapter, trainer.name, source="the checkpoint")
    optim.load_optimizer_state(
        trainer.optimizer,
        trainer.tensors,
        found.optimizer,
        step=found.progress.step,
        complete=not trainer.driver.scheduled,
    )
    trainer.driver.load_state(found.schedule)
    trainer.progress, trainer.best = found.progress, found.best
    return notices


def origin_of(trainer: "Trainer") -> ckpt.Origin:
    return ckpt.Origin(
        settings=plain_settings(trainer.config),
        data=trainer.data.digest,
        base=trainer.identity,
        total=trainer.total,
        warmup=trainer.warmup,
        processes=trainer.accelerator.num_processes,
        versions={**versions(), **machine(trainer)},
    )


def machine(trainer: "Trainer") -> dict[str, str]:
    """What else decides how sums are rounded: the device, and on a CPU its threads and vectors."""
    kind = trainer.accelerator.device.type
    if kind != "cpu":
        return {"device": torch.get_device_module(kind).get_device_name()}
    return {
        "device": f"cpu ({torch.backends.cpu.get_cpu_capability()})",
        "threads": str(torch.get_num_threads()),
    }


def changed_settings(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """{setting: "old -> new"} of what differs, but for what may.

    A setting that `then` lacks is of a newer lorica, and has its default.
    """
    one, two = dict(_flat(then)), dict(_flat(now))
    free = {*FREE, *LENGTH}
    if one.get("early_stopping_patience") is None is two.get("early_stopping_patience"):
        free.add("eval_steps")
    free |= {name for name in PATHS if _alike(one.get(name), two.get(name))}
    return {
        name: f"{one[name]!r} -> {two.get(name)!r}"
        for name in one
        if one[name] != two.get(name) and name not in free
    }


def check_flags(config: TrainConfig, changed: TrainConfig, run: Path) -> None:
    """Raises: ConfigError if settings that are given with `--resume` may not change."""
    settings = changed_settings(plain_settings(config), plain_settings(changed))
    _refuse_settings(settings, run, f"lorica train --resume {run}, or start a new run")


def check_same(trainer: "Trainer", found: ckpt.Checkpoint) -> None:
    """Raises: the error that names everything which is not as the run began with it."""
    then, now, run = found.origin, origin_of(trainer), trainer.run.folder
    settings = changed_settings(then.settings, now.settings)
    base = differences(then.base, now.base)
    if then.base.shapes != now.base.shapes:
        base = {"shapes": "another architecture or size"}
    rows = then.data != now.data
    if settings and not rows and not base:
        _refuse_settings(settings, run)
    facts: dict[str, str] = {f"other_{kind}": what for kind, what in base.items()}
    facts |= settings
    if rows or base:
        kind: type[LoricaError] = DataError if rows else BaseError
        what = " and ".join(["the rows"] * rows + ["the base"] * bool(base))
        raise kind(
            f"{what} {'are' if rows else 'is'} not {'those' if rows else 'the one'} that {run} "
            "began with.",
            **facts,
            fix="put it back as it was, or start a new run",
        )
    if then.processes != now.processes:
        raise ConfigError(
            f"{run} was trained by {then.processes} processes, and there are {now.processes}.",
            fix=f"go on with {then.processes}, or start a new run",
        )
    step, rows_seen = found.progress.step, found.progress.rows
    if rows_seen != step * trainer.rows_per_step:
        raise FileError(
            f"the checkpoint of step {step} has seen {rows_seen} rows, and not "
            f"{step * trainer.rows_per_step}.",
            fix="delete it to go on from the one before it",
        )


def _refuse_settings(
    settings: Mapping[str, str], run: Path, fix: str = "put them back, or start a new run"
) -> None:
    if settings:
        raise ConfigError(
            f"a resumed run keeps its settings; {len(settings)} of {run} have changed.",
            **settings,
            may_change=", ".join([*FREE, *LENGTH, *PATHS]),
            fix=fix,
        )


def _length(trainer: "Trainer", found: ckpt.Checkpoint) -> list[str]:
    """Let the run be longer or shorter than it was begun. In place. Returns: notices."""
    then, step, run = found.origin, found.progress.step, trainer.run.folder
    if trainer.total == then.total:
        return []
    if trainer.total < step:
        raise ConfigError(
            f"{run} is to end after {trainer.total} steps, and has done {step}.",
            fix="raise max_steps or epochs",
        )
    if trainer.driver.scheduled:
        raise ConfigError(
            f"the schedule of {trainer.method.name} was made for {then.total} steps, and cannot "
            f"be made for {trainer.total} on the way.",
            fix="put max_steps and epochs back as they were, or start a new run",
        )
    patience = trainer.config.early_stopping_patience
    if patience is not None and found.progress.waited >= patience:
        raise ConfigError(
            f"{run} stopped early: {found.progress.waited} evaluations without a lower loss.",
            fix="start a new run without early_stopping_patience",
        )
    trainer.warmup = then.warmup  # the rate has risen already
    config = trainer.config
    before, after = (
        trainer.rate * factor(step, total=n, warmup=then.warmup, kind=config.schedule)
        for n in (then.total, trainer.total)
    )
    notice = f"the run was begun for {then.total} steps and now ends after {trainer.total}"
    if config.schedule != "constant":
        notice += (
            f": from step {step} on the {config.schedule} schedule of the learning rate is that of "
            f"{trainer.total} steps ({after:.3g} there, where it was {before:.3g}); a run of "
            f"{trainer.total} steps from its start would end otherwise"
        )
    return [notice]


def _versions(trainer: "Trainer", found: ckpt.Checkpoint) -> list[str]:
    """A notice if the libraries or the machine are other ones: they may round otherwise."""
    now, then = {**versions(), **machine(trainer)}, found.origin.versions
    other = [f"{k} {then[k]} -> {now.get(k)}" for k in then if then[k] != now.get(k)]
    if not other:
        return []
    return [f"the run goes on with {listed(other)}, which may round otherwise than it began"]


def _check_schedule(trainer: "Trainer", found: ckpt.Checkpoint) -> None:
    """Raises: FileError unless the schedule's tensors are those that a fresh one has."""
    fresh = trainer.driver.state()
    wrong = [f"{k}: unknown" for k in found.schedule.keys() - fresh.keys()]
    for key in found.schedule.keys() & fresh.keys():
        one, two = found.schedule[key], fresh[key]
        if one.shape != two.shape or one.dtype != two.dtype:
            wrong.append(f"{key}: {one.dtype} {tuple(one.shape)}, not {tuple(two.shape)}")
        elif not one.isfinite().all():
            wrong.append(f"{key}: not finite")
    done = found.schedule.get("step")
    if done is not None and done.shape == () and int(done) != found.progress.step:
        wrong.append(f"step: {int(done)}, not {found.progress.step}")
    if wrong:
        raise FileError(
            "the checkpoint's schedule does not fit the run.",
            wrong=listed(sorted(wrong)),
            fix="delete the checkpoint to go on from the one before it",
        )


def _alike(one: Any, two: Any) -> bool:
    """Both name a file, and files that are read in the same way."""
    return isinstance(one, str) and isinstance(two, str) and Path(one).suffix == Path(two).suffix


def _flat(settings: Mapping[str, Any], prefix: str = "") -> "list[tuple[str, Any]]":
    found: list[tuple[str, Any]] = []
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found
