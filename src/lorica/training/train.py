"""Begin a run, or go on with one: `lorica.train`."""

from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

from lorica import plain_files, progress
from lorica.errors import ConfigError
from lorica.training.config import TrainConfig, read, resolved
from lorica.training.heap import keep
from lorica.training.loop import Trainer
from lorica.training.prepare import check_base_named, load_rows, with_learning_rate
from lorica.training.resume import check_flags
from lorica.training.run import CONFIG, Result, Run
from lorica.training.split.cloud import serve


def train(
    config: TrainConfig | str | Path | None = None,
    *,
    resume: str | Path | None = None,
    show: bool = True,
    **settings: Any,
) -> Result:
    """Train an adapter, and keep everything about it in a run folder.

    config: settings, or the path of a recipe; settings given by keyword stand over a recipe's.
    resume: a run folder to go on with, instead of a config. Of its settings those may be given
        that cannot reach the adapter, and a new length; see lorica.training.resume.

    With split="cloud" no run is made here: the base is served until the device's run has ended.

    Raises: ConfigError, DataError, TargetError, BaseError, FileError, ResourceError before
        anything is trained; TrainingError when a watch stops the run; Stopped on a signal.
    """
    if resume is not None:
        if config is not None:
            raise ConfigError("a resumed run keeps its settings.", fix="pass resume alone")
        if not plain_files.is_file(Path(resume) / CONFIG):
            raise ConfigError(f"{resume} is no run folder: it has no {CONFIG}.", fix="check it")
        config = read(Path(resume) / CONFIG)
        if settings:
            changed = read(Path(resume) / CONFIG, settings)
            check_flags(config, changed, Path(resume))
            config = changed
    elif not isinstance(config, TrainConfig):
        config = read(Path(config) if config else None, settings)
    elif settings:
        raise ConfigError("pass a TrainConfig, or settings by keyword, not both.")
    if config.split == "cloud":
        serve(config, str(config.peer))
        return Result(Path(), {}, ["the device has ended its run"])
    if resume is None:
        check_base_named(config)
    config, chosen = with_learning_rate(config)
    run = Run(Path(resume or config.output))
    on_cpu = not torch.accelerator.is_available()
    if on_cpu:
        keep()
    accelerator = Accelerator(
        cpu=on_cpu,
        # A method may freeze tensors, or find no use for them in a step.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    main = accelerator.is_main_process
    with torch.random.fork_rng(), ExitStack() as stack, progress.reporting(show and main):
        new = main and resume is None
        with run.beginning(resolved(config)) if new else nullcontext():
            if main:
                stack.enter_context(run.lock())
            accelerator.wait_for_everyone()
            trainer = Trainer(
                config, load_rows(config), run, accelerator, show=show, notices=chosen
            )
            if main and resume is None:
                run.note_rows(trainer.data.train.contents)
            if main and resume is not None and settings:
                run.rewrite(resolved(config))
        return trainer.run_to_end()
