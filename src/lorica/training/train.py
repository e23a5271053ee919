"""Start a run, or resume one: `lorica.train`."""

from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch

from lorica import plain_files, progress
from lorica.errors import ConfigError
from lorica.training.build import build_run
from lorica.training.config import TrainConfig, read, resolved
from lorica.training.freed_memory import keep_freed_memory, return_freed_memory
from lorica.training.loop import train_to_end
from lorica.training.placement import choose_placement, shard_notices
from lorica.training.prepare import check_base_named, load_rows, with_learning_rate
from lorica.training.processes import check_alike, settings_of
from lorica.training.restart import restarted
from lorica.training.resume import check_flags
from lorica.training.run import CONFIG, Result, Run
from lorica.training.split.cloud import serve


def train(
    config: TrainConfig | str | Path | None = None,
    *,
    resume: str | Path | None = None,
    until: int | None = None,
    show: bool = True,
    **settings: Any,
) -> Result:
    """Train an adapter, and save everything about it in a run folder.

    config: settings, or the path of a recipe; settings given by keyword override those of a recipe.
    resume: a run folder to continue, instead of a config. Settings without an effect on the adapter
        may be given with it, and a new length; see lorica.training.resume.
    until: pause after this step, with a checkpoint and an evaluation. The learning rate follows the
        schedule of the whole run; `resume` goes on to its end.

    With split="cloud" nothing is trained here: the base is served until the device's run has ended.

    Raises: ConfigError, DataError, TargetError, BaseError, FileError, ResourceError before
        anything is trained; TrainingError when a watch stops the run; Stopped on a signal.
    """
    config = _read_settings(config, resume, settings)
    if config.split == "cloud":
        serve(config, str(config.peer))
        return Result(Path(), {}, ["the device has ended its run"])
    if resume is None:
        check_base_named(config)
    config, chosen = with_learning_rate(config)
    if not torch.accelerator.is_available():
        return_freed_memory() if config.shard else keep_freed_memory()
    placement = choose_placement(config)
    chosen += shard_notices(config, placement)
    check_alike(placement, settings_of(config))
    if resume is None and restarted(config, placement):
        resume = config.output
    run = Run(Path(resume or config.output), is_writer=placement.is_writer)
    is_new = run.is_writer and resume is None
    with (
        torch.random.fork_rng(),
        ExitStack() as stack,
        progress.reporting(show and run.is_writer),
    ):
        with run.beginning(resolved(config)) if is_new else nullcontext():
            if run.is_writer:
                stack.enter_context(run.lock())
            placement.wait()
            state = build_run(config, load_rows(config), run, placement, show=show, notices=chosen)
            state.until = until
            if is_new:
                run.note_rows(state.data.train.contents)
            if run.is_writer and resume is not None and settings:
                run.rewrite(resolved(config))
        return train_to_end(state)


def _read_settings(
    config: TrainConfig | str | Path | None, resume: str | Path | None, settings: dict[str, Any]
) -> TrainConfig:
    """The settings of a new run, or of one that is resumed. Raises: ConfigError."""
    if resume is None:
        if not isinstance(config, TrainConfig):
            return read(Path(config) if config else None, settings)
        if settings:
            raise ConfigError("pass a TrainConfig, or settings by keyword, not both.")
        return config
    if config is not None:
        raise ConfigError("a resumed run keeps its settings.", fix="pass resume alone")
    saved = Path(resume) / CONFIG
    if not plain_files.is_file(saved):
        raise ConfigError(f"{resume} is no run folder: it has no {CONFIG}.", fix="check it")
    if not settings:
        return read(saved)
    changed = read(saved, settings)
    check_flags(read(saved), changed, Path(resume))
    return changed
