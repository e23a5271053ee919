"""Run a study: the base's scores, the cost of each side, the search of its rate, its final runs.

Each of these is a unit. What has ended is in results.jsonl, and is not run again: a study that was
killed goes on where it was. The order of the units and which runs share a pass follow from the
records alone, so that a resumed study trains what an uninterrupted one would have trained.
"""

import math
import os
import platform
import shlex
import signal
import stat
from pathlib import Path
from typing import Any

from lorica import plain_files, progress
from lorica.base.file_digests import file_digests
from lorica.compare.assemble import write_results
from lorica.compare.clock import Clock, in_words
from lorica.compare.cost import measure_cost, others_running
from lorica.compare.executor_for import executor_for
from lorica.compare.final_runs import run_finals
from lorica.compare.rate_runs import search_rates, search_steps
from lorica.compare.ray_executor import check_ray
from lorica.compare.records import RECORDS, RUNS, Records, check_study_folder, locked
from lorica.compare.results import StudyResult
from lorica.compare.scoring import score_base, score_settings
from lorica.compare.sides import Side, expand
from lorica.compare.study import STUDY, Study, check_unchanged, plain_study, resolved
from lorica.compare.study_rows import check_files, check_same_base, check_same_rows, read_rows
from lorica.compare.study_run import StudyRun
from lorica.compare.training_jobs import MAX_RUNS
from lorica.errors import (
    BaseError,
    ConfigError,
    DataError,
    FileError,
    ResourceError,
    Stopped,
    counted,
    listed,
    writing,
)
from lorica.formats import commit
from lorica.recipe.settings import Settings
from lorica.recipe.versions import versions
from lorica.recipe.yaml_file import read_yaml
from lorica.training.placement import choose_placement
from lorica.training.resume import machine

BUSY = 0.5
"""Threads of other programs, from which on times are not to be trusted."""
WORKER_GAIN = 0.75
"""How much faster a worker more makes a study: costs are measured alone, with all cores. Of
benchmarks/compare.py, where two made it 1.5 to 1.8 times as fast."""
MAX_STEPS = 10**7
"""Of a run: more are a typing error."""


def prepare(
    study: Study, settings: Settings, folder: Path, *, clock: Clock | None = None
) -> StudyRun:
    """Check a study and its rows, and plan its units. Writes nothing, and trains nothing.

    settings: with the places of the study's settings, for the messages. folder: its output, which
    may hold a part of it. Raises: what `run_study` raises before the first unit.
    """
    _check_place(folder)
    records = Records(folder)
    start = records.last("start")
    if start is not None:
        check_study_folder(folder)
        for now in (plain_study(study), read_yaml(folder / STUDY).data):
            check_unchanged(start["settings"], now, folder)
    check_files(study, settings)
    sides = expand(study, settings)
    if start is not None:
        check_same_base(start["base"], study.base, folder)
    scoring = score_settings(study, sides[0].config.data.max_length)
    rows = read_rows(study, sides, scoring)
    if start is not None:
        check_same_rows(start["digests"], rows, folder)
    steps = {side.name: _steps(side, rows.train) for side in sides}
    run = StudyRun(study, sides, rows, scoring, folder, records, clock or Clock(), steps, MAX_RUNS)
    run.total = 1 + len(sides) * (1 + len(study.seeds)) + sum(map(run.trials_of, sides))
    return run


def run_study(
    study: Study,
    settings: Settings,
    folder: Path,
    *,
    resume: bool = False,
    clock: Clock | None = None,
    workers: int | None = None,
    ray: str | None = None,
) -> StudyResult:
    """Run a study into `folder`, or go on with it, and write results.json.

    clock: with the budget. workers: processes that train; None: as many as the processor has cores
    and memory for. ray: address of a cluster that trains in their place. A run that diverges or
    cannot be trained is a result; it ends nothing.

    Raises: ConfigError, DataError, BaseError before anything is trained; ResourceError (the disk is
        full, another process works there); Stopped on a signal.
    """
    _check_place(folder)
    _check_output(folder, resume)
    run = prepare(study, settings, folder, clock=clock)
    if ray is not None:
        check_ray(ray)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        commit.sweep(folder)
        commit.sweep(folder / RUNS)
        _begin(run)
        try:
            _measure_costs(run)
            _score_base(run)
            with executor_for(run, workers, ray) as run.executor:
                _announce_time(run)
                if search_rates(run):
                    run_finals(run)
        except (Stopped, KeyboardInterrupt, SystemExit) as stop:
            number = _signal_of(stop)
            raise Stopped(
                f"the study was stopped in unit {run.done + 1} of {run.total}; everything that "
                "has ended is saved.",
                signal=int(number),
                fix=f"go on with: lorica compare --output {shlex.quote(str(folder))} --resume",
            ) from None
        return write_results(folder)


def _signal_of(stop: BaseException) -> int:
    """The number of the signal that stopped a study; a command turns SIGTERM into SystemExit."""
    match stop:
        case Stopped():
            return int(str(stop.facts["signal"]))
        case SystemExit():
            return signal.SIGTERM
    return signal.SIGINT


def _check_output(folder: Path, resume: bool) -> None:
    """Raises: ConfigError if the folder has a study and `resume` is not asked for, or else."""
    has_study = plain_files.is_file(folder / RECORDS) or plain_files.is_file(folder / STUDY)
    if resume and not has_study:
        raise FileError(f"{folder} has no study to resume.", fix="leave --resume out")
    if not resume and folder.is_dir() and any(folder.iterdir()):
        fix = "add --resume to go on with it, or {}" if has_study else "{}"
        raise ConfigError(
            f"{folder} exists, and is not overwritten.",
            fix=fix.format("choose another --output"),
        )


