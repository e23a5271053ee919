"""`lorica check`: report on the rows that a training would use, before it starts.

The report takes the same steps as `load_data`. An error that would stop a training is listed
under `problems` instead.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorica.data.answers import Answers, check_answers
from lorica.data.config import DataConfig
from lorica.data.dataset import Dataset
from lorica.data.example import Example
from lorica.data.load import TokenisedFiles, build_data, notices_of, tokenise_files
from lorica.data.overlong import limit_of, policy_of
from lorica.data.split import count_repeated
from lorica.data.token_store import TokenStore
from lorica.errors import DataError, counted, listed

BINS = 10
SAMPLES = 3
HEAD, TAIL = 120, 60  # the first and last tokens that are printed of a long piece
MAX_PIECES = 12  # of a sample; of a longer conversation the first and the last pieces


@dataclass(frozen=True)
class Sample:
    """A row as the model reads it."""

    where: str
    pieces: list[tuple[str, bool]]  # (text, learned)
    tokens: int
    label: str | None = None


@dataclass(frozen=True)
class Report:
    """Counts are rows of the file, unless the name says tokens."""

    path: str
    rows: int
    kinds: dict[str, int]
    classes: dict[str, int]
    conditions: dict[str, int]
    train: int
    validation: int
    tokens: int
    label_tokens: int
    label_share: float
    shortest: int  # tokens
    median: int
    longest: int
    histogram: list[tuple[int, int, int]]  # from, to (inclusive, tokens), rows as trained on
    max_length: int | None
    policy: str
    overlong: int
    truncated: int
    dropped: int
    unlearned: int
    duplicates: int
    answers: Answers
    samples: list[Sample]
    notices: list[str]
    problems: list[str]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def check(
    config: DataConfig,
    tokenizer: Any,
    *,
    seed: int,
    max_length: int | None,
    check_examples: Callable[[Iterable[Example]], None] = lambda examples: None,
) -> Report:
    """Report on the rows of `config`, and on the errors that would stop a training.

    check_examples: raises DataError for rows that the base cannot take.

    Raises: DataError if the rows cannot be read, or cannot be rendered.
    """
    limit = limit_of(config, max_length)
    files = tokenise_files(config, tokenizer, seed=seed)
    store, classes = files.stores[0], files.classes[0]
    dataset = Dataset.whole(store)
    problems: list[str] = []
    train = validation = 0
    lengths_used = dataset.lengths
    try:
        data = build_data(files, tokenizer, seed=seed, limit=limit)
        for examples in (data.train, data.validation):
            check_examples(examples)
    except DataError as error:
        problems.append(str(error))
        notices = _notices_of_files(files)
    else:
        train, validation, notices = len(data.train), len(data.validation), data.notices
        lengths_used = np.concatenate([data.train.lengths, data.validation.lengths])
    policy = policy_of(config)
    lengths, labels = dataset.lengths, dataset.label_counts
    overlong = 0 if limit is None else int((lengths > limit).sum())
    tokens, learned = int(lengths.sum()), int(labels.sum())
    samples = replace(dataset, classes=classes)[:SAMPLES]
    answers = check_answers(store, tokenizer)
    if answers.prompts:
        notices = [*notices, _about_conflicts(answers, store.kind, config.path)]
    return Report(
        path=config.path,
        rows=len(store),
        kinds={store.kind: len(store)},
        classes=_counts(store, "label", "labels"),
        conditions=_counts(store, "condition", "conditions"),
        train=train,
        validation=validation,
        tokens=tokens,
        label_tokens=learned,
        label_share=learned / max(tokens, 1),
        shortest=int(lengths.min()),
        median=int(np.sort(lengths)[len(lengths) // 2]),
        longest=int(lengths.max()),
        histogram=histogram(lengths_used),
        max_length=limit,
        policy=policy,
        overlong=overlong,
        truncated=overlong if policy == "truncate" else 0,
        dropped=overlong if policy == "drop" else 0,
        unlearned=0 if store.kind == "label" else int((labels == 0).sum()),
        duplicates=count_repeated(store),
        answers=answers,
        samples=[sample(example, tokenizer, files.labels) for example in samples],
        notices=notices,
        problems=problems,
    )


def _about_conflicts(answers: Answers, kind: str, path: str) -> str:
    what, noun = ("classes of one", "text") if kind == "label" else ("answers to one", "prompt")
    return (
        f"{Path(path).name}: different {what} {noun}: {counted(answers.prompts, noun)}, "
        f"{counted(answers.rows, 'row')}; {answers.first} is the first"
    )


def _notices_of_files(files: TokenisedFiles) -> list[str]:
    """Notices about the rows of each file, before they are cut to the limit."""
    return [
        f"{Path(config.path).name}: {notice}"
        for config, store in zip(files.configs, files.stores, strict=True)
        for notice in notices_of(store)
    ]


def _counts(store: TokenStore, column: str, names: str) -> dict[str, int]:
    """How many rows have each label, or each condition."""
    values = store.arrays[column]
    counts = np.bincount(values[values >= 0], minlength=len(store.meta[names]))
    return dict(zip(store.meta[names], counts.tolist(), strict=True))


def histogram(lengths: np.ndarray) -> list[tuple[int, int, int]]:
    """(from, to, rows) in bins of equal width up to the longest row; `to` is inclusive."""
    width = max(1, -(-int(lengths.max()) // BINS))
    counts = np.bincount(np.maximum(lengths - 1, 0) // width).tolist()
    return [(i * width + 1, (i + 1) * width, count) for i, count in enumerate(counts)]


def sample(example: Example, tokenizer: Any, labels: list[str] | None) -> Sample:
    """The example's text, decoded from its ids, in learned and context pieces."""
    pairs = zip(example.learned, example.ids, strict=True)
    runs = [
        (learned, [i for _, i in run]) for learned, run in groupby(pairs, key=lambda pair: pair[0])
    ]
    pieces = [(_shortened(ids, tokenizer), learned) for learned, ids in runs]
    if len(pieces) > MAX_PIECES:
        left = f"\n[... {len(pieces) - MAX_PIECES} more pieces ...]\n"
        pieces = [*pieces[: MAX_PIECES // 2], (left, False), *pieces[-MAX_PIECES // 2 :]]
    label = None if example.label is None or labels is None else labels[example.label]
    return Sample(example.where, pieces, len(example.ids), label)


def _shortened(ids: list[int], tokenizer: Any) -> str:
    """The decoded text; of a long one the first and the last tokens."""
    if len(ids) <= HEAD + TAIL:
        return tokenizer.decode(ids)
    skipped = f" [... {len(ids) - HEAD - TAIL:,} tokens ...] "
    return tokenizer.decode(ids[:HEAD]) + skipped + tokenizer.decode(ids[-TAIL:])


def print_report(report: Report, console: Console) -> None:
    """Print the report. Learned text is green, and in «» for terminals without colour."""
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in report.kinds.items())
    facts = {
        "rows": f"{kinds}; {report.train:,} train, {report.validation:,} validation",
        "tokens": f"{report.tokens:,}, of which {report.label_tokens:,} are learned "
        f"({report.label_share:.1%})",
        "length": f"{report.shortest} to {report.longest} tokens, median {report.median}; "
        f"limit {report.max_length or 'none'}",
        "overlong": f"{report.overlong:,} ({report.policy}): {report.truncated:,} truncated, "
        f"{report.dropped:,} dropped",
        "repeated": f"{report.duplicates:,} rows",
        "conflicting": f"{report.answers.rows:,} rows, of {report.answers.prompts:,} prompts",
        "empty answers": f"{report.answers.empty:,} rows",
        "nothing to learn": f"{report.unlearned:,} rows",
    }
    if report.classes:
        facts["classes"] = ", ".join(f"{name} {n:,}" for name, n in report.classes.items())
        facts["tokens"] = f"{report.tokens:,}"
        del facts["nothing to learn"], facts["empty answers"]
    if "text" in report.kinds:
        del facts["conflicting"], facts["empty answers"]
    if counts := report.conditions:
        names = listed((f"{name} {n:,}" for name, n in counts.items()), 8)
        facts["conditions"] = f"{len(counts):,}: {names}"
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        table.add_row(Text(name, style="bold"), Text(value))
    console.print(Text(report.path, style="bold"))
    console.print(table)
    console.print(_bars(report.histogram))
    for row in report.samples:
        console.print(_sample_text(row))
    for notice in report.notices:
        console.print(Text(f"note: {notice}", style="yellow"))
    for problem in report.problems:
        console.print(Text(f"problem: {problem}", style="red"))


def _bars(bins: list[tuple[int, int, int]]) -> Table:
    most = max(rows for _, _, rows in bins)
    table = Table.grid(padding=(0, 2))
    table.add_row(Text("tokens", style="bold"), Text("rows", style="bold"), Text())
    for start, end, rows in bins:
        bar = "█" * round(30 * rows / most) or ("▏" if rows else "")
        table.add_row(f"{start}-{end}", f"{rows:,}", Text(bar))
    return table


def _sample_text(row: Sample) -> Text:
    """A sample with its loss mask. It is not markup: rows may contain [INST] and the like."""
    text = Text().append(f"\n{row.where}, {row.tokens} tokens", style="bold")
    if row.label is not None:
        text.append(f", class {row.label}")
    text.append("\n")
    for piece, learned in row.pieces:
        text.append(f"«{piece}»" if learned else piece, style="green" if learned else "dim")
    return text
