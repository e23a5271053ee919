"""Render rows to text: one `RenderedRow` for each, as spans that are learned or context.

Rows come in chunks. A row that cannot be used does not stop the others: all such rows are
collected, and `Renderer.finish` raises one error that names them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lorica.data.chat_template import chat_templates
from lorica.data.classes import class_name
from lorica.data.config import DataConfig
from lorica.data.conversation import is_conversation
from lorica.data.fields import BadRow, answer_texts, condition_text, text_field
from lorica.data.notices import Notices, Places
from lorica.data.prompt_format import PromptFormat, format_of
from lorica.data.render_chat import render_conversations
from lorica.data.render_prompt import (
    RenderedPrompt,
    alpaca_fields,
    default_prompt,
    render_prompts,
)
from lorica.data.rendered_row import Outcome, RenderedRow, TextSpan
from lorica.data.row_format import RowFormat, columns_of, detect_format
from lorica.data.source import Row
from lorica.errors import DataError

CONVERSATIONS, PROMPTS = ("messages", "sharegpt"), ("alpaca", "prompt")


@dataclass(frozen=True)
class Rendering:
    """All rows of a file as text, in order; data.split_turns makes several of one row."""

    kind: str
    rows: list[RenderedRow]
    notices: list[str]


def render(rows: list[Row], config: DataConfig, tokenizer: Any) -> Rendering:
    """Detect the format of the rows and render them: a whole file at once.

    Raises: DataError that counts the rows which cannot be used, and names the first of them.
    """
    row_format = detect_format(columns_of(rows, config), config)
    renderer = Renderer(row_format, config, tokenizer)
    rendered = renderer.render(rows)
    return Rendering(row_format.kind, rendered, [*row_format.notices, *renderer.finish()])


class Renderer:
    """Renders a file in chunks, and collects its notices and its unusable rows.

    Raises: DataError if the rows are conversations and the tokenizer has no chat template.
    """

    def __init__(self, row_format: RowFormat, config: DataConfig, tokenizer: Any):
        self.kind = row_format.kind
        self.notices = Notices()
        self._format, self._config, self._tokenizer = row_format, config, tokenizer
        self._bad, self._fix = Places(most=3, between="; "), None
        self._without_condition = Places()
        self._rows = 0
        self._has_conversations = self.kind in CONVERSATIONS
        if self._has_conversations:
            chat_templates(tokenizer, config.chat_template)
        if config.prompt_template is not None and self.kind not in PROMPTS:
            raise DataError(
                f"data.prompt_template is for alpaca and prompt rows, but {config.path} holds "
                f"{self.kind} rows.",
                fix="leave it out",
            )

    @property
    def failed(self) -> bool:
        """Whether some row cannot be used, so that the others need not be tokenised."""
        return bool(self._bad)

    def render(self, rows: list[Row]) -> list[RenderedRow]:
        """The texts of the usable rows of a chunk, in order."""
        rows = [self._format.rename(row) for row in rows]
        rendered: list[RenderedRow] = []
        for row, outcome in zip(rows, self._outcomes(rows), strict=True):
            self._rows += 1
            try:
                if outcome.problem is not None:
                    raise outcome.problem
                condition = condition_text(row.fields)
            except BadRow as error:
                self._bad.add(f"{row.where} {error}")
                self._fix = self._fix or error.fix
                continue
            if condition is None:
                self._without_condition.add(row.where)
                rendered += outcome.rows
            else:
                rendered += [replace(text, condition=condition) for text in outcome.rows]
        return rendered

    def take(self) -> Any:
        """What was collected, which is then forgotten, for `merge` in another process."""
        collected = self._bad, self._without_condition, self.notices
        taken = [item.take() for item in collected], self._rows, self._fix, self._has_conversations
        self._rows = 0
        return taken

    def merge(self, taken: Any) -> None:
        """Add what another process collected in later rows."""
        (bad, without_condition, notices), rows, fix, has_conversations = taken
        self._bad.merge(bad)
        self._without_condition.merge(without_condition)
        self.notices.merge(notices)
        self._rows += rows
        self._fix = self._fix or fix
        self._has_conversations |= has_conversations

    def finish(self) -> list[str]:
        """The notices about all rows. Raises: DataError for rows that cannot be used."""
        path, without = self._config.path, self._without_condition
        if self._bad:
            raise DataError(
                f"{path}: {self._bad.count} of {self._rows} rows cannot be used.",
                rows=str(self._bad),
                fix=self._fix or "correct or remove these rows",
            )
        if without and without.count < self._rows:
            raise DataError(
                f"{path}: {without.count} of {self._rows} rows have no condition.",
                rows=str(without),
                fix="give every row a condition, or none",
            )
        return self.notices.texts

    def prompt_format(self) -> PromptFormat | None:
        """The prompt format of the rendered rows; None for rows with classes."""
        return format_of(self.kind, self._has_conversations, self._config, self._tokenizer)

    def _outcomes(self, rows: list[Row]) -> list[Outcome]:
        """The outcome of each row. Prompt rows may hold texts or conversations, mixed."""
        if self.kind not in PROMPTS and self.kind not in CONVERSATIONS:
            read = {"text": _text_row, "label": _labelled_row}[self.kind]
            return [_attempt(read, row) for row in rows]
        is_chat = [self.kind in CONVERSATIONS or is_conversation(row.fields) for row in rows]
        self._has_conversations |= any(is_chat)
        chats = [row for row, chat in zip(rows, is_chat, strict=True) if chat]
        plain = [row for row, chat in zip(rows, is_chat, strict=True) if not chat]
        of_chats = iter(self._render_chats(chats) if chats else [])
        of_plain = iter(self._render_plain(plain) if plain else [])
        return [next(of_chats if chat else of_plain) for chat in is_chat]

    def _render_chats(self, rows: list[Row]) -> list[Outcome]:
        return render_conversations(self.kind, rows, self._config, self._tokenizer, self.notices)

    def _render_plain(self, rows: Sequence[Row]) -> list[Outcome]:
        """Rows with a prompt, or the fields of one, and an answer."""
        outcomes: list[Outcome] = []
        fields: dict[int, dict[str, Any]] = {}  # of the prompt, by the number of the row
        for number, row in enumerate(rows):
            outcomes.append(Outcome())
            try:
                fields[number] = self._prompt_fields(row)
            except BadRow as error:
                outcomes[-1].problem = error
        template = self._config.prompt_template
        if template is not None:
            prompts = render_prompts(template, list(fields.values()))
        else:
            prompts = [RenderedPrompt(default_prompt(self.kind, f)) for f in fields.values()]
        for number, prompt in zip(fields, prompts, strict=True):
            outcomes[number] = _attempt(self._prompt_row, rows[number], prompt)
        return outcomes

    def _prompt_fields(self, row: Row) -> dict[str, Any]:
        """The values that make up the prompt. Raises: BadRow."""
        if self.kind == "alpaca":
            fields = alpaca_fields(row.fields)
            if fields["history"]:
                self.notices.add(
                    "the answers in the history of {n} rows are context, not learned", row.where
                )
            return fields
        for name in ("tools", "chat_template_kwargs"):
            if row.fields.get(name):
                self.notices.add(
                    f"the column {name} of {{n}} rows is not used: their prompts are plain "
                    "text, not messages",
                    row.where,
                )
        return {"prompt": text_field(row.fields, "prompt")}

    def _prompt_row(self, row: Row, prompt: RenderedPrompt) -> list[RenderedRow]:
        """A prompt and its answer. An empty answer is not learned: it would teach silence."""
        prompt_text = prompt.checked()
        name = "output" if self.kind == "alpaca" else "completion"
        text, *references = answer_texts(row.fields, name)
        if references:
            self.notices.add(
                "the first answer of {n} rows is learned; scores of answers accept the others too",
                row.where,
            )
        spans = (
            TextSpan(prompt_text, not self._config.completion_only),
            TextSpan(text, bool(text.strip())),
        )
        spans = tuple(span for span in spans if span.text)
        return [RenderedRow(self.kind, spans, False, where=row.where, references=tuple(references))]


def _attempt(render: Callable[..., list[RenderedRow]], *args: Any) -> Outcome:
    try:
        return Outcome(render(*args))
    except BadRow as error:
        return Outcome(problem=error)


def _text_row(row: Row) -> list[RenderedRow]:
    text = text_field(row.fields, "text")
    return [RenderedRow("text", (TextSpan(text, bool(text.strip())),), False, where=row.where)]


def _labelled_row(row: Row) -> list[RenderedRow]:
    text, label = text_field(row.fields, "text"), row.fields.get("label")
    name = class_name(label)
    match label:
        case str() | int() if name:
            span = TextSpan(text, False)
            return [RenderedRow("label", (span,), False, label=name, where=row.where)]
        case _:
            value = repr(label) if name else "empty"
            raise BadRow(f"label is {value}, which names no class")
