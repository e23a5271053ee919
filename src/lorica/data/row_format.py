"""Which shape the rows have, found from their columns; and their columns under our names.

    messages   messages [system tools chat_template_kwargs]
    sharegpt   conversations [system tools chat_template_kwargs]
    alpaca     instruction output [input system history references]
    prompt     prompt completion [tools chat_template_kwargs], both texts or lists of messages;
               texts [references]
    label      text label
    text       text

An answer may be a list of texts, and `references` has more of them: the first is learned, and each
is right in an evaluation. A column `condition` may stand beside any of them: what the row is
conditioned on.

Rows of preference training (chosen/rejected, or messages with a true/false label) look much
like these. They are refused rather than half used: learning a rejected answer is no error
that anybody would see.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from lorica.data.config import DataConfig
from lorica.data.source import Row
from lorica.errors import DataError, closest, listed

# kind: (columns it must have, columns it may have); auto takes the first that fits.
FORMATS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "messages": (("messages",), ("system", "tools", "chat_template_kwargs")),
    "sharegpt": (("conversations",), ("system", "tools", "chat_template_kwargs")),
    "alpaca": (("instruction", "output"), ("input", "system", "history", "references")),
    "prompt": (("prompt", "completion"), ("tools", "chat_template_kwargs", "references")),
    "label": (("text", "label"), ()),
    "text": (("text",), ()),
}
# Names seen in the wild, for the suggestion in the error; nothing is guessed from them.
ASKS = ("question", "query", "source", "input", "instruction", "mr", "context", "user")
ANSWERS = ("answer", "response", "output", "target", "ref", "reference", "completion", "assistant")
TEXTS = ("sentence", "content", "review", "document", "body")


@dataclass
class Columns:
    """The columns of all rows, in the order of their appearance; rows are added in chunks."""

    label: str  # the file's name of our column label
    names: dict[str, None] = field(default_factory=dict)
    judged: bool = True  # no row has a label but true, false or nothing

    def add(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self.names.update(dict.fromkeys(row.fields))
            self.judged &= isinstance(row.fields.get(self.label), bool | type(None))


@dataclass(frozen=True)
class RowFormat:
    """What the rows of a file are."""

    kind: str
    columns: dict[str, str]  # our names to those in the file, of the kind's columns
    notices: list[str]

    def apply(self, row: Row) -> Row:
        """The row's fields under our names, only those of the shape."""
        fields = row.fields
        return Row({us: fields[t] for us, t in self.columns.items() if t in fields}, row.where)


def columns_of(rows: Iterable[Row], config: DataConfig) -> Columns:
    columns = Columns(config.columns.get("label", "label"))
    columns.add(rows)
    return columns


def detect_format(columns: Columns, config: DataConfig) -> RowFormat:
    """Settle the shape from the columns, rename them, and leave out what it does not use.

    Raises: DataError if no shape fits, or a mapped column is in no row.
    """
    found = list(columns.names)
    _mapped_columns_exist(config, found)
    back = {theirs: ours for ours, theirs in config.columns.items()}
    shadowed = set(config.columns) - set(back)  # their own column of that name is not meant
    ours = [back.get(name, name) for name in found if name in back or name not in shadowed]
    kind = config.format if config.format != "auto" else _find(columns.judged, ours, config)
    must, may = FORMATS[kind]
    if missing := [name for name in must if name not in ours]:
        raise _no_shape(config, found, f"{kind} rows need {', '.join(missing)}")
    theirs = {name: config.columns.get(name, name) for name in (*must, *may, "condition")}
    unused = [name for name in found if name not in theirs.values()]
    lines = [f"read as {kind} rows; columns not used: {listed(unused, 8)}"]
    return RowFormat(kind, theirs, lines if unused else [])


def _mapped_columns_exist(config: DataConfig, found: list[str]) -> None:
    wrong = {ours: name for ours, name in config.columns.items() if name not in found}
    if wrong:
        raise DataError(
            f"{config.path} has no column {listed(map(repr, wrong.values()))}, "
            "which data.columns names.",
            found=listed(found, 12),
            closest="; ".join(closest(name, found) for name in wrong.values()),
            fix="data.columns maps our name to the one in the file: {prompt: question}",
        )