def _check_place(folder: Path) -> None:
    """Raises: ConfigError or ResourceError if `folder` neither is a folder nor can be made one."""
    place, mode = folder, None
    while mode is None:
        try:
            mode = place.lstat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            place = place.parent
        except (OSError, ValueError) as error:  # a name too long, or with a NUL in it
            raise ResourceError(
                f"{folder!s:.200} cannot be an output: {error}.", fix="choose another --output"
            ) from None
    if not place.is_dir():
        kind = "a link that leads nowhere" if stat.S_ISLNK(mode) else "a file"
        raise ConfigError(
            f"{folder} cannot be a folder: {place} is {kind}.", fix="choose another --output"
        )
    if not os.access(place, os.W_OK | os.X_OK):
        raise ResourceError(
            f"cannot write {folder}: {place} is not writable.",
            fix="choose a folder that you may write to",
        )


def _begin(run: StudyRun) -> None:
    """Write the settings and the first records; of a resumed study, what is another now."""
    config = run.sides[0].config
    facts = machine(choose_placement(config).device)
    threads = f", {facts['threads']} threads" if "threads" in facts else ""
    start: dict[str, Any] = {
        "versions": versions(),
        "machine": f"{facts['device']}{threads}, {platform.system()} {platform.machine()}",
    }
    before, new = run.records.last("start"), list[dict[str, Any]]()
    if before is None:
        facts = {
            "name": run.folder.name,
            "settings": plain_study(run.study),
            "digests": dict(run.rows.digests),
            "base": file_digests(run.study.base),
            "notices": list(run.rows.notices),
        }
        commit.write_text(run.folder / STUDY, resolved(run.study))
        new.append({"kind": "start", **facts, **start})
    elif other := {k: v for k, v in start.items() if before.get(k) != v}:
        notice = f"a part was run with {listed(other.values())}, which may round sums differently"
        new.append({**before, **start, "notices": [notice]})
    for side in run.sides:
        if run.records.last("side", name=side.name) is None:
            facts = {"method": side.method, "rank": side.rank, "settings": side.settings()}
            new.append({"kind": "side", "name": side.name, **facts})
    if new:
        run.records.append(new)


def _steps(side: Side, rows: int) -> int:
    """The steps of a run of a side. Raises: ConfigError if they are more than MAX_STEPS."""
    config = side.config
    per_step = config.micro_batch_size * config.gradient_accumulation_steps
    steps = config.max_steps or (config.epochs or 1) * rows / per_step
    if steps > MAX_STEPS:
        key = "max_steps" if config.max_steps else "epochs"
        raise ConfigError(
            f"{side.name} has {key} {getattr(config, key):.4g}, and a run of a study has at most "
            f"{MAX_STEPS:,} steps.",
            fix=f"give it fewer {key}",
        )
    return math.ceil(steps)


def _score_base(run: StudyRun) -> None:
    if run.records.last("base") is None:
        began, config = run.clock.now(), run.sides[0].config
        try:
            with progress.reporting(False):
                record = score_base(run.study.base, config.dtype, run.scoring)
        except (BaseError, DataError) as error:  # rows with classes: the base has no head for them
            record = {"scores": {}, "error": error.summary}
        spent = {"kind": "spent", "sides": [], "seconds": run.clock.now() - began}
        run.records.append([{"kind": "base", **record}, spent])
    run.count(1)


def _measure_costs(run: StudyRun) -> None:
    """A short run of each side alone; it is also the first timing."""
    missing = [side for side in run.sides if run.records.last("cost", side=side.name) is None]
    if missing and (others := others_running()) >= BUSY:
        notice = (
            f"{others:.1f} threads of other programs were running as times were measured: times "
            "may be many times too long, and differ by chance"
        )
        progress.announce(f"note: {notice}")
        run.records.append([{**(run.records.last("start") or {}), "notices": [notice]}])
    for side in run.sides:
        if run.records.last("cost", side=side.name) is None:
            if run.clock.is_over:
                return
            cost = measure_cost(side, run.folder / RUNS)
            run.records.append([{"kind": "cost", "side": side.name, **cost}])
            step = cost.get("seconds_per_step")
            words = cost["error"] if step is None else f"{1e3 * step:,.0f} ms a step"
            run.count(1)
            run.announce(f"time and memory: {side.name}: {words}")
        else:
            run.count(1)


def _announce_time(run: StudyRun) -> None:
    """Say what the study takes, and what of it fits into the budget."""
    search = sum(run.seconds(side.name, search_steps(run, side)) for side in run.sides)
    each = sum(run.seconds(side.name, run.steps[side.name]) for side in run.sides)
    count = len(run.sides) * len(run.study.seeds)
    scoring = count * run.scoring_seconds
    run.clock.training.expected = search + each * len(run.study.seeds)
    run.clock.scoring.expected = scoring
    gain = max(1.0, WORKER_GAIN * run.executor.size)
    search, scoring = search / gain, scoring / gain
    finals = each * len(run.study.seeds) / gain + scoring
    by_workers = f" with {run.executor.size} workers" if run.executor.size > 1 else ""
    progress.announce(
        f"about {in_words(search + finals)}{by_workers}: {in_words(search)} for the rates, "
        f"{in_words(finals)} for {counted(count, 'final run')}, {in_words(scoring)} of it to score "
        "them"
    )
    budget = run.clock.budget
    if budget is not None and search + finals > budget:
        fits = max(budget - search, 0) / finals if finals else 0
        progress.announce(
            f"the budget of {in_words(budget)} ends before that: about {fits:.0%} of the final "
            "runs fit; the report says what is missing, and --resume goes on"
        )
