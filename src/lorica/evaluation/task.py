"""The interface of a task score; each is one file in lorica.evaluation.tasks.

A task compares the texts that a model wrote with the references of the rows. A new one is a new
file there: `lorica eval --task` and studies find it by its name.

Letters: R rows, K sufficient statistics of a row.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from lorica.data.rendered_row import RenderedRow
from lorica.errors import DataError, counted, listed
from lorica.registry import Named

Floats = NDArray[np.float64]
Better = Literal["lower", "higher"]
Unit = Literal["share", "score"]


@dataclass(frozen=True)
class TaskScores:
    """The scores of one model.

    value: over all rows: the mean of `rows` weighted by `weights` (None: rows count alike), or what
        the task's `combine` gives for the sum of `statistics`, if there are some.
    rows: (R,) the score of each row; bool where a row is right or wrong.
    statistics: (R, K) of a task whose value is no mean over rows, such as BLEU.
    """

    value: float
    better: Better
    rows: NDArray[np.float64] | NDArray[np.bool_]
    weights: Floats | None = None
    statistics: Floats | None = None
    notices: list[str] = field(default_factory=list)


class Task(Named, family="lorica.evaluation.tasks"):
    """Scores texts against references.

    unit: "share": from 0 to 1, printed in percent; "score": as the library defines it.
    needs: what a reference must have to be scored; empty where every text can be.
    unread: which answers count as wrong because they lack it, behind the word "answers".
    """

    better: ClassVar[Better] = "higher"
    unit: ClassVar[Unit] = "share"
    needs: ClassVar[str] = ""
    unread: ClassVar[str] = ""

    def can_score(self, reference: str) -> bool:
        """Whether an answer can be compared with this reference."""
        return True

    def score(self, answers: Sequence[str], references: Sequence[Sequence[str]]) -> TaskScores:
        """The scores of the answers. references: of each answer, at least one that can be scored.

        An answer that cannot be read counts as wrong, and a notice counts it.
        """
        raise NotImplementedError

    def combine(self, totals: Floats) -> Floats:
        """The task's value for each sum of statistics: (..., K) to (...)."""
        raise NotImplementedError

    def means(self, rows: Sequence[float] | Sequence[bool], unread: int = 0) -> TaskScores:
        """The scores of a task whose value is the mean over rows. unread: how many answers."""
        scores, notices = np.asarray(rows), self.unread_notices(unread, len(rows))
        return TaskScores(float(scores.mean()), self.better, scores, notices=notices)

    def unread_notices(self, unread: int, count: int) -> list[str]:
        """A notice on answers that count as wrong because they cannot be read."""
        if not unread:
            return []
        return [f"answers {self.unread} count as wrong: {unread:,} of {count:,}"]


def tasks_named(names: str | Iterable[str]) -> dict[str, Task]:
    """The tasks by name, each once, in the order of the names. names: with or without commas.

    Raises: ConfigError for an unknown name; MissingError if a package of the extra is missing.
    """
    words = ",".join([names] if isinstance(names, str) else names).split(",")
    return {name: Task.named(name)() for word in words if (name := word.strip())}


def check_references(tasks: Mapping[str, Task], rows: Sequence[RenderedRow]) -> list[str]:
    """Check that the references of the rows are what the tasks need, before a model answers.

    Returns: notices on rows that a task leaves out.
    Raises: DataError if there are tasks and no rows, or a task can score none; it names the first.
    """
    if tasks and not rows:
        raise DataError(
            f"no row has a prompt and an answer, which {listed(tasks, 9)} would compare.",
            fix="give rows with prompts and answers, or measure the loss alone, without tasks",
        )
    notices = []
    for name, task in tasks.items():
        wrong = [row for row in rows if not can_score(task, row)]
        if wrong and len(wrong) == len(rows):
            raise DataError(
                f"task {name}: none of the references of {counted(len(rows), 'row')} has "
                f"{task.needs}.",
                first=f"{wrong[0].where}: {_brief(wrong[0].reference)}",
                fix=f"give rows whose answers have {task.needs}, or name another task",
            )
        if wrong:
            notices.append(
                f"{name} leaves out {counted(len(wrong), 'row')} whose reference lacks "
                f"{task.needs}: {listed(row.where for row in wrong)}"
            )
    return notices


def can_score(task: Task, row: RenderedRow) -> bool:
    """Whether the row has a reference that the task can use."""
    return any(task.can_score(text) for text in (row.reference, *row.references))


def _brief(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 60 else f"{line[:57]}...")
