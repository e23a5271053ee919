"""Rows become text: each row's shape is found, and written as segments, learned or only read.

A row that cannot be used does not stop at the first: all are collected and raised once, with
their places. Every row is written alone, so that rows may come in chunks; what is noticed is
counted, and merged over chunks (`Notices`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lorica.data.chat_template import chat_templates
from lorica.data.classes import class_name
from lorica.data.config import DataConfig
from lorica.data.conversation import is_conversation
from lorica.data.notices import Notices, Places
from lorica.data.prompt_format import PromptFormat, format_of
from lorica.data.render_chat import conversations
from lorica.data.render_prompt import alpaca_fields, default_prompt, render_prompts
from lorica.data.rendered_row import RenderedRow, TextSpan
from lorica.data.row_format import (
    BadRow,
    RowFormat,
    answers_in,
    columns_of,
    condition_in,
    detect_format,
    text_in,
)
from lorica.data.source import Row
from lorica.errors import DataError

CONVERSATIONS, PROMPTED = ("messages", "sharegpt"), ("alpaca", "prompt")
Outcome = list[RenderedRow] | BadRow


@dataclass(frozen=True)
class Rendering:
    """All rows as text, in order; one row of the file gives several under data.split_turns."""

    kind: str
    rows: list[RenderedRow]
    notices: list[str]


def render(rows: list[Row], config: DataConfig, tokenizer: Any) -> Rendering:
    """Find the rows' shape and write each as text: all of a file at once.

    Raises: DataError that names every row which cannot be used (the first few, and how many).
    """
    shaped = detect_format(columns_of(rows, config), config)
    renderer = Renderer(shaped, config, tokenizer)
    found = renderer.write(rows)
    return Rendering(shaped.kind, found, [*shaped.notices, *renderer.finish()])


class Renderer:
    """Writes rows as text, a chunk of the file at a time, and counts what there is to say.

    A row that cannot be used is left out; `finish` names them all.
    Raises: DataError if the rows are conversations and the tokenizer has no chat template.
    """

    def __init__(self, shape: RowFormat, config: DataConfig, tokenizer: Any):
        self.kind = shape.kind
        self.notices = Notices()
        self._shape, self._config, self._tokenizer = shape, config, tokenizer
        self._bad, self._fix = Places(most=3, between="; "), None
        self._without = Places()  # rows without a condition
        self._rows = 0
        self._talks = self.kind in CONVERSATIONS
        if self.kind in CONVERSATIONS:
            chat_templates(tokenizer, config.chat_template)
        if config.prompt_template is not None and self.kind not in PROMPTED:
            raise DataError(
                f"data.prompt_template is for alpaca and prompt rows, but {config.path} holds "
                f"{self.kind} rows.",
                fix="leave it out",
            )

    @property
    def failed(self) -> bool:
        """Some row cannot be used: the others need no tokens."""
        return bool(self._bad)

    def write(self, rows: list[Row]) -> list[RenderedRow]:
        """The texts of the rows that can be used, in order."""
        rows = [self._shape.apply(row) for row in rows]
        found: list[RenderedRow] = []
        for row, outcome in zip(rows, self._outcomes(rows), strict=True):
            self._rows += 1
            try:
                if isinstance(outcome, BadRow):
                    raise outcome
                condition = condition_in(row.fields)
            except BadRow as error:
                self._bad.add(f"{row.where} {error}")
                self._fix = self._fix or error.fix
                continue
            if condition is None:
                self._without.add(row.where)
                found += outcome
            else:
                found += [replace(text, condition=condition) for text in outcome]
        return found

    def finish(self) -> list[str]:
        """The notices about all rows. Raises: DataError for rows that cannot be used."""
        path = self._config.path
        if self._bad:
            raise DataError(
                f"{path}: {self._bad.count} of {self._rows} rows cannot be used.",
                rows=str(self._bad),
                fix=self._fix or "mend or remove these rows",
            )
        if self._without and self._without.count < self._rows:
            raise DataError(
                f"{path}: {self._without.count} of {self._rows} rows have no condition.",
                rows=str(self._without),
                fix="give one to every row, or to none",
            )
        return self.notices.texts

    def prompt_format(self) -> PromptFormat | None:
        """How the rows that were written are put into words; None for rows with classes."""
        return format_of(self.kind, self._talks, self._config, self._tokenizer)

    def _outcomes(self, rows: list[Row]) -> list[Outcome]:
        """Of each row its texts, or why it cannot be used."""
        kind, config = self.kind, self._config
        if kind not in PROMPTED and kind not in CONVERSATIONS:
            return [_attempted(_WRITERS[kind], row) for row in rows]
        talks = [kind in CONVERSATIONS or is_conversation(row.fields) for row in rows]
        self._talks |= any(talks)
        asked = [row for row, talk in zip(rows, talks, strict=True) if talk]
        plain = [row for row, talk in zip(rows, talks, strict=True) if not talk]
        told = iter(
            conversations(kind, asked, config, self._tokenizer, self.notices) if asked else []
        )
        answered = iter(_prompted(kind, plain, config, self.notices) if plain else [])
        return [next(told if talk else answered) for talk in talks]


def _attempted(write: Callable[..., Any], *given: Any) -> Any:
    try:
        return write(*given)
    except BadRow as error:
        return error


def _prompted(
    kind: str, rows: Sequence[Row], config: DataConfig, notices: Notices
) -> list[Outcome]:
    """Rows of a prompt's fields and an answer."""
    read = {"alpaca": _alpaca, "prompt": _prompt}[kind]
    asked: list[dict[str, Any] | BadRow] = [_attempted(read, row, notices) for row in rows]
    good = [fields for fields in asked if not isinstance(fields, BadRow)]
    if config.prompt_template is not None:
        texts = render_prompts(config.prompt_template, good)
    else:
        texts = [default_prompt(kind, fields) for fields in good]
    outcomes: list[Outcome] = []
    ready = iter(texts)
    answer = "output" if kind == "alpaca" else "completion"
    for row, fields in zip(rows, asked, strict=True):
        prompt = fields if isinstance(fields, BadRow) else next(ready)
        outcomes.append(
            prompt
            if isinstance(prompt, BadRow)
            else _attempted(_answered, kind, prompt, row, answer, config, notices)
        )
    return outcomes


