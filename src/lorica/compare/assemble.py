"""From the records of a study to its result: the same folder always gives the same result."""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lorica.compare.records import Records, check_study_folder
from lorica.compare.results import (
    Cost,
    Final,
    MeasureScores,
    SideResult,
    StudyResult,
    Trial,
)
from lorica.compare.study_tables import BEFORE
from lorica.errors import FileError, listed
from lorica.formats import commit
from lorica.recipe.yaml_file import to_yaml

RESULTS = "results.json"


def study_result(folder: Path) -> StudyResult:
    """The result of the study in `folder`, also of one that is not complete.

    Raises: FileError if it holds no study, or its records are damaged.
    """
    check_study_folder(folder)
    records = Records(folder)
    start, base = records.last("start"), records.last("base")
    if start is None:
        raise FileError(
            f"{records.path} has no records: the study ended before its first unit.",
            fix=f"go on with: lorica compare --output {shlex.quote(str(folder))} --resume",
        )
    study = start["settings"]
    sides = [_side(records, facts) for facts in _sides(records)]
    return StudyResult(
        name=start["name"],
        study=study,
        goal=study.get("goal", "loss"),
        reference=study.get("reference") or (sides[0].name if sides else ""),
        sides=sides,
        base={} if base is None else _base(base),
        versions=start["versions"],
        machine=start["machine"],
        notices=[*_notices(records, sides)],
        missing=[*_missing(records, sides, study)],
    )


def write_results(folder: Path) -> StudyResult:
    """Write results.json: the study's result as plain data. Returns: the result."""
    result = study_result(folder)
    commit.write_json(folder / RESULTS, asdict(result))
    return result


def _sides(records: Records) -> list[dict[str, Any]]:
    """The newest record of each side, in the order of the study."""
    return list({record["name"]: record for record in records.of("side")}.values())


def _side(records: Records, facts: Mapping[str, Any]) -> SideResult:
    name = facts["name"]
    trials = {(t["learning_rate"], t["steps"]): t for t in records.of("trial", side=name)}
    finals = {f["seed"]: f for f in records.of("final", side=name)}
    rate, cost = records.last("rate", side=name), records.last("cost", side=name)
    rate = None if rate is None else rate["learning_rate"]
    chosen = {} if rate is None else {"learning_rate": rate}
    return SideResult(
        name=name,
        method=facts["method"],
        rank=facts["rank"],
        recipe=to_yaml({**facts["settings"], **chosen}),
        trials=[Trial(*key, trials[key]["loss"]) for key in sorted(trials)],
        finals=[_final(finals[seed]) for seed in sorted(finals)],
        cost=_cost(cost, [finals[seed] for seed in sorted(finals)]),
    )


def _final(record: Mapping[str, Any]) -> Final:
    before = record.get("before_scores")
    return Final(
        seed=record["seed"],
        learning_rate=record["learning_rate"],
        scores=_scores(record.get("scores", {})),
        curve=[(int(step), loss) for step, loss in record.get("curve", ())],
        validation=[(int(step), loss) for step, loss in record.get("validation", ())],
        before_scores=None if before is None else MeasureScores(**before),
        forgotten=record.get("forgotten"),
        samples=[(prompt, wanted, text) for prompt, wanted, text in record.get("samples", ())],
        ranks=record.get("ranks", {}),
        notices=record.get("notices", ()),
        error=record.get("error"),
    )


def _base(record: Mapping[str, Any]) -> dict[str, MeasureScores]:
    """The scores of the base, those on the "before" rows among them."""
    before = record.get("before_scores")
    return _scores(record["scores"] | ({} if before is None else {BEFORE: before}))


def _scores(scores: Mapping[str, Any]) -> dict[str, MeasureScores]:
    return {name: MeasureScores(**values) for name, values in scores.items()}


def _cost(cost: Mapping[str, Any] | None, finals: list[dict[str, Any]]) -> Cost | None:
    """Time and memory as measured; sizes as those of a final run. None: not measured."""
    sizes = next((final["sizes"] for final in finals if final.get("sizes")), None)
    if cost is None or cost.get("error") or sizes is None:
        return None
    return Cost(
        seconds_per_step=cost["seconds_per_step"],
        tokens_per_second=cost["tokens_per_second"],
        peak_memory_bytes=cost["peak_memory_bytes"],
        adapter_bytes=sizes["adapter_bytes"],
        trained_parameters=sizes["trained"],
        total_parameters=sizes["total"],
    )


def _notices(records: Records, sides: list[SideResult]) -> Iterator[str]:
    """Notices on the rows, the machine and the learning rates."""
    for record in records.of("start"):
        yield from record["notices"]
    for side in sides:
        for notice in (records.last("rate", side=side.name) or {}).get("notices", ()):
            yield f"{side.name}: {notice}"


def _missing(records: Records, sides: list[SideResult], study: Mapping[str, Any]) -> list[str]:
    """The units that were not run, in words."""
    lines = []
    for side in sides:
        name = side.name
        if study.get("rates") is not None and not records.of("rate", side=name):
            lines.append(f"{name}: its learning rate was not chosen, and no final run was made")
            continue
        done = {final.seed for final in side.finals}
        if seeds := [seed for seed in study["seeds"] if seed not in done]:
            count = f"{len(seeds)} of {len(study['seeds'])} final runs are missing"
            lines.append(f"{name}: {count} (seeds {listed(seeds, 8)})")
        if not records.of("cost", side=name):
            lines.append(f"{name}: its time and memory were not measured")
    return lines
