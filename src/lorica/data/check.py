"""What training would be given, before anything is trained: `lorica check`.

The report goes through the same steps as `load`, but stops at nothing that it can count: what
would stop a training is listed under `problems`.
"""

from collections import Counter
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorica.data.config import DataConfig
from lorica.data.fit import limit_of, policy_of
from lorica.data.load import Data, assemble, duplicates, gather
from lorica.data.tokenise import Example
from lorica.errors import DataError, listed

BINS = 10
SAMPLES = 3
SHOWN = 400  # tokens of a sample that are printed


@dataclass(frozen=True)
class Sample:
    """A row as the model reads it."""

    where: str
    pieces: list[tuple[str, bool]]  # text, learned
    tokens: int
    label: str | None = None


@dataclass(frozen=True)
class Report:
    """Counts are rows of the file, unless they say tokens."""

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
    histogram: list[tuple[int, int, int]]  # from, to (inclusive, tokens), rows
    max_length: int | None
    policy: str
    overlong: int
    truncated: int
    dropped: int
    unlearned: int
    duplicates: int
    samples: list[Sample]
    lines: list[str]
    problems: list[str]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def check(config: DataConfig, tokenizer: Any, *, seed: int, max_length: int | None) -> Report:
    """Count what `load` would give, and say what would keep it from training.

    Raises: DataError if the rows cannot be read, or not be written as text.
    """
    limit = limit_of(config, max_length)
    files = gather(config, tokenizer)
    (rows, *_), (examples, *_) = files.rows, files.examples
    problems: list[str] = []
    try:
        data = assemble(files, tokenizer, seed=seed, limit=limit)
    except DataError as error:
        problems.append(str(error))
        lines = [
            f"{Path(part.config.path).name}: {line}" for part in files.rows for line in part.lines
        ]
        data = Data([], [], files.labels, lines, rows.digest)
    policy = policy_of(config)
    lengths = sorted(len(e.ids) for e in examples)
    overlong = sum(limit is not None and n > limit for n in lengths)
    labels = sum(sum(e.learned) for e in examples)
    return Report(
        path=config.path,
        rows=len(rows.rows),
        kinds=dict(Counter(row.kind for row in rows.rows)),
        classes=dict(Counter(row.label for row in rows.rows if row.label is not None)),
        conditions=dict(Counter(row.condition for row in rows.rows if row.condition is not None)),
        train=len(data.train),
        validation=len(data.validation),
        tokens=sum(lengths),
        label_tokens=labels,
        label_share=labels / max(sum(lengths), 1),
        shortest=lengths[0],
        median=lengths[len(lengths) // 2],
        longest=lengths[-1],
        histogram=histogram(lengths),
        max_length=limit,
        policy=policy,
        overlong=overlong,
        truncated=overlong if policy == "truncate" else 0,
        dropped=overlong if policy == "drop" else 0,
        unlearned=0 if rows.kind == "label" else sum(not any(e.learned) for e in examples),
        duplicates=duplicates(rows.rows),
        samples=[sample(e, tokenizer, files.labels) for e in examples[:SAMPLES]],
        lines=data.lines,
        problems=problems,
    )


def histogram(lengths: list[int]) -> list[tuple[int, int, int]]:
    """(from, to, rows) in bins of equal width from 0 to the longest; `to` belongs to the bin."""
    width = max(1, -(-max(lengths) // BINS))
    count = Counter(max(n - 1, 0) // width for n in lengths)
    return [(i * width + 1, (i + 1) * width, count[i]) for i in range(max(count) + 1)]


def sample(example: Example, tokenizer: Any, labels: list[str] | None) -> Sample:
    """The example's text in pieces, read back from its ids: what is lost there is lost."""
    pairs = list(zip(example.learned[:SHOWN], example.ids, strict=False))
    pieces = [
        (tokenizer.decode([i for _, i in run]), learned)
        for learned, run in groupby(pairs, key=lambda pair: pair[0])
    ]
    label = None if example.label is None or labels is None else labels[example.label]
    return Sample(example.where, pieces, len(example.ids), label)


def show(report: Report, console: Console) -> None:
    """Print the report; learned text is green, and stands in «» for eyes without colour."""
    shape = ", ".join(f"{n:,} {kind}" for kind, n in report.kinds.items())
    facts = {
        "rows": f"{shape}; {report.train:,} train, {report.validation:,} validation",
        "tokens": f"{report.tokens:,}, of which {report.label_tokens:,} are learned "
        f"({report.label_share:.1%})",
        "length": f"{report.shortest} to {report.longest} tokens, median {report.median}; "
        f"limit {report.max_length or 'none'}",
        "overlong": f"{report.overlong:,} ({report.policy}): {report.truncated:,} truncated, "
        f"{report.dropped:,} dropped",
        "repeated": f"{report.duplicates:,} rows",
        "nothing to learn": f"{report.unlearned:,} rows",
    }
    if report.classes:
        facts["classes"] = ", ".join(f"{name} {n:,}" for name, n in report.classes.items())
        facts["tokens"] = f"{report.tokens:,}"
        del facts["nothing to learn"]
    if told := report.conditions:
        facts["conditions"] = f"{len(told):,}: {listed((f'{c} {n:,}' for c, n in told.items()), 8)}"
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        table.add_row(Text(name, style="bold"), Text(value))
    console.print(Text(report.path, style="bold"))
    console.print(table)
    console.print(_bars(report.histogram))
    for one in report.samples:
        console.print(_row(one))
    for line in report.lines:
        console.print(Text(f"note: {line}", style="yellow"))
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


def _row(one: Sample) -> Text:
    """A sample with its loss mask. Text, not markup: rows may hold [INST] and the like."""
    text = Text().append(f"\n{one.where}, {one.tokens} tokens", style="bold")
    if one.label is not None:
        text.append(f", class {one.label}")
    text.append("\n")
    for piece, learned in one.pieces:
        text.append(f"«{piece}»" if learned else piece, style="green" if learned else "dim")
    if one.tokens > SHOWN:
        text.append(f" ... and {one.tokens - SHOWN} more tokens", style="dim")
    return text
