"""Several runs over one frozen base, in one forward and backward pass: `lorica.train_each`.

Each has its own rows, method, rates, schedule and run folder, and comes to what it comes to alone;
what they share is the base: its memory, and the work that every step has with it. A run whose
steps are done leaves; one that a watch stops does too, and the others go on.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from lorica import plain_files
from lorica.base.batching import probe_ids
from lorica.base.packing import packed
from lorica.core.attach import activate, routed
from lorica.core.modes import in_mode
from lorica.core.port import INSIDE, ports, spec_of
from lorica.core.route import BySegment, Segment
from lorica.core.site import output_head
from lorica.errors import ConfigError, LoricaError, Stopped, TrainingError, listed
from lorica.training.config import TrainConfig, read, resolved
from lorica.training.heap import keep
from lorica.training.loop import Trainer
from lorica.training.prepare import (
    base_for,
    check_base_named,
    identity_of,
    load_rows,
    with_learning_rate,
)
from lorica.training.run import CONFIG, Result, Run
from lorica.training.signals import Signals
from lorica.training.step import Stepper
from lorica.training.together import step_of, stepper_for

SHARED = (
    "base",
    "dtype",
    "quantisation",
    "double_quantisation",
    "unpacked_gib",
    "gradient_checkpointing",
)
"""Settings that are the base's, so that all runs have them alike."""


def train_each(
    configs: Sequence[TrainConfig | str | Path | dict[str, Any]], *, show: bool = True
) -> list[Result]:
    """Train an adapter for each of `configs`, all at once over one base.

    configs: settings, recipes, or run folders to go on with.

    What a run comes to differs from the run alone in the last digits, which B-LoRA's coarse grids
    make larger; and where the base itself has dropout (GPT-2), in what that drops.

    Raises: what `train` raises, before anything is trained; ConfigError if the runs have not one
        base, or if a method's tokens cannot be told apart in a line. When all others have ended:
        TrainingError if a watch stopped some; Stopped on a signal.
    """
    asked = [_asked(config) for config in configs]
    _check_alike([config for config, _ in asked])
    for config, new in asked:
        if new:
            check_base_named(config)
    runs = [(*with_learning_rate(config), new) for config, new in asked]
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    if accelerator.num_processes > 1:
        raise ConfigError("several runs are trained at once by one process, not by several.")
    if accelerator.device.type == "cpu":
        keep()
    with torch.random.fork_rng(), ExitStack() as locks:
        with ExitStack() as begun:
            places = []
            for config, _, new in runs:
                places.append(run := Run(Path(config.output)))
                if new:
                    begun.enter_context(run.beginning(resolved(config)))
                locks.enter_context(run.lock())
            base, _ = base_for(runs[0][0], None)
            identity = identity_of(base, runs[0][0])
            trainers = [
                Trainer(
                    config,
                    load_rows(config),
                    run,
                    accelerator,
                    show=show,
                    base=base,
                    name=f"run_{i}",
                    notices=notices,
                    identity=identity,
                )
                for i, ((config, notices, _), run) in enumerate(zip(runs, places, strict=True))
            ]
            for trainer in trainers:
                _check_fits(trainer)
                trainer.run.note_rows(trainer.data.train.contents)
            activate(base.model, *(trainer.name for trainer in trainers))
        return _run_to_end(trainers)


def _asked(config: TrainConfig | str | Path | dict[str, Any]) -> tuple[TrainConfig, bool]:
    """The settings of a run, and whether it is a new one."""
    if isinstance(config, TrainConfig):
        return config, True
    if isinstance(config, dict):
        return read(None, config), True
    folder = Path(config)
    if not folder.is_dir():
        return read(folder), True
    if not plain_files.is_file(folder / CONFIG):
        raise ConfigError(f"{folder} is no run folder: it has no {CONFIG}.", fix="check it")
    return read(folder / CONFIG).model_copy(update={"output": str(folder)}), False


