"""Save the state of a run, and resume from it: what must be unchanged, and what may change.

A resumed run ends with the same bits as one that was never stopped. So its settings, rows and base
must be those that it began with. Settings without an effect on the adapter (FREE) may change, and
so may the length of the run: `max_steps` or `epochs` may be larger, also after it has ended.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorica.base.fingerprint import differences
from lorica.core.state import adapter_state, load_adapter_state
from lorica.errors import BaseError, ConfigError, DataError, FileError, LoricaError, counted, listed
from lorica.recipe.versions import versions
from lorica.training import checkpoint as ckpt
from lorica.training import optim
from lorica.training.config import TrainConfig, plain_settings
from lorica.training.plan import lr_factor
from lorica.training.state import RunState

FREE = (
    "base",
    "offload",
    "report_to",
    "save_steps",
    "keep_checkpoints",
    "loss_limit",
    "output",
    "peer",
    "shard",
    "data.workers",
)
PATHS = ("data.path", "data.mixture", "data.validation")
"""Settings that may name another file with the same content, as may `base`. The suffix must stay:
it decides how the file is read."""
LENGTH = ("max_steps", "epochs")


def continue_from(state: RunState, saved: ckpt.Checkpoint) -> None:
    """Put a checkpoint of the run into its state and its model, and add notices. In place.

    Raises: ConfigError, DataError, BaseError, FileError if it is not of this run, before anything
        is changed.
    """
    check_same(state, saved)
    notices = _change_length(state, saved) + _version_notices(state, saved)
    notices += _process_notices(state)
    driver = state.updater.driver
    _check_schedule(driver.state(), saved)
    load_adapter_state(state.base.model, saved.adapter, state.adapter.name, source="the checkpoint")
    optim.load_optimizer_state(
        state.updater.optimizer,
        state.adapter.tensors,
        saved.optimizer,
        step=saved.progress.step,
        complete=not driver.scheduled,
    )
    driver.load_state(saved.schedule)
    state.progress, state.adapter.best = saved.progress, saved.best
    state.run.notices += notices


def save_checkpoint(state: RunState) -> None:
    """Save everything that the next step depends on; only the process that writes does."""
    whole = state.placement.whole
    tensors = whole(adapter_state(state.base.model, state.adapter.name))
    moments = whole(optim.optimizer_state(state.updater.optimizer, state.adapter.tensors))
    if not state.run.is_writer:
        return
    checkpoint = ckpt.Checkpoint(
        state.progress,
        tensors,
        moments,
        state.updater.driver.state(),
        state.adapter.best,
        origin_of(state),
    )
    path = ckpt.save(state.run.checkpoints, checkpoint, keep=state.config.keep_checkpoints)
    state.run.log("checkpoint", step=state.progress.step, path=path.name)


def origin_of(state: RunState) -> ckpt.Origin:
    return ckpt.Origin(
        settings=plain_settings(state.config),
        data=state.data.digest,
        base=state.fingerprint,
        total=state.plan.total,
        warmup=state.plan.warmup,
        processes=state.plan.processes,
        versions={**versions(), **machine(state.placement.device)},
    )


def machine(device: torch.device) -> dict[str, str]:
    """The device, and of a CPU its threads and vector width: they decide how sums are rounded."""
    if device.type != "cpu":
        return {"device": torch.get_device_module(device.type).get_device_name()}
    return {
        "device": f"cpu ({torch.backends.cpu.get_cpu_capability()})",
        "threads": str(torch.get_num_threads()),
    }


def changed_settings(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """{setting: "old -> new"} of the settings that may not differ and do.

    A setting that `then` lacks is from a newer lorica, and has its default.
    """
    old, new = dict(flat(then)), dict(flat(now))
    free = {*FREE, *LENGTH}
    if old.get("early_stopping_patience") is None is new.get("early_stopping_patience"):
        free.add("eval_steps")
    free |= {name for name in PATHS if _are_files_alike(old.get(name), new.get(name))}
    return {
        name: f"{old[name]!r} -> {new.get(name)!r}"
        for name in old
        if old[name] != new.get(name) and name not in free
    }


def check_flags(config: TrainConfig, changed: TrainConfig, run: Path) -> None:
    """Raises: ConfigError if settings that are given with `--resume` may not change."""
    settings = changed_settings(plain_settings(config), plain_settings(changed))
    _refuse_settings(settings, run, f"lorica train --resume {run}, or start a new run")


def check_same(state: RunState, saved: ckpt.Checkpoint) -> None:
    """Raises: an error that names everything that differs from what the run began with."""
    then, now, run = saved.origin, origin_of(state), state.run.folder
    settings = changed_settings(then.settings, now.settings)
    base = differences(then.base, now.base)
    if then.base.shapes != now.base.shapes:
        base = {"shapes": "another architecture or size"}
    rows = then.data != now.data
    if settings and not rows and not base:
        _refuse_settings(settings, run)
    facts: dict[str, str] = {f"other_{kind}": what for kind, what in base.items()}
    facts |= settings
    if rows:
        data = state.config.data
        held_out = [data.validation] if isinstance(data.validation, str) else []
        facts["files"] = listed([*([file.path for file in data.mixture] or [data.path]), *held_out])
    if rows or base:
        kind: type[LoricaError] = DataError if rows else BaseError
        what = " and ".join(["the rows"] * rows + ["the base"] * bool(base))
        raise kind(
            f"{what} {'are' if rows else 'is'} not {'those' if rows else 'the one'} that {run} "
            "began with.",
            **facts,
            fix="restore what was changed (files of a mixture in their order), or start a new run"
            if rows
            else "restore it, or start a new run",
        )
    step, rows_seen = saved.progress.step, saved.progress.rows
    if rows_seen != step * state.plan.rows_per_step:
        raise FileError(
            f"the checkpoint of step {step} has seen {rows_seen} rows, and not "
            f"{step * state.plan.rows_per_step}.",
            fix="delete it to resume from the one before it",
        )


def _refuse_settings(
    settings: Mapping[str, str], run: Path, fix: str = "restore them, or start a new run"
) -> None:
    if settings:
        raise ConfigError(
            f"a resumed run keeps its settings; {len(settings)} of {run} have changed.",
            **settings,
            may_change=", ".join(n for n in [*FREE, *LENGTH, *PATHS] if n not in settings),
            fix=fix,
        )


def _change_length(state: RunState, saved: ckpt.Checkpoint) -> list[str]:
    """Let the run be longer or shorter than it was begun. In place. Returns: notices."""
    then, step, run, plan = saved.origin, saved.progress.step, state.run.folder, state.plan
    if plan.total == then.total:
        return []
    if plan.total < step:
        raise ConfigError(
            f"{run} is to end after {plan.total} steps, and has done {step}.",
            fix="raise max_steps or epochs",
        )
    if state.updater.driver.scheduled:
        raise ConfigError(
            f"the schedule of {state.config.method['name']} was made for {then.total} steps, and "
            f"cannot be changed to {plan.total} during the run.",
            fix="put max_steps and epochs back as they were, or start a new run",
        )
    patience = state.config.early_stopping_patience
    if patience is not None and saved.progress.waited >= patience:
        raise ConfigError(
            f"{run} stopped early: {saved.progress.waited} evaluations without a lower loss.",
            fix="start a new run without early_stopping_patience",
        )
    plan.warmup = then.warmup  # the rate has risen already
    notice = f"the run was begun for {then.total} steps and now ends after {plan.total}"
    if plan.schedule != "constant":
        before, after = (
            state.learning_rate
            * lr_factor(step, total=total, warmup=plan.warmup, kind=plan.schedule)
            for total in (then.total, plan.total)
        )
        notice += (
            f": from step {step} on the learning rate follows the {plan.schedule} schedule of "
            f"{plan.total} steps ({after:.3g} at this step, {before:.3g} before the change); a run "
            f"of {plan.total} steps from its start gives another adapter"
        )
    return [notice]


def _version_notices(state: RunState, saved: ckpt.Checkpoint) -> list[str]:
    """A notice if the libraries or the machine changed: sums may be rounded differently."""
    now, then = {**versions(), **machine(state.placement.device)}, saved.origin.versions
    other = [f"{k} {then[k]} -> {now.get(k)}" for k in then if then[k] != now.get(k)]
    if not other:
        return []
    return [f"the run continues with {listed(other)}, which may round sums differently"]


def _process_notices(state: RunState) -> list[str]:
    """A notice if another number of processes continues the run. Raises: ConfigError if it is
    larger than the number of rows of a step."""
    plan, now = state.plan, state.placement.processes
    if now > plan.rows_per_step:
        raise ConfigError(
            f"a step of {state.run.folder} has {counted(plan.rows_per_step, 'row')}, and there are "
            f"{now} processes.",
            fix=f"resume with {plan.rows_per_step} processes or fewer",
        )
    if now == plan.processes:
        return []
    began = counted(plan.processes, "process", "processes")
    notice = (
        f"the run began with {began} and continues with {now}: a step has the same "
        f"{plan.rows_per_step} rows, sums are rounded differently, and what is drawn at random in "
        "training (dropout) differs"
    )
    return [notice]


def _check_schedule(fresh: Mapping[str, Tensor], saved: ckpt.Checkpoint) -> None:
    """Raises: FileError unless the schedule's tensors are those that a fresh one has."""
    wrong = [f"{k}: unknown" for k in saved.schedule.keys() - fresh.keys()]
    for key in saved.schedule.keys() & fresh.keys():
        old, new = saved.schedule[key], fresh[key]
        if old.shape != new.shape or old.dtype != new.dtype:
            wrong.append(f"{key}: {old.dtype} {tuple(old.shape)}, not {tuple(new.shape)}")
        elif not old.isfinite().all():
            wrong.append(f"{key}: not finite")
    done = saved.schedule.get("step")
    if done is not None and done.shape == () and int(done) != saved.progress.step:
        wrong.append(f"step: {int(done)}, not {saved.progress.step}")
    if wrong:
        raise FileError(
            "the checkpoint's schedule does not fit the run.",
            wrong=listed(sorted(wrong)),
            fix="delete the checkpoint to resume from the one before it",
        )


def _are_files_alike(old: Any, new: Any) -> bool:
    """Both name files that are read in the same way, and, of a mixture, have the same weights."""
    if isinstance(old, list) and isinstance(new, list):
        pairs = list(zip(old, new, strict=False))
        alike = all(_are_files_alike(a["path"], b["path"]) for a, b in pairs)
        return alike and [a["weight"] for a in old] == [b["weight"] for b in new]
    return isinstance(old, str) and isinstance(new, str) and Path(old).suffix == Path(new).suffix


def flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """("data.path", value) and so on, of every setting."""
    pairs: list[tuple[str, Any]] = []
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            pairs += flat(value, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", value))
    return pairs
