"""The tokenizer's chat template as a function: messages to text, and which of it is learned.

A template says nowhere what the assistant wrote. Two ways find it:

1. the template marks it itself, with `{% generation %}`;
2. the text of `messages[:i]` with the prompt for generation is a prefix of the text of
   `messages[:i + 1]`: what follows the prefix is turn i, exactly as generation will see it.

Where neither holds, there is no mask, and that is an error: a mask that is guessed (say, by
looking for the content in the text) would train on another prompt than generation gives.
Learned is a turn's text with its end-of-turn, without white space behind that.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2

from lorica.data.sandbox import MARK_END, MARK_START, Budget, Overrun, Sandbox, raise_exception
from lorica.data.shape import BadRow
from lorica.errors import DataError

WHOLE = "data.completion_only: false learns the whole conversation"
MARKS = re.compile(f"{MARK_START}|{MARK_END}")


@dataclass(frozen=True)
class Turn:
    start: int  # characters of the conversation's text
    end: int


class ChatTemplate:
    """One tokenizer's template, compiled once."""

    def __init__(self, source: str, special: dict[str, str]):
        self.marks = bool(re.search(r"\{%[-+]?\s*generation\b", source))
        self.dated = False
        self._special = special
        self._sandbox = Sandbox()
        self._sandbox.globals |= {"raise_exception": raise_exception, "strftime_now": self._now}
        try:
            self._template = self._sandbox.from_string(source)
        except Overrun as error:
            raise _endless(error) from None
        except (jinja2.TemplateError, SyntaxError, RecursionError, ValueError) as error:
            raise DataError(
                "the tokenizer's chat template cannot be read.",
                reason=str(error).strip().partition("\n")[0],
                line=getattr(error, "lineno", None) or "unknown",
                fix="mend chat_template.jinja (or chat_template in tokenizer_config.json)",
            ) from error

    def render(
        self, messages: list[dict[str, Any]], tools: list[Any] | None, prompt: bool = False
    ) -> tuple[str, list[Turn]]:
        """The text of the messages, and the turns that the template itself marks.

        prompt: end with the opening of the assistant's next turn.
        Raises: BadRow if the template refuses the messages; DataError if it does not end.
        """
        self._sandbox.budget = Budget()
        try:
            text = self._template.render(
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=prompt,
                **self._special,
            )
        except (Overrun, RecursionError, MemoryError) as error:
            raise _endless(error) from None
        except Exception as error:  # a program that we did not write may raise anything
            kind = "" if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: "
            raise BadRow(f"the chat template refuses it ({kind}{error})") from error
        return _without_marks(text) if self.marks else (text, [])

    def _now(self, form: str) -> str:
        self.dated = True
        return datetime.now().strftime(form)


def _endless(error: BaseException) -> DataError:
    reason = str(error) if isinstance(error, Overrun) else f"it ends in a {type(error).__name__}"
    return DataError(
        "the tokenizer's chat template does not come to an end, and was stopped.",
        reason=reason,
        fix="mend chat_template.jinja (or chat_template in tokenizer_config.json); "
        "a template from a stranger may mean harm; a conversation of megabytes must be cut",
    )


def _without_marks(text: str) -> tuple[str, list[Turn]]:
    pieces, turns, length, last, start = [], [], 0, 0, 0
    for mark in MARKS.finditer(text):
        pieces.append(text[last : mark.start()])
        length += len(pieces[-1])
        last = mark.end()
        if mark.group() == MARK_START:
            start = length
        else:
            turns.append(Turn(start, length))
    return "".join([*pieces, text[last:]]), turns


def chat_template(tokenizer: Any) -> ChatTemplate:
    """The template of the tokenizer; of several, the one named default.

    Raises: DataError if it has none.
    """
    source = tokenizer.chat_template
    if isinstance(source, dict):
        source = source.get("default")
    if not source:
        raise DataError(
            "the rows are conversations, but the base's tokenizer has no chat template.",
            fix="choose a base with one, or save one as chat_template.jinja beside its "
            "tokenizer.json, or write the rows as prompt and completion",
        )
    special = {k: v for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str)}
    return ChatTemplate(source, special)


def masked(
    template: ChatTemplate, messages: list[dict[str, Any]], tools: list[Any] | None
) -> tuple[str, list[Turn]]:
    """The conversation's text, and the turns in it that are learned: the assistant's.

    Raises: BadRow if the template refuses the messages, or no mask can be found.
    """
    text, turns = template.render(messages, tools)
    if not template.marks:
        turns = _by_prefix(template, messages, tools, text)
    elif not turns:
        raise BadRow("the chat template's {% generation %} blocks mark nothing in it", fix=WHOLE)
    said = [m for m in messages if m["role"] == "assistant"]
    contents = [str(m.get("content") or "") for m in said]
    if len(contents) != len(turns):  # blocks of the template's own making
        contents = [""] * len(turns)
    ends = [_end(text, turn, content) for turn, content in zip(turns, contents, strict=True)]
    return text, [Turn(turn.start, end) for turn, end in zip(turns, ends, strict=True)]


def _by_prefix(
    template: ChatTemplate, messages: list[dict[str, Any]], tools: list[Any] | None, text: str
) -> list[Turn]:
    turns = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, _ = template.render(messages[:i], tools, prompt=True)
        whole = i + 1 == len(messages)
        through = text if whole else template.render(messages[: i + 1], tools)[0]
        if not through.startswith(before):
            both = enumerate(zip(before, through, strict=False))
            at = next((at for at, (one, other) in both if one != other), len(through))
            start = max(at - 16, 0)
            raise BadRow(
                f"message {i + 1}: what the chat template gives for generation "
                f"({before[start : at + 16]!r}) is not how it writes the same conversation with "
                f"the answer ({through[start : at + 16]!r}), so no loss mask can be found",
                fix=WHOLE,
            )
        if not text.startswith(through):
            raise BadRow(
                f"message {i + 1}: the chat template writes it differently once others follow, "
                "so no loss mask can be found",
                fix=WHOLE + "; or keep one answer a row",
            )
        turns.append(Turn(len(before), len(through)))
    return turns


def _end(text: str, turn: Turn, content: str) -> int:
    """Where the turn's learned part ends: behind its end-of-turn, and all of its content."""
    part = text[turn.start : turn.end]
    at = part.rfind(content) if content else -1
    behind = at + len(content) if at >= 0 else 0
    return turn.start + max(len(part.rstrip()), behind)


def ending(text: str, turn: Turn, content: str) -> str:
    """The template's end-of-turn behind `content`, or nothing where that cannot be told."""
    part, content = text[turn.start : turn.end], content.strip()
    at = part.rfind(content) if content else -1
    return part[at + len(content) :].strip() if at >= 0 else ""