def _find(judged: bool, ours: list[str], config: DataConfig) -> str:
    judged = "label" in ours and judged
    answers = "messages" in ours or "conversations" in ours or {"prompt", "completion"} <= {*ours}
    if {"chosen", "rejected"} <= {*ours} or "kto_tag" in ours or (judged and answers):
        raise DataError(
            f"{config.path} holds preferences (which answer is better), not answers to learn.",
            found=listed(ours, 12),
            fix="give rows with one good answer each; or, to learn every answer in the file, "
            "name the shape with data.format",
        )
    for kind, (must, _) in FORMATS.items():
        if all(name in ours for name in must):
            return kind
    raise _no_shape(config, ours, "no known shape has these columns")


def _no_shape(config: DataConfig, found: list[str], why: str) -> DataError:
    known = sorted({name for must, _ in FORMATS.values() for name in must})
    near = {name: closest(name, known) for name in found}
    return DataError(
        f"{config.path}: {why}.",
        found=listed(found, 12),
        closest="; ".join(f"{a} ~ {b}" for a, b in near.items() if "nothing" not in b) or "none",
        known="; ".join(f"{kind}: {' '.join(must)}" for kind, (must, _) in FORMATS.items()),
        fix=_suggested(config, found),
    )


def _suggested(config: DataConfig, found: list[str]) -> str:
    lower = {name.lower(): name for name in found}
    ask = next((lower[name] for name in ASKS if name in lower), None)
    answer = next((lower[name] for name in ANSWERS if name in lower), None)
    text = next((lower[name] for name in TEXTS if name in lower), None)
    if ask and answer:
        return f"data.columns: {{prompt: {ask}, completion: {answer}}}"
    if text and "label" in lower:
        return f"data.columns: {{text: {text}}}"
    if config.path.lower().endswith(".csv"):
        return "the first line must be a header with column names; data.columns may map them"
    return "map the columns, for example data.columns: {prompt: question, completion: answer}"


def text_in(fields: dict[str, Any], name: str) -> str:
    """The text of a field.

    Raises: BadRow if it is missing, is no text, or cannot be written as UTF-8.
    """
    if name not in fields:
        raise BadRow(f"has no {name}")
    value = fields[name]
    if not isinstance(value, str):
        raise BadRow(f"{name} is {type(value).__name__}, not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # "\ud800" is legal JSON, and no character
        raise BadRow(f"{name} has half a surrogate pair at character {error.start}") from error
    return value


def answers_in(fields: dict[str, Any], name: str) -> list[str]:
    """The answers of a row, the one to learn first: a text or a list of them, and `references`.

    Raises: BadRow if one is no text, or there is none.
    """
    value = fields.get(name)
    texts = list(value) if isinstance(value, list) else [text_in(fields, name)]
    more = fields.get("references")
    texts += more if isinstance(more, list) else [] if more is None else [more]
    if not texts:
        raise BadRow(f"{name} is an empty list")
    first, *others = (text_in({name: text}, name) for text in texts)
    return list(dict.fromkeys([first, *others]))


def condition_in(fields: dict[str, Any]) -> str | None:
    """What the row is conditioned on, as text: a list of numbers as its JSON; None: nothing.

    Raises: BadRow if it is neither text, nor a whole number, nor a list of numbers.
    """
    value = fields.get("condition")
    if value is None:
        return None
    if type(value) is int:
        return str(value)
    if isinstance(value, list):
        if not value or not all(type(n) in (int, float) and math.isfinite(n) for n in value):
            raise BadRow("condition is a list, but not of finite numbers")
        return json.dumps([float(n) for n in value])
    if not text_in(fields, "condition").strip():
        raise BadRow("condition is empty")
    return value


class BadRow(Exception):
    """Why one row cannot be used; the caller knows which row, and collects them."""

    def __init__(self, why: str, fix: str | None = None):
        super().__init__(why)
        self.fix = fix
