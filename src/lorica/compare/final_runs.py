"""The final runs: each side with each seed at its chosen rate, scored once on the test rows."""

from lorica.compare.study_run import DueJob, StudyRun
from lorica.compare.training_jobs import (
    FinalScoring,
    Job,
    UnitRun,
    remove_checkpoints,
    remove_run,
    run_of,
)
from lorica.training.run import RESULTS


def run_finals(run: StudyRun) -> bool:
    """Train and score what is not recorded yet. False: the budget was spent before the last.

    The runs are in the order of their seeds, so that a study that is cut has pairs.
    """
    before = (run.records.last("base") or {}).get("before_scores")
    scoring = FinalScoring(run.scoring, None if before is None else before["value"])
    due: list[DueJob] = []
    for job in run.jobs(_units(run), None, scoring):
        expected = sum(run.seconds(unit.side, run.steps[unit.side]) for unit in job.runs)
        recording = run.scoring_seconds * len(job.runs)
        if all(run.records.last("final", side=u.side, seed=u.config.seed) for u in job.runs):
            run.clock.training.skip(expected)
            run.clock.scoring.skip(recording)
            run.count(len(job.runs))
            _remove_what_is_not_kept(job)
        else:
            due.append(DueJob(job, "final runs", expected, recording))
    ended = 0
    for job in run.train(due):
        _remove_what_is_not_kept(job)
        ended += 1
    return ended == len(due)


def _units(run: StudyRun) -> list[UnitRun]:
    """The runs of all sides that have a rate; that it has none is recorded of the others."""
    units: list[UnitRun] = []
    for seed in run.study.seeds:
        for side in run.sides:
            rate = run.records.last("rate", side=side.name)
            if rate is None:  # the budget was spent
                continue
            if rate["learning_rate"] is None:
                _record_without_rate(run, side.name, seed, rate["notices"])
                continue
            folder = run.run_folder("final", side, f"seed-{seed}")
            units.append(run_of(side, folder, rate["learning_rate"], seed, run.steps[side.name]))
    return units


def _record_without_rate(run: StudyRun, side: str, seed: int, why: list[str]) -> None:
    """Record a final run that cannot be made, because no rate could be chosen."""
    if run.records.last("final", side=side, seed=seed) is None:
        record = {"kind": "final", "side": side, "seed": seed, "learning_rate": 0.0}
        run.records.append([{**record, "error": "; ".join(why)}])
    run.count(1)


def _remove_what_is_not_kept(job: Job) -> None:
    """Of runs that have ended their checkpoints, of those that have not everything."""
    for unit in job.runs:
        if (unit.folder / RESULTS).exists():
            remove_checkpoints(unit.folder)
        else:
            remove_run(unit.folder)
