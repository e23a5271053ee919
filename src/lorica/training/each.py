"""Train several runs over one frozen base in one forward and backward pass: `lorica.train_each`.

Each run has its own rows, method, rates, schedule and folder, and produces the adapter that it
would produce if it were trained alone. They share the base: its memory, and its work in every step.
A run leaves when its steps are done, or when a watch stops it; the others continue.
"""

import shlex
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorica import plain_files
from lorica.base.batching import probe_ids
from lorica.base.packing import packed
from lorica.core.attach import activate, routed
from lorica.core.bank import INSIDE, attached, spec_of
from lorica.core.modes import in_mode
from lorica.core.route import BySegment, Segment
from lorica.core.site import output_head
from lorica.errors import ConfigError, LoricaError, ResourceError, Stopped, TrainingError, listed
from lorica.training.base_model import exact_fingerprint
from lorica.training.build import SharedBase, build_run
from lorica.training.config import TrainConfig, read, resolved
from lorica.training.finish import finish, pause
from lorica.training.freed_memory import keep_freed_memory
from lorica.training.loop import (
    apply_update,
    begin,
    compute_gradients,
    evaluate_and_checkpoint,
)
from lorica.training.placement import placement_for_several
from lorica.training.prepare import check_base_named, load_rows, with_learning_rate
from lorica.training.run import CONFIG, Result, Run
from lorica.training.signals import Signals
from lorica.training.state import RunState
from lorica.training.step import Stepper, stepper_for

SHARED = (
    "base",
    "dtype",
    "quantisation",
    "double_quantisation",
    "unpacked_gib",
    "gradient_checkpointing",
)
"""Settings of the base, which all runs must have in common."""


def train_each(
    configs: Sequence[TrainConfig | str | Path | dict[str, Any]],
    *,
    until: int | None = None,
    show: bool = True,
) -> list[Result]:
    """Train an adapter for each of `configs`, all at once over one base.

    configs: settings, recipes, or run folders to resume. until: as in `train`, for all runs.

    The adapter of a run differs from that of the run alone in the last digits, which B-LoRA's
    coarse grids make larger; and where the base itself has dropout (GPT-2), in what that drops.

    Raises: what `train` raises, before anything is trained; ConfigError if the runs do not share a
        base, or if a method acts on the tokens of all runs. When all others have ended:
        TrainingError if a watch stopped some; Stopped on a signal.
    """
    requests = [_config_of(config) for config in configs]
    _check_alike([config for config, _ in requests])
    for config, is_new in requests:
        if is_new:
            check_base_named(config)
    if not torch.accelerator.is_available():
        keep_freed_memory()
    with torch.random.fork_rng(), ExitStack() as locks:
        states = _build(requests, locks, show=show)
        for state in states:
            state.until = until
        return _train_to_end(states)


def _build(
    requests: Sequence[tuple[TrainConfig, bool]], locks: ExitStack, *, show: bool
) -> list[RunState]:
    """The states of all runs over one base. requests: (settings, the run is new) of each.

    locks: releases the run folders. The folders of new runs are removed if building fails.
    """
    placement = placement_for_several(requests[0][0])
    chosen = [with_learning_rate(config) for config, _ in requests]
    with ExitStack() as beginnings:
        runs = []
        for config, is_new in requests:
            runs.append(run := Run(Path(config.output)))
            if is_new:
                beginnings.enter_context(run.beginning(resolved(config)))
            locks.enter_context(run.lock())
        base = placement.load(chosen[0][0], None)
        shared = SharedBase(base, exact_fingerprint(base, chosen[0][0]))
        states = [
            build_run(
                config,
                load_rows(config),
                run,
                placement,
                show=show,
                notices=notices,
                shared=shared,
                name=f"run_{i}",
            )
            for i, ((config, notices), run) in enumerate(zip(chosen, runs, strict=True))
        ]
        for state in states:
            _check_fits(state)
            state.run.note_rows(state.data.train.contents)
        activate(base.model, *(state.adapter.name for state in states))
    return states


def _config_of(config: TrainConfig | str | Path | dict[str, Any]) -> tuple[TrainConfig, bool]:
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
    """Raises: ConfigError if the runs differ in a setting of the base, or share a folder."""
    if not configs:
        raise ConfigError("no run was named.", fix="name a recipe or a run folder for each")
    for key in SHARED:
        values = list(dict.fromkeys(getattr(config, key) for config in configs))
        if len(values) > 1:
            raise ConfigError(
                f"the runs differ in {key}: {listed(values)}.",
                fix="give all the same, or train them one by one",
            )
    outputs = [str(Path(config.output).resolve()) for config in configs]
    if repeated := sorted({path for path in outputs if outputs.count(path) > 1}):
        raise ConfigError(
            f"several runs have the output {listed(repeated)}.",
            fix="give each run an output of its own",
        )
    if any(config.split for config in configs):
        raise ConfigError("a split run is trained alone.", fix="leave split out")


