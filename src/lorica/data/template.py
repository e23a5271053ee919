"""Rows become text: segments in order, each learned or only read.

The instruction layout is the field's (`### Instruction:`, `### Input:`, `### Response:`), under
a sentence of our own. A row that cannot be used does not stop at the first: all are collected
and raised once, with their places.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from lorica.data.chat import ChatTemplate, chat_template
from lorica.data.config import DataConfig
from lorica.data.conversation import messages_of, segments, tools_of
from lorica.data.notices import Notices, Places
from lorica.data.shape import BadRow, Shape, columns_of, condition_in, shape, text_in
from lorica.data.source import Row
from lorica.errors import DataError

OPENING = "An instruction describes a task{}. Write a response that fulfils it.\n\n"


@dataclass(frozen=True)
class Segment:
    text: str
    learned: bool


@dataclass(frozen=True)
class Rendered:
    """One row as text."""

    kind: str
    segments: tuple[Segment, ...]
    special: bool  # the text carries BOS and its like already (chat template)
    label: str | None = None
    where: str = ""
    ending: str = ""  # the chat template's end-of-turn, at the end of the last learned segment
    condition: str | None = None

    @property
    def prompt(self) -> str:
        """What generation is given: the text before the last learned segment."""
        return "".join(segment.text for segment in self.segments[: self._last])

    @property
    def reference(self) -> str:
        """What generation should answer: the last learned segment, without end-of-turn."""
        last = self.segments[self._last].text if self._last < len(self.segments) else ""
        return last.rstrip().removesuffix(self.ending) if self.ending else last

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments)

    @property
    def _last(self) -> int:
        learned = (i for i, segment in enumerate(self.segments) if segment.learned)
        return max(learned, default=len(self.segments))


@dataclass(frozen=True)
class Rendering:
    kind: str
    rows: list[Rendered]
    lines: list[str]


def render(rows: list[Row], config: DataConfig, tokenizer: Any) -> Rendering:
    """Find the rows' shape and write each as text: all of a file at once.

    Raises: DataError that names every row which cannot be used (the first few, and how many).
    """
    shaped = shape(columns_of(rows, config), config)
    renderer = Renderer(shaped, config, tokenizer)
    found = renderer.write(rows)
    return Rendering(shaped.kind, found, [*shaped.lines, *renderer.finish()])


class Renderer:
    """Writes rows as text, a chunk of the file at a time, and counts what there is to say.

    A row that cannot be used is left out; `finish` names them all.
    Raises: DataError if the rows are conversations and the tokenizer has no chat template.
    """

    def __init__(self, shape: Shape, config: DataConfig, tokenizer: Any):
        self.kind = shape.kind
        self.notices = Notices()
        self._shape, self._config = shape, config
        self._template = None
        if shape.kind in ("messages", "sharegpt"):
            self._template = chat_template(tokenizer)
        self._bad, self._fix = Places(most=3, between="; "), None
        self._without = Places()  # rows without a condition
        self._rows = 0

    @property
    def failed(self) -> bool:
        """Some row cannot be used: the others need no tokens."""
        return bool(self._bad)

    def write(self, rows: list[Row]) -> list[Rendered]:
        """The text of the rows that can be used, in order."""
        found: list[Rendered] = []
        for row in rows:
            self._rows += 1
            try:
                rendered = self._rendered(self._shape.apply(row))
            except BadRow as error:
                self._bad.add(f"{row.where} {error}")
                self._fix = self._fix or error.fix
                continue
            if rendered.condition is None:
                self._without.add(row.where)
            found.append(rendered)
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
        dated = "the chat template prints today's date, so the rows' text changes with it"
        return self.notices.lines + ([dated] if self._template and self._template.dated else [])

    def _rendered(self, row: Row) -> Rendered:
        condition = condition_in(row.fields)
        if self._template:
            found = self._conversation(self._template, row)
        else:
            write = _WRITERS[self.kind]
            found = write(row.fields, row.where, not self._config.completion_only)
        return found if condition is None else replace(found, condition=condition)

    def _conversation(self, template: ChatTemplate, row: Row) -> Rendered:
        messages, tools = messages_of(row.fields), tools_of(row.fields)
        answers = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        if not answers:
            text = template.render(messages, tools)[0]
            return Rendered(self.kind, (Segment(text, False),), True, where=row.where)
        if answers[-1] + 1 < len(messages):
            self.notices.add(
                "{n} conversations go on after their last answer; what follows it is left out",
                row.where,
            )
        upto = messages[: answers[-1] + 1]
        pieces, end = segments(template, upto, tools, self._config.completion_only)
        return Rendered(self.kind, tuple(Segment(*p) for p in pieces), True, None, row.where, end)


def alpaca_prompt(instruction: str, given: str = "") -> str:
    """The text that an Alpaca row's answer follows."""
    opening = OPENING.format(", an input gives its context" if given else "")
    middle = f"### Input:\n{given}\n\n" if given else ""
    return f"{opening}### Instruction:\n{instruction}\n\n{middle}### Response:\n"


def _alpaca(fields: dict[str, Any], where: str, all_learned: bool) -> Rendered:
    given = "" if fields.get("input") is None else text_in(fields, "input")
    prompt = alpaca_prompt(text_in(fields, "instruction"), given)
    return _answered("alpaca", prompt, text_in(fields, "output"), where, all_learned)


def _prompt(fields: dict[str, Any], where: str, all_learned: bool) -> Rendered:
    prompt, completion = text_in(fields, "prompt"), text_in(fields, "completion")
    return _answered("prompt", prompt, completion, where, all_learned)


def _answered(kind: str, prompt: str, answer: str, where: str, all_learned: bool) -> Rendered:
    """An empty answer is not learned: it would teach the model to say nothing."""
    pieces = [Segment(prompt, all_learned), Segment(answer, bool(answer.strip()))]
    return Rendered(kind, tuple(piece for piece in pieces if piece.text), False, where=where)


def _text(fields: dict[str, Any], where: str, all_learned: bool) -> Rendered:
    text = text_in(fields, "text")
    return Rendered("text", (Segment(text, bool(text.strip())),), False, where=where)


def _label(fields: dict[str, Any], where: str, all_learned: bool) -> Rendered:
    text, label = text_in(fields, "text"), fields.get("label")
    if not isinstance(label, str | int) or label == "":
        shown = "empty" if label == "" else repr(label)
        raise BadRow(f"label is {shown}, which names no class")
    return Rendered("label", (Segment(text, False),), False, label=str(label), where=where)


_WRITERS: dict[str, Callable[[dict[str, Any], str, bool], Rendered]] = {
    "alpaca": _alpaca,
    "prompt": _prompt,
    "text": _text,
    "label": _label,
}
