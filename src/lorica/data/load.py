"""Files to examples: read, render, tokenise, fit, and part train from validation.

The split is a function of seed and content: the rows with the smallest sha256 of both are the
validation rows. So it does not move when the file is sorted, and rows that are equal stay on
one side where that is possible.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorica.data.classes import in_order, mapping_notice, match, unknown_classes
from lorica.data.config import DataConfig
from lorica.data.fit import fit, limit_of, policy_of
from lorica.data.prompt_format import PromptFormat
from lorica.data.rendered import Rendered
from lorica.data.shape import columns_of, shape
from lorica.data.source import Source
from lorica.data.template import Renderer
from lorica.data.tokenise import Example, tokenise, tokenise_labels, unwritten
from lorica.errors import DataError, listed

CHUNK = 1_000  # rows at a time


@dataclass
class Data:
    train: list[Example]
    validation: list[Example]
    labels: list[str] | None  # names of the classes, when the rows have one
    lines: list[str]
    digest: str  # sha256 of the files' bytes, or of the rows
    prompt_format: PromptFormat | None = None  # of the training file; None for classes


@dataclass(frozen=True)
class Rows:
    """One file's rows as text."""

    config: DataConfig
    kind: str
    rows: list[Rendered]
    lines: list[str]
    digest: str
    prompt_format: PromptFormat | None = None


@dataclass(frozen=True)
class Files:
    """The training file, the validation file if there is one, and both as tokens, uncut."""

    rows: list[Rows]
    examples: list[list[Example]]
    labels: list[str] | None


def load(
    config: DataConfig,
    tokenizer: Any,
    *,
    seed: int,
    max_length: int | None,
    labels: list[str] | None = None,
    new_classes: bool = False,
) -> Data:
    """All that training needs of `config`.

    max_length: what the base takes, in tokens; None knows no limit.
    labels: the classes that a model knows already; by default those in the rows.
    new_classes: rows whose labels are not `labels` have classes of their own.

    Raises: DataError for whatever keeps the rows from being trained on.
    """
    limit = limit_of(config, max_length)
    files = gather(config, tokenizer, labels, new_classes=new_classes)
    return assemble(files, tokenizer, seed=seed, limit=limit)


def gather(
    config: DataConfig, tokenizer: Any, labels: list[str] | None = None, *,
    new_classes: bool = False,
) -> Files:  # fmt: skip
    """Read, render and tokenise the files, and leave out nothing.

    Raises: DataError if rows cannot be read, or not be written as text.
    """
    files = [rows_of(config, tokenizer)]
    if isinstance(config.validation, str):
        # The same settings, but for the path: a limit counts training rows.
        other = config.model_copy(
            update={"path": config.validation, "validation": 0.0, "limit": None}
        )
        files.append(rows_of(other, tokenizer, kind=files[0].kind))
        _both_conditioned(files)
    names, class_of = class_names(files, labels, new_classes)
    examples, said = [], []
    for rows in files:
        if names is None:
            found, lines = tokenise(rows.rows, tokenizer)
        else:
            named = [replace(row, label=class_of[row.label or ""]) for row in rows.rows]
            rows = replace(rows, rows=named)
            found = tokenise_labels(rows.rows, tokenizer, names)
            lines = [*mapping_notice(class_of), *unwritten(rows.rows, tokenizer)]
        examples.append(found)
        said.append(replace(rows, lines=[*rows.lines, *_duplicates(rows), *lines]))
    return Files(said, examples, names)


def assemble(files: Files, tokenizer: Any, *, seed: int, limit: int | None) -> Data:
    """Fit the rows to the limit, and part train from validation.

    Raises: DataError for overlong rows under `raise`, and if nothing is to be learned.
    """
    sides, lines = [], []
    for rows, examples in zip(files.rows, files.examples, strict=True):
        fitted = fit(examples, rows.kind, rows.config, limit)
        kept = fitted.examples
        if files.labels and fitted.overlong and policy_of(rows.config) == "truncate":
            # The tokenizer cuts, so that special tokens at the end stay.
            kept = tokenise_labels(rows.rows, tokenizer, files.labels, limit)
        sides.append(kept)
        name = Path(rows.config.path).name
        lines += [f"{name}: {line}" for line in [*rows.lines, *fitted.lines]]
    if len(sides) == 1:
        sides = part(sides[0], float(files.rows[0].config.validation), seed)
    train, held = sides
    lines += _unmatched(train, held, files.labels)
    digests = [rows.digest for rows in files.rows]
    digest = digests[0]
    if len(digests) > 1:
        digest = hashlib.sha256(" ".join(digests).encode()).hexdigest()
    return Data(train, held, files.labels, lines, digest, files.rows[0].prompt_format)


def conditions(examples: list[Example]) -> list[str] | None:
    """The distinct conditions of rows, sorted; None: they have none."""
    return sorted({e.condition for e in examples if e.condition is not None}) or None