def _alpaca(row: Row, notices: Notices) -> dict[str, Any]:
    fields = alpaca_fields(row.fields)
    if fields["history"]:
        notices.add("the answers in the history of {n} rows are read, not learned", row.where)
    return fields


def _prompt(row: Row, notices: Notices) -> dict[str, Any]:
    for name in ("tools", "chat_template_kwargs"):
        if row.fields.get(name):
            notices.add(
                f"the column {name} of {{n}} rows is not used: their prompts are plain "
                "text, no messages",
                row.where,
            )
    return {"prompt": text_in(row.fields, "prompt")}


def _answered(
    kind: str, prompt: str, row: Row, answer: str, config: DataConfig, notices: Notices
) -> list[RenderedRow]:
    """An empty answer is not learned: it would teach the model to say nothing."""
    text, *others = answers_in(row.fields, answer)
    pieces = [TextSpan(prompt, not config.completion_only), TextSpan(text, bool(text.strip()))]
    kept = tuple(piece for piece in pieces if piece.text)
    if others:
        notices.add(
            "the first answer of {n} rows is learned; their others count in exact match", row.where
        )
    return [RenderedRow(kind, kept, False, where=row.where, references=tuple(others))]


def _text(row: Row) -> list[RenderedRow]:
    text = text_in(row.fields, "text")
    return [RenderedRow("text", (TextSpan(text, bool(text.strip())),), False, where=row.where)]


def _label(row: Row) -> list[RenderedRow]:
    text, label = text_in(row.fields, "text"), row.fields.get("label")
    name = class_name(label)
    if not isinstance(label, str | int) or not name:
        shown = repr(label) if name else "empty"
        raise BadRow(f"label is {shown}, which names no class")
    return [RenderedRow("label", (TextSpan(text, False),), False, label=name, where=row.where)]


_WRITERS: dict[str, Callable[[Row], list[RenderedRow]]] = {"text": _text, "label": _label}