def _check_alike(configs: Sequence[TrainConfig]) -> None:
    if not configs:
        raise ConfigError("no run was named.", fix="name a recipe or a run folder for each")
    for key in SHARED:
        found = list(dict.fromkeys(getattr(config, key) for config in configs))
        if len(found) > 1:
            raise ConfigError(
                f"the runs differ in {key}: {listed(found)}.",
                fix="give all the same, or train them one by one",
            )
    outputs = [str(Path(config.output).resolve()) for config in configs]
    if twice := sorted({path for path in outputs if outputs.count(path) > 1}):
        raise ConfigError(
            f"several runs have the output {listed(twice)}.", fix="give each one of its own"
        )
    if any(config.split for config in configs):
        raise ConfigError("a split run is trained alone.", fix="leave split out")


def _check_fits(trainer: Trainer) -> None:
    """Raises: ConfigError if what a run trains cannot be kept to its own tokens."""
    model, where = trainer.base.model, trainer.run.folder
    spec, apart = spec_of(model, trainer.name), "train it alone"
    if not trainer.packed:
        raise ConfigError(
            "runs are trained at once in rows that lie end to end, and this base "
            "needs padded ones.",
            fix=apart,
        )
    whole = spec.targets.modules_to_save or spec.targets.trainable_token_indices
    head = output_head(model)
    sites = [
        name
        for name, module, port in ports(model)
        if trainer.name in port and (module is head or port.kind in INSIDE)
    ]
    if whole or sites or not spec.method.mixes or spec.method.stands_in:
        raise ConfigError(
            f"{where}: what it trains acts on the tokens of all runs.",
            method=spec.method.name,
            trained_whole=listed([*spec.targets.modules_to_save]),
            sites=listed(sites),
            fix=apart,
        )
    try:
        _try_route(model, trainer.name)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.what}", fix=apart) from None


@torch.no_grad()
def _try_route(model: nn.Module, name: str) -> None:
    """Raises: ConfigError if an adapted layer receives other tokens than the batch (experts)."""
    foreign: Any = model
    ids = probe_ids(model, 12, 0).unsqueeze(0)
    positions = torch.arange(6, device=ids.device).repeat(2).unsqueeze(0)
    route = BySegment((Segment((name,)), Segment()), (6, 6))
    with packed(model), in_mode(model, training=False), routed(model, route):
        foreign(input_ids=ids, position_ids=positions, row_lengths=[6, 6], use_cache=False)


def _run_to_end(trainers: Sequence[Trainer]) -> list[Result]:
    stepper, ended = stepper_for(trainers), dict[Trainer, Result | LoricaError]()
    try:
        with Signals() as signals:
            for trainer in trainers:
                trainer.signals = signals
                trainer.begin()
            while len(ended) < len(trainers):
                ended |= {t: _finished(t) for t in trainers if t not in ended and not t.goes_on}
                if going := [t for t in trainers if t not in ended]:
                    ended |= _stepped(going, stepper)
    finally:
        for trainer in trainers:
            trainer.close()
    early = {t: e for t, e in ended.items() if isinstance(e, LoricaError)}
    if early:
        raise _early(early, len(trainers))
    return [one for trainer in trainers if isinstance(one := ended[trainer], Result)]


def _stepped(going: Sequence[Trainer], stepper: Stepper) -> dict[Trainer, LoricaError]:
    """A step of all runs. Returns: those that it ended early, and why; the others go on."""
    began, early = time.perf_counter(), dict[Trainer, LoricaError]()
    outcomes = step_of(going, stepper)
    spent = time.perf_counter() - began
    for trainer, done in zip(going, outcomes, strict=True):
        try:
            trainer.take(done, spent)
            trainer.look()
        except LoricaError as error:
            early[trainer] = error
    return early


def _finished(trainer: Trainer) -> Result | LoricaError:
    try:
        return trainer.finish()
    except LoricaError as error:
        return error


def _early(ended: dict[Trainer, LoricaError], count: int) -> LoricaError:
    folders = " ".join(str(trainer.run.folder) for trainer in ended)
    first = next(iter(ended.values()))
    if all(isinstance(error, Stopped) for error in ended.values()):
        return Stopped(
            first.what,
            signal=first.facts.get("signal", 0),
            fix=f"go on with: lorica train --each {folders}",
        )
    facts = {str(trainer.run.folder): error.what for trainer, error in ended.items()}
    others = "all that are not named here are whole" if len(ended) < count else "none is whole"
    return TrainingError(
        f"{len(ended)} of {count} runs ended early; {others}.", fix=first.fix, **facts
    )
