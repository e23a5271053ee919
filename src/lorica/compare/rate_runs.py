"""The runs of the rate search: all sides at once, so that they share passes over the base."""

from collections.abc import Iterator

from lorica.compare.search import Choice, Todo, advance, rungs_of
from lorica.compare.sides import Side
from lorica.compare.study_run import DueJob, StudyRun
from lorica.compare.training_jobs import (
    Job,
    UnitRun,
    remove_run,
    run_of,
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
        due: list[DueJob] = []
        for job, steps in _jobs(run, waiting, todos):
            expected = _expected(run, job, steps, known)
            if _recall(run, job, steps, known):
                run.clock.training.skip(expected)
                run.count(len(job.runs))
            else:
                due.append(DueJob(job, f"learning rates, to step {steps}", expected))
        ended = list(run.train(due))
        for job in ended:
            _recall(run, job, job.until or 0, known)
        if len(ended) < len(due):
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
        for job in run.jobs(runs, steps):
            yield job, steps


def _recall(run: StudyRun, job: Job, steps: int, known: dict[str, Known]) -> bool:
    """Add the losses of a job to `known`, in place. False: they are not recorded yet."""
    keys = [(unit.side, unit.config.learning_rate or 0.0) for unit in job.runs]
    trials = {key: _trial(run, *key, steps) for key in keys}
    for (side, rate), trial in trials.items():
        if trial is not None:
            known[side][rate, steps] = trial["loss"]
    return None not in trials.values()


def _expected(run: StudyRun, job: Job, steps: int, known: dict[str, Known]) -> float:
    """Seconds that a job takes from the rung before it."""
    seconds = 0.0
    for unit in job.runs:
        rate = unit.config.learning_rate
        before = max((s for r, s in known[unit.side] if r == rate and s < steps), default=0)
        seconds += run.seconds(unit.side, steps - before)
    return seconds


def _trial(run: StudyRun, side: str, rate: float, steps: int) -> dict | None:
    return run.records.last("trial", side=side, learning_rate=rate, steps=steps)