def _check_fits(state: RunState) -> None:
    """Raises: ConfigError if what a run trains cannot be kept to its own tokens."""
    model, name = state.base.model, state.adapter.name
    spec, alone = spec_of(model, name), "train this run alone, without --each"
    if not state.plan.packed:
        raise ConfigError(
            "runs are trained together in packed batches, and this base needs padded ones.",
            fix=alone,
        )
    whole = spec.targets.modules_to_save or spec.targets.trainable_token_indices
    head = output_head(model)
    own = attached(model, name).sites.values()
    sites = [site.name for site in own if site.module is head or site.kind in INSIDE]
    if whole or sites or not spec.method.mixes or spec.method.replaces_weights:
        raise ConfigError(
            f"{state.run.folder}: what it trains acts on the tokens of all runs.",
            method=spec.method.name,
            trained_whole=listed([*spec.targets.modules_to_save]),
            sites=listed(sites),
            fix=alone,
        )
    try:
        _try_route(model, name)
    except ConfigError as error:
        raise ConfigError(f"{state.run.folder}: {error.what}", fix=alone) from None


@torch.no_grad()
def _try_route(model: nn.Module, name: str) -> None:
    """Raises: ConfigError if an adapted layer receives other tokens than the batch (experts)."""
    foreign: Any = model
    ids = probe_ids(model, 12, 0).unsqueeze(0)
    positions = torch.arange(6, device=ids.device).repeat(2).unsqueeze(0)
    route = BySegment((Segment((name,)), Segment()), (6, 6))
    with packed(model), in_mode(model, training=False), routed(model, route):
        foreign(input_ids=ids, position_ids=positions, row_lengths=[6, 6], use_cache=False)


def _train_to_end(states: Sequence[RunState]) -> list[Result]:
    """Train all runs; each ends with its result, or with the error that ended it."""
    results, errors = dict[RunState, Result](), dict[RunState, LoricaError]()
    try:
        stepper = stepper_for(states)
        with Signals() as signals:
            for state in states:
                begin(state, stepper)
            while going := [s for s in states if s not in results and s not in errors]:
                done = [state for state in going if state.is_done or state.is_paused]
                for state in done:
                    try:
                        results[state] = pause(state) if state.is_paused else finish(state)
                    except LoricaError as error:
                        errors[state] = error
                if active := [state for state in going if state not in done]:
                    errors |= _step(active, stepper, signals)
    finally:
        for state in states:
            state.close()
    if errors:
        raise _error_of_all(errors, len(states))
    return [results[state] for state in states]


def _step(
    states: Sequence[RunState], stepper: Stepper, signals: Signals
) -> dict[RunState, LoricaError]:
    """Take a step of all runs. Returns: the errors of those that it ended."""
    began, errors = time.perf_counter(), dict[RunState, LoricaError]()
    outcomes = compute_gradients(states, stepper, routed=True)
    seconds = time.perf_counter() - began
    for state, outcome in zip(states, outcomes, strict=True):
        try:
            apply_update(state, outcome, seconds)
            evaluate_and_checkpoint(state, signals)
        except LoricaError as error:
            errors[state] = error
    return errors


def _error_of_all(errors: dict[RunState, LoricaError], count: int) -> LoricaError:
    """One error for the runs that ended early, of `count` runs.

    A signal, or a full disk, is none of a single run: it is the error of all, whatever else ended
    some of them.
    """
    facts = {str(state.run.folder): error.what for state, error in errors.items()}
    stopped = [state for state, error in errors.items() if isinstance(error, Stopped)]
    if stopped:
        first, folders = errors[stopped[0]], [str(state.run.folder) for state in stopped]
        return Stopped(
            first.what,
            signal=first.facts.get("signal", 0),
            fix=f"resume with: lorica train --each {shlex.join(folders)}",
            **{folder: what for folder, what in facts.items() if folder not in folders},
        )
    resource = next((e for e in errors.values() if isinstance(e, ResourceError)), None)
    if resource is not None:
        return ResourceError(resource.what, fix=resource.fix, **facts)
    first = next(iter(errors.values()))
    others = "the others are complete" if len(errors) < count else "none is complete"
    return TrainingError(
        f"{len(errors)} of {count} runs ended early; {others}.", fix=first.fix, **facts
    )
