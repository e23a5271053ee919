"""Prompts from a file: one for each line of a .txt file, or the rows of any other file of rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lorica.data.config import DataConfig
from lorica.data.fields import BadRow, condition_text, text_field
from lorica.data.notices import Places
from lorica.data.readers import Reading, open_text
from lorica.data.source import Row, Source
from lorica.errors import DataError

FIX = 'give lines of a .txt file, or rows of a .jsonl file: {"prompt": ...}'


@dataclass(frozen=True)
class PromptFile:
    """conditions: one for each prompt; None: the rows have none."""

    prompts: list[str]
    conditions: list[str] | None


def read_prompts(path: Path) -> PromptFile:
    """The prompts of a file. Empty lines of a .txt file are left out.

    Raises: DataError if it is missing, empty or not UTF-8, or rows have no prompt, or only some
        have a condition.
    """
    rows = list(_lines(path) if path.suffix.lower() == ".txt" else Source(_config(path)))
    prompts: list[str] = []
    conditions: list[str | None] = []
    bad = Places(most=3, between="; ")
    for row in rows:
        try:
            prompt, condition = text_field(row.fields, "prompt"), condition_text(row.fields)
            if not prompt:
                raise BadRow("has an empty prompt")
        except BadRow as error:
            bad.add(f"{row.where} {error}")
            continue
        prompts.append(prompt)
        conditions.append(condition)
    if bad:
        raise DataError(
            f"{path}: {bad.count} of {len(rows)} rows cannot be used.", rows=str(bad), fix=FIX
        )
    without = Places()
    for row, condition in zip(rows, conditions, strict=True):
        if condition is None:
            without.add(row.where)
    if 0 < without.count < len(rows):
        raise DataError(
            f"{path}: {without.count} of {len(rows)} rows have no condition.",
            rows=str(without),
            fix="give every row one, or none",
        )
    given = [condition for condition in conditions if condition is not None]
    return PromptFile(prompts, given or None)


def _config(path: Path) -> DataConfig:
    return DataConfig(path=str(path), format="prompt")


def _lines(path: Path) -> Iterator[Row]:
    Source(_config(path))  # the file is there, and a file
    with open_text(path, Reading(), "\n") as file:
        for number, line in enumerate(file, 1):
            if text := line.rstrip("\r\n"):
                yield Row({"prompt": text}, f"{path.name}:{number}")
