"""Detect the format of the rows from their columns, and rename the columns to ours.

    messages   messages [system tools chat_template_kwargs]
    sharegpt   conversations [system tools chat_template_kwargs]
    alpaca     instruction output [input system history references]
    prompt     prompt completion [tools chat_template_kwargs], both texts or lists of messages;
               with texts also [references]
    label      text label
    text       text

An answer may be a list of texts, and `references` adds more. The first answer is learned; an
evaluation accepts each of them. Every format may have a column `condition`.

Preference data (chosen and rejected, or messages with a true/false label) has nearly the same
columns. It is refused: to learn rejected answers would be an error that nobody sees.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from lorica.data.config import DataConfig
from lorica.data.source import Row
from lorica.errors import DataError, closest, listed

# format: (required columns, optional columns); "auto" takes the first that fits.
FORMATS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "messages": (("messages",), ("system", "tools", "chat_template_kwargs")),
    "sharegpt": (("conversations",), ("system", "tools", "chat_template_kwargs")),
    "alpaca": (("instruction", "output"), ("input", "system", "history", "references")),
    "prompt": (("prompt", "completion"), ("tools", "chat_template_kwargs", "references")),
    "label": (("text", "label"), ()),
    "text": (("text",), ()),
}
# Column names of other data sets, for the suggestion in the error. Nothing is guessed from them.
PROMPT_NAMES = ("question", "query", "source", "input", "instruction", "mr", "context", "user")
ANSWER_NAMES = (
    "answer",
    "response",
    "output",
    "target",
    "ref",
    "reference",
    "completion",
    "assistant",
)
TEXT_NAMES = ("sentence", "content", "review", "document", "body")


@dataclass
class Columns:
    """The columns of all rows, in the order of first appearance. Rows are added in chunks."""

    label: str  # the name in the file of our column label
    names: dict[str, None] = field(default_factory=dict)
    only_verdicts: bool = True  # every label is true, false or null

    def add(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self.names.update(dict.fromkeys(row.fields))
            self.only_verdicts &= type(row.fields.get(self.label)) in (bool, type(None))

    def take(self) -> tuple[list[str], bool]:
        """The columns so far, for `merge` in another process."""
        return list(self.names), self.only_verdicts

    def merge(self, taken: tuple[list[str], bool]) -> None:
        """Add the columns that another process saw in later rows."""
        names, only_verdicts = taken
        self.names.update(dict.fromkeys(names))
        self.only_verdicts &= only_verdicts


@dataclass(frozen=True)
class RowFormat:
    """The format of the rows of a file."""

    kind: str
    columns: dict[str, str]  # our name to the name in the file, for the columns of this format
    notices: list[str]

    def rename(self, row: Row) -> Row:
        """The row with its fields under our names, and without unused fields."""
        fields = row.fields
        return Row({ours: fields[t] for ours, t in self.columns.items() if t in fields}, row.where)


def columns_of(rows: Iterable[Row], config: DataConfig) -> Columns:
    columns = Columns(config.columns.get("label", "label"))
    columns.add(rows)
    return columns


def detect_format(columns: Columns, config: DataConfig) -> RowFormat:
    """The format of rows with these columns.

    Raises: DataError if no format fits, or the file lacks a column that data.columns names.
    """
    in_file = list(columns.names)
    _check_mapped_columns(config, in_file)
    renamed = {theirs: ours for ours, theirs in config.columns.items()}
    shadowed = set(config.columns) - set(renamed)  # a column of the file that has our name
    ours = [renamed.get(n, n) for n in in_file if n in renamed or n not in shadowed]
    kind = config.format
    if kind == "auto":
        kind = _detect(columns.only_verdicts, ours, config)
    required, optional = FORMATS[kind]
    if missing := [name for name in required if name not in ours]:
        raise _no_format(config, in_file, f"{kind} rows need {', '.join(missing)}")
    names = (*required, *optional, "condition")
    used = {name: config.columns.get(name, name) for name in names}
    unused = [name for name in in_file if name not in used.values()]
    notice = f"read as {kind} rows; columns not used: {listed(unused, 8)}"
    return RowFormat(kind, used, [notice] if unused else [])


def _check_mapped_columns(config: DataConfig, in_file: list[str]) -> None:
    wrong = {ours: name for ours, name in config.columns.items() if name not in in_file}
    if wrong:
        raise DataError(
            f"{config.path} has no column {listed(map(repr, wrong.values()))}, "
            "which data.columns names.",
            found=listed(in_file, 12),
            closest="; ".join(closest(name, in_file) for name in wrong.values()),
            fix="data.columns maps our name to the one in the file: {prompt: question}",
        )


def _detect(only_verdicts: bool, ours: list[str], config: DataConfig) -> str:
    names = set(ours)
    answers = names & {"messages", "conversations"} or {"prompt", "completion"} <= names
    rated = "label" in names and only_verdicts and answers
    if {"chosen", "rejected"} <= names or "kto_tag" in names or rated:
        raise DataError(
            f"{config.path} holds preferences (which answer is better), not answers to learn.",
            found=listed(ours, 12),
            fix="give rows with one good answer each; or, to learn every answer in the file, "
            "name the format with data.format",
        )
    for kind, (required, _) in FORMATS.items():
        if names.issuperset(required):
            return kind
    raise _no_format(config, ours, "no known format has these columns")


def _no_format(config: DataConfig, columns: list[str], reason: str) -> DataError:
    known = sorted({name for required, _ in FORMATS.values() for name in required})
    near = {name: closest(name, known) for name in columns}
    return DataError(
        f"{config.path}: {reason}.",
        found=listed(columns, 12),
        closest="; ".join(f"{a} ~ {b}" for a, b in near.items() if "nothing" not in b) or "none",
        known="; ".join(f"{kind}: {' '.join(names)}" for kind, (names, _) in FORMATS.items()),
        fix=_suggestion(config, columns),
    )


def _suggestion(config: DataConfig, columns: list[str]) -> str:
    lower = {name.lower(): name for name in columns}
    prompt = next((lower[name] for name in PROMPT_NAMES if name in lower), None)
    answer = next((lower[name] for name in ANSWER_NAMES if name in lower), None)
    text = next((lower[name] for name in TEXT_NAMES if name in lower), None)
    if prompt and answer:
        return f"data.columns: {{prompt: {prompt}, completion: {answer}}}"
    if text and "label" in lower:
        return f"data.columns: {{text: {text}}}"
    if config.path.lower().endswith(".csv"):
        return "the first line must be a header with column names; data.columns may map them"
    return "map the columns, for example data.columns: {prompt: question, completion: answer}"
