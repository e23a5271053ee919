"""Rows become text: segments in order, each learned or only read.

The instruction layout is the field's (`### Instruction:`, `### Input:`, `### Response:`), under
a sentence of our own. A row that cannot be used does not stop at the first: all are collected
and raised once, with their places.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from lorica.data.chat import chat_template
from lorica.data.config import DataConfig
from lorica.data.conversation import messages_of, segments, tools_of
from lorica.data.shape import BadRow, condition_in, shape, text_in
from lorica.data.source import Row
from lorica.errors import DataError, listed

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
    """Find the rows' shape and write each as text.

    Raises: DataError that names every row which cannot be used (the first few, and how many).
    """
    shaped = shape(rows, config)
    lines = list(shaped.lines)
    if shaped.kind in ("messages", "sharegpt"):
        return _conversations(shaped.kind, shaped.rows, config, tokenizer, lines)
    write = _WRITERS[shaped.kind]
    found = _collect(
        shaped.rows, lambda row: write(row.fields, row.where, not config.completion_only), config
    )
    return Rendering(shaped.kind, found, lines)


def _collect(
    rows: list[Row], write: Callable[[Row], Rendered], config: DataConfig
) -> list[Rendered]:
    found, bad, fixes = [], [], []
    for row in rows:
        try:
            found.append(replace(write(row), condition=condition_in(row.fields)))
        except BadRow as error:
            bad.append(f"{row.where} {error}")
            fixes.append(error.fix)
    if bad:
        raise DataError(
            f"{config.path}: {len(bad)} of {len(rows)} rows cannot be used.",
            rows="; ".join(bad[:3]) + (f"; ... and {len(bad) - 3} more" if len(bad) > 3 else ""),
            fix=next((fix for fix in fixes if fix), "mend or remove these rows"),
        )
    without = [row.where for row in found if row.condition is None]
    if without and len(without) < len(found):
        raise DataError(
            f"{config.path}: {len(without)} of {len(found)} rows have no condition.",
            rows=listed(without),
            fix="give one to every row, or to none",
        )
    return found


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


def _conversations(
    kind: str, rows: list[Row], config: DataConfig, tokenizer: Any, lines: list[str]
) -> Rendering:
    template = chat_template(tokenizer)
    trailing: list[str] = []

    def write(row: Row) -> Rendered:
        messages, tools = messages_of(row.fields), tools_of(row.fields)
        answers = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        if not answers:
            text = template.render(messages, tools)[0]
            return Rendered(kind, (Segment(text, False),), True, where=row.where)
        if answers[-1] + 1 < len(messages):
            trailing.append(row.where)
        upto = messages[: answers[-1] + 1]
        pieces, end = segments(template, upto, tools, config.completion_only)
        return Rendered(kind, tuple(Segment(*p) for p in pieces), True, None, row.where, end)

    found = _collect(rows, write, config)
    if trailing:
        lines.append(
            f"{len(trailing)} conversations go on after their last answer; what follows it "
            f"is left out: {listed(trailing)}"
        )
    if template.dated:
        lines.append("the chat template prints today's date, so the rows' text changes with it")
    return Rendering(kind, found, lines)