def _both_conditioned(files: list[Rows]) -> None:
    """The rows of every file have conditions, or those of none have."""
    without = [rows.config.path for rows in files if rows.rows[0].condition is None]
    if len(without) == 1:
        raise DataError(
            f"{without[0]} has no condition for its rows, and the other file has.",
            fix="give the rows of both a condition, or those of none",
        )


def rows_of(config: DataConfig, tokenizer: Any, kind: str | None = None) -> Rows:
    """Read and render one file.

    kind: what the rows must be, when another file has settled that.
    """
    source = Source(config)
    columns = columns_of((), config)
    for chunk in source.chunks(CHUNK):
        columns.add(chunk)
    shaped = shape(columns, config)
    if kind and (shaped.kind == "label") != (kind == "label"):
        raise DataError(
            f"{config.path} holds {shaped.kind} rows, but the training rows are {kind}.",
            fix="give validation rows of the same shape",
        )
    renderer = Renderer(shaped, config, tokenizer)
    rows = [row for chunk in source.chunks(CHUNK) for row in renderer.write(chunk)]
    lines = [*source.notices.lines, *shaped.lines, *renderer.finish()]
    form = renderer.prompt_format()
    return Rows(config, shaped.kind, rows, lines, source.digest(), form)


def class_names(
    files: list[Rows], known: list[str] | None, new_classes: bool = False
) -> tuple[list[str] | None, dict[str, str]]:
    """(the classes in order, or None without; each label of the rows -> its class).

    known: classes that the model has already, whose order and names are kept where the labels
        name them. new_classes: labels that do not name them are classes of their own.

    Raises: DataError for a class that is not `known`, and for a single class.
    """
    if files[0].kind != "label":
        return None, {}
    found = {row.label or "" for file in files for row in file.rows}
    if known is not None:
        if (classes := match(found, known, all_numbers=new_classes)) is not None:
            return known, classes
        if not new_classes:
            raise unknown_classes(found, known)
    return in_order(found), {label: label for label in found}


def part(examples: list[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Train and validation examples, both in the file's order.

    What is parted is the rows of the file; of a file that is one row, its blocks.
    At least one goes to each side when `share` > 0 and there are two.
    """
    by_row = len({example.row for example in examples}) > 1
    unit = [example.row if by_row else i for i, example in enumerate(examples)]
    units = dict(zip(unit, examples, strict=True))
    if share <= 0 or len(units) < 2:
        return examples, []
    groups: dict[str, list[int]] = {}  # equal rows have equal keys, and stay together
    for number, example in units.items():
        source = example.source
        # Rows made from one conversation begin alike, and stay together.
        text = (source.group or _content(source)) if by_row and source else str(example.ids)
        key = hashlib.sha256(f"{seed}\0{text}".encode()).hexdigest()
        groups.setdefault(key, []).append(number)
    want = min(max(1, round(share * len(units))), len(units) - 1)
    held: set[int] = set()
    for key in sorted(groups):
        if len(held) + len(groups[key]) <= want:
            held.update(groups[key])
    if not held:  # every row stands often; rather a large group than a row on both sides
        least = min(groups.values(), key=len)
        held.update(least if len(least) < len(units) else least[:want])
    train = [e for e, number in zip(examples, unit, strict=True) if number not in held]
    return train, [e for e, number in zip(examples, unit, strict=True) if number in held]


def _content(row: Rendered) -> str:
    told = [] if row.condition is None else [row.condition]
    return "\x1f".join([*(s.text for s in row.segments), row.label or "", *told])


def duplicates(rows: list[Rendered]) -> int:
    """Rows beyond the first of their content."""
    return len(rows) - len({_content(row) for row in rows})


def _duplicates(rows: Rows) -> list[str]:
    twice = duplicates(rows.rows)
    if not twice:
        return []
    most, times = Counter(map(_content, rows.rows)).most_common(1)[0]
    first = next(row.where for row in rows.rows if _content(row) == most)
    return [f"{twice} rows repeat an earlier one; {first} stands {times} times"]


def _unmatched(train: list[Example], held: list[Example], labels: list[str] | None) -> list[str]:
    """Rows on both sides, and classes on one side only."""
    lines = []
    learned = {id(e.source): e.source for e in train if e.source}
    known = set(map(_content, learned.values()))
    # Blocks of one text share their row, and are no repetition.
    others = {id(e.source): e.source for e in held if e.source and id(e.source) not in learned}
    if both := [row.where for row in others.values() if _content(row) in known]:
        lines.append(
            f"{len(both)} validation rows stand in the training rows too, so their loss "
            f"says little: {listed(both)}"
        )
    if labels is not None and held:
        seen = {e.label for e in train}
        missing = [name for i, name in enumerate(labels) if i not in seen]
        if missing:
            lines.append(f"no training row has the class {listed(missing)}")
    return lines
