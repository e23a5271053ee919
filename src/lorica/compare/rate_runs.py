"""The runs of the rate search: all sides at once, so that they share passes over the base."""

from collections.abc import Iterator

from lorica.compare.search import Choice, Todo, advance, rungs_of
from lorica.compare.sides import Side
from lorica.compare.study_run import StudyRun
from lorica.compare.training_jobs import (
    Job,
    UnitRun,
    group,
    remove_run,
    run_of,
    validation_loss,
)

Known = dict[tuple[float, int], float | None]
"""(learning rate, steps) -> validation loss."""


def search_rates(run: StudyRun) -> bool:
    """Choose the rate of every side, and record it. False: the budget was spent before.

    The search is replayed from its start: what is recorded is not trained again, and the rest is
    trained in the passes in which it would have been trained without interruption.
    """
    known: dict[str, Known] = {side.name: {} for side in run.sides}
    waiting = list(run.sides)
    while waiting:
        todos = {side.name: _next(run, side, known[side.name]) for side in waiting}
        for side in waiting:
            _settle(run, side, todos[side.name], known[side.name])
        waiting = [side for side in waiting if isinstance(todos[side.name], Todo)]
        run.plan_total(sum(_units_left(run, s, todos[s.name], known[s.name]) for s in waiting))
        for job, steps in _jobs(run, waiting, todos):
            if not _train_or_recall(run, job, steps, known):
                return False
    return True


def search_steps(run: StudyRun, side: Side) -> int:
    """The steps of all runs of a side's search, without rates beyond an edge."""
    search = run.study.rates
    alive = 0 if search is None else len(side.rates(search.factors))
    if search is None or alive < 2:
        return 0
    count, before = 0, 0
    for steps in rungs_of(run.steps[side.name], search.rungs):
        count += alive * (steps - before)
        alive, before = (alive + 1) // 2, steps
    return count


def _next(run: StudyRun, side: Side, known: Known) -> Todo | Choice:
    search = run.study.rates
    if search is None:
        return Choice(side.centre)
    return advance(side.rates(search.factors), rungs_of(run.steps[side.name], search.rungs), known)


def _units_left(run: StudyRun, side: Side, todo: Todo | Choice, known: Known) -> int:
    """How many runs of a side's search are left, as far as its losses tell."""
    due = len(todo.rates) if isinstance(todo, Todo) else 0
    return max(run.trials_of(side) - len(known), due)


def _settle(run: StudyRun, side: Side, todo: Todo | Choice, known: Known) -> None:
    """Record a choice, and remove the runs that are not trained on."""
    keep = todo.rates if isinstance(todo, Todo) else ()
    for rate in {rate for rate, _ in known} - set(keep):
        remove_run(run.run_folder("search", side, f"{rate:g}"))
    if isinstance(todo, Choice) and run.records.last("rate", side=side.name) is None:
        record = {"kind": "rate", "side": side.name, "learning_rate": todo.rate}
        run.records.append([{**record, "notices": list(todo.notices)}])


def _jobs(
    run: StudyRun, sides: list[Side], todos: dict[str, Todo | Choice]
) -> Iterator[tuple[Job, int]]:
    """(a job, the steps at its end) for all runs that are due, those of one rung together."""
    search = run.study.rates
    by_rung: dict[tuple[int, int], list[UnitRun]] = {}
    for side in sides:
        todo = todos[side.name]
        if isinstance(todo, Choice) or search is None:
            continue
        runs = by_rung.setdefault((todo.rung, todo.steps), [])
        for rate in todo.rates:
            folder = run.run_folder("search", side, f"{rate:g}")
            runs.append(run_of(side, folder, rate, search.seed, save_steps=run.steps[side.name]))
    for (_, steps), runs in by_rung.items():
        for job in group(runs, steps, run.size):
            yield job, steps


def _train_or_recall(run: StudyRun, job: Job, steps: int, known: dict[str, Known]) -> bool:
    """Add the losses of a job to `known`, in place. False: the budget is spent."""
    keys = [(unit.side, unit.config.learning_rate or 0.0) for unit in job.runs]
    trials = [_trial(run, side, rate, steps) for side, rate in keys]
    before = [max((s for r, s in known[side] if r == rate), default=0) for side, rate in keys]
    expected = sum(
        run.seconds(side, steps - start) for (side, _), start in zip(keys, before, strict=True)
    )
    if all(trial is not None for trial in trials):
        run.clock.training.skip(expected)
        run.count(len(keys))
    else:
        what = f"learning rates, to step {steps}"
        if not run.train(job, what, expected, lambda errors: _trials(job, steps, errors)):
            return False
    for side, rate in keys:
        trial = _trial(run, side, rate, steps)
        assert trial is not None  # it was recorded, or has just been
        known[side][rate, steps] = trial["loss"]
    return True


def _trial(run: StudyRun, side: str, rate: float, steps: int) -> dict | None:
    return run.records.last("trial", side=side, learning_rate=rate, steps=steps)


def _trials(job: Job, steps: int, errors: dict[UnitRun, str]) -> list[dict]:
    """The records of a job's runs after `steps` steps."""
    records = []
    for unit in job.runs:
        error = errors.get(unit)
        loss = None if error else validation_loss(unit.folder, steps)
        record = {"kind": "trial", "side": unit.side, "learning_rate": unit.config.learning_rate}
        records.append({**record, "steps": steps, "loss": loss, "error": error})
    return records
