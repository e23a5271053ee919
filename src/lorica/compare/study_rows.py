"""The rows of a study, read before anything is trained: they must fit together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorica.base.file_digests import file_digests
from lorica.base.load import load_tokenizer
from lorica.compare.influence import MIN_ROWS
from lorica.compare.scoring import ScoreSettings, check_can_answer
from lorica.compare.sides import Side
from lorica.compare.study import Study
from lorica.data.config import DataConfig
from lorica.data.dataset import Dataset
from lorica.data.load import Data, load_data
from lorica.errors import BaseError, ConfigError, DataError, counted
from lorica.recipe.settings import Settings, Where
from lorica.training.prepare import load_rows

MAX_SHARED = 0.1
"""Share of the test rows that may be training rows: some rows repeat by nature."""


@dataclass(frozen=True)
class StudyRows:
    """digests: of each set of rows, by name. train: number of training rows."""

    digests: Mapping[str, str]
    train: int
    test: int
    notices: tuple[str, ...]


def check_files(study: Study, settings: Settings) -> None:
    """Raises: ConfigError with file and line of a path that leads nowhere."""
    paths: dict[Where, str | None] = {("test",): study.test, ("before",): study.before}
    paths[("data", "path")] = study.data.path
    if isinstance(study.data.validation, str):
        paths[("data", "validation")] = study.data.validation
    for where, path in paths.items():
        if path is not None and "." in Path(path).name and not Path(path).exists():
            place, name = settings.place(where), ".".join(where)
            raise ConfigError(
                f"{place}: {name} is {path}, and no such file exists.",
                fix="check it; a relative name is looked for beside the study, and then in the "
                f"working directory, {Path.cwd()}",
            )


def read_rows(study: Study, sides: Sequence[Side], settings: ScoreSettings) -> StudyRows:
    """Read every row of a study with the tokenizer of its base, and check them.

    Raises: DataError if there are no rows to choose the rates on or to score, if test rows are
        training rows, or if a measure cannot be taken; what reading rows raises.
    """
    data = load_rows(sides[0].config)
    test = _read(settings.test, study.base, data)
    answers = check_can_answer(settings.measures, test)
    if study.rates is not None and not len(data.validation):
        raise DataError(
            f"{study.data.path} leaves no validation rows, and the rates are searched on them.",
            fix="name a file in data.validation, or set rates to null",
        )
    notices = [*test.notices, *answers]
    if len(test.train) < MIN_ROWS:
        count = counted(len(test.train), "row")
        notices.append(f"{study.test} has {count}, and a verdict needs at least {MIN_ROWS}")
    notices += _shared_rows(test.train, data.train, "training", study.test)
    if study.rates is not None:
        notices += _shared_rows(test.train, data.validation, "validation", study.test)
    digests = {"data": data.digest, "test": test.digest}
    if settings.before is not None:
        digests["before"] = _read(settings.before, study.base, None).digest
    return StudyRows(digests, len(data.train), len(test.train), (*data.notices, *notices))


def check_same_rows(then: Mapping[str, Any], rows: StudyRows, folder: Path) -> None:
    """Raises: DataError if the rows are not those that a resumed study began with."""
    changed = {
        name: f"{then.get(name, 'none')[:12]} -> {digest[:12]}"
        for name, digest in rows.digests.items()
        if then.get(name) != digest
    }
    if changed:
        raise DataError(
            f"the rows are not those that the study in {folder} began with; what is compared must "
            "be trained and scored on the same rows.",
            **changed,
            fix="restore the files, or choose another output",
        )


def check_same_base(then: Mapping[str, str], base: str, folder: Path) -> None:
    """Raises: BaseError if the files of the base are not those that a resumed study began with."""
    now = file_digests(base)
    changed = {
        name: f"{then.get(name, 'none')[:12]} -> {now.get(name, 'none')[:12]}"
        for name in sorted({**then, **now})
        if then.get(name) != now.get(name)
    }
    if changed:
        raise BaseError(
            f"the base {base} is not the one that the study in {folder} began with; what is "
            "compared must be trained on the same base.",
            **changed,
            fix="restore its files, or choose another output",
        )


def _read(config: DataConfig, base: str, data: Data | None) -> Data:
    labels = None if data is None else data.labels
    return load_data(
        config,
        load_tokenizer(base),
        seed=0,
        max_length=config.max_length,
        labels=labels,
        texts=True,
    )


def _shared_rows(test: Dataset, others: Dataset, kind: str, path: str) -> list[str]:
    """A notice on test rows that are also `others`. Raises: DataError if they are many."""
    both = test.select(np.isin(test.contents, others.contents))
    if not len(both):
        return []
    count = f"{len(both):,} of {counted(len(test), 'test row')} are {kind} rows too"
    if len(both) > MAX_SHARED * len(test):
        raise DataError(
            f"{count}: the study would score what the runs have seen.",
            rows=both.places(),
            fix=f"remove them from {path}",
        )
    return [f"{count}, so their scores say little: {both.places()}"]
