"""Find the learned text of a rendered conversation: each answer with its end of turn, no header.

No template declares what the assistant wrote. Two sources give it:

1. the template marks the answers with `{% generation %}` blocks;
2. the text of `messages[:i]` with the generation prompt is a prefix of the text of
   `messages[:i + 1]`. What follows the prefix is turn i, exactly as generation will produce it.

Without either there is no loss mask, which is an error. A guessed mask (for example, the place of
the content in the text) would train on another prompt than generation gets. The answer is then
searched in the turn, and must be there. The end of turn after the answer is learned too, also if
the template's own marks leave it out. The text after the end of turn is not learned.
"""

import re
from dataclasses import dataclass

from lorica.data.chat_template import ChatTemplate
from lorica.data.conversation import Conversation
from lorica.data.fields import BadRow
from lorica.data.notices import Notices
from lorica.data.rendered_chat import Prefix, RenderedChat
from lorica.data.rendering_check import written_forms
from lorica.data.template_sandbox import CONTEXT

LEARN_ALL = "data.completion_only: false learns the whole conversation"
SPLIT_TURNS = "data.split_turns: true makes one row of each answer"
SPACE = re.compile(r"\s*")
MAX_PLACES = 1_000  # of one text in another


@dataclass(frozen=True)
class Turn:
    """A learned range of the conversation's text, in characters.

    stop: where the answer ends and the end of turn begins.
    """

    start: int
    stop: int
    end: int


@dataclass(frozen=True)
class LossMask:
    """Finds the learned turns of one rendered conversation.

    where: file and line of its row, for notices.
    """

    template: ChatTemplate
    conversation: Conversation
    rendered: RenderedChat
    where: str
    notices: Notices

    def turns(self) -> list[Turn]:
        """The turn of each learned answer, in order.

        Raises: BadRow if there is no mask, or an answer is not in its own turn.
        """
        answers = self.conversation.learned_indices
        if self.template.marks_answers:
            ranges = self._marked_ranges()
            if len(ranges) != len(answers):  # the template's blocks are not one an answer
                return [self._with_end_of_turn(start, end, end) for start, end in ranges]
        else:
            ranges = self._prefix_ranges()
        return [self._turn(i, *span) for i, span in zip(answers, ranges, strict=True)]

    def _marked_ranges(self) -> list[tuple[int, int]]:
        """(start, end) of the learned answers, from the template's blocks."""
        marked, messages = self.rendered.marked, self.conversation.messages
        answers = self.conversation.learned_indices
        if not marked:
            raise BadRow(
                "the chat template's {% generation %} blocks mark nothing in it", LEARN_ALL
            )
        assistant = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        if len(assistant) == len(marked):
            pairs = zip(assistant, marked, strict=True)
            ranges = [span for i, span in pairs if self.conversation.learned[i]]
        elif len(assistant) == len(answers):
            ranges = marked
        else:
            raise BadRow(
                f"the chat template marks {len(marked)} texts of {len(assistant)} answers, so "
                "the answers that are not learned cannot be told apart",
                "pass a template with one {% generation %} block an answer, "
                "data.chat_template: FILE",
            )
        covered = "".join(self.rendered.text[start:end] for start, end in marked)
        for i in answers:
            if not any(form.strip() in covered for form in written_forms(messages[i])):
                raise BadRow(
                    f"message {i + 1}: the {{% generation %}} blocks of the chat template leave "
                    "its answer out",
                    "pass another template, data.chat_template: FILE",
                )
        self._notice_unmarked_end(ranges)
        return ranges

    def _prefix_ranges(self) -> list[tuple[int, int]]:
        """(start, end) of the learned answers, from the texts of the first messages."""
        ranges, rendered = [], self.rendered
        answers = self.conversation.learned_indices
        for i, before, through in zip(answers, rendered.before, rendered.through, strict=True):
            is_last = i + 1 == len(self.conversation.messages)
            start, end = before.length, len(rendered.text) if is_last else through.common
            changed = not through.is_prefix and not self._answer_is_unchanged(i, start, end)
            if changed and (before.is_prefix or before.common == through.common):
                raise BadRow(
                    f"message {i + 1}: the chat template writes it differently once others "
                    "follow, so no loss mask can be found",
                    f"{SPLIT_TURNS}; or {LEARN_ALL}",
                )
            if not before.is_prefix:
                raise _other_prompt(i, before, rendered.text)
            ranges.append((start, end))
        return ranges

    def _answer_is_unchanged(self, i: int, start: int, end: int) -> bool:
        """The answer and its end of turn are before `end`, where the texts begin to differ."""
        mark = self.template.end_of_turn
        answer = self._find_answer(i, start, end) if mark else None
        if not mark or answer is None:
            return False
        at = _after_space(self.rendered.text, answer[1])
        return at + len(mark) <= end and self.rendered.text.startswith(mark, at)

    def _find_answer(self, i: int, start: int, end: int) -> tuple[int, int] | None:
        """(start, stop) characters of answer i, which ends between `start` and `end`."""
        text = self.rendered.text
        for form in written_forms(self.conversation.messages[i]):
            for content in (form, form.strip()):
                if not content:
                    continue
                places = _places(text, content, max(start - len(content) + 1, 0), end)
                closed = [p for p in places if self._turn_ends_at(p + len(content), end)]
                if best := closed[:1] or places[-1:]:
                    return best[0], best[0] + len(content)
        return None

    def _turn_ends_at(self, at: int, end: int) -> bool:
        if mark := self.template.end_of_turn:
            return self.rendered.text.startswith(mark, _after_space(self.rendered.text, at))
        return not self.rendered.text[at:end].strip()

    def _turn(self, i: int, start: int, end: int) -> Turn:
        text, message = self.rendered.text, self.conversation.messages[i]
        calls = bool(message.get("tool_calls"))
        answer = self._find_answer(i, start, end)
        if answer is None and message["content"].strip() and not calls:
            raise BadRow(
                f"message {i + 1}: its answer is not in the turn that the chat template writes",
                LEARN_ALL,
            )
        if answer is None:
            return self._with_end_of_turn(start, start, end)
        turn = self._with_end_of_turn(start, answer[1], end)
        if not calls:
            self._notice_around(i, turn, text[start : answer[0]])
        return turn

    def _with_end_of_turn(self, start: int, stop: int, end: int) -> Turn:
        """The turn, extended to the end of turn that follows it or its answer.

        start, end: of the turn. stop: where its answer ends; `start` if it has no answer text.
        """
        text, mark = self.rendered.text, self.template.end_of_turn
        close = max(start + len(text[start:end].rstrip()), stop)
        if mark:
            after_answer, after_turn = _after_space(text, stop), _after_space(text, close)
            if text.startswith(mark, after_answer):
                close = after_answer + len(mark)
            elif not text[stop:close].endswith(mark) and text.startswith(mark, after_turn):
                close = after_turn + len(mark)
        return Turn(start, stop if stop > start else close, close)

    def _notice_around(self, i: int, turn: Turn, lead: str) -> None:
        """Notices on learned text that is neither the answer nor the end of turn.

        lead: the text between the prompt and the answer.
        """
        text, mark = self.rendered.text, self.template.end_of_turn
        if "think" not in lead and (lead := lead.strip()):
            self._notice_lead(lead)
        if mark is None or (mark and text[: turn.end].endswith(mark)):
            return
        if tail := text[turn.stop : turn.end].strip():
            self._add(
                f"{tail!r}, which the chat template does not write after every answer, is "
                "learned as the end of answers of {n} rows"
            )
        elif i + 1 < len(self.conversation.messages):
            self._add(
                "the chat template writes no end of turn after answers that other messages "
                "follow: in {n} rows only the last answer, which ends in EOS, teaches to stop"
            )

    def _notice_lead(self, lead: str) -> None:
        if self.template.has_generation_prompt:
            self._add(
                f"the chat template writes {lead!r} before answers of {{n}} rows, and it is "
                "learned with them"
            )
        else:
            self._add(
                f"the chat template has no generation prompt, so the header {lead!r} is learned "
                "with the answers of {n} rows; add {% if add_generation_prompt %} to it"
            )

    def _notice_unmarked_end(self, ranges: list[tuple[int, int]]) -> None:
        text, mark = self.rendered.text, self.template.end_of_turn
        if mark and any(text.startswith(mark, _after_space(text, end)) for _, end in ranges):
            self._add(
                f"the {{% generation %}} blocks of the chat template leave out the end of turn "
                f"({mark!r}); it is learned all the same, in {{n}} rows"
            )

    def _add(self, notice: str) -> None:
        self.notices.add(notice, self.where)


def _other_prompt(i: int, before: Prefix, text: str) -> BadRow:
    near = text[max(before.common - CONTEXT, 0) : before.common + CONTEXT]
    return BadRow(
        f"message {i + 1}: the prompt that the chat template gives for generation "
        f"({before.near!r}) is not the one that it writes before the answer ({near!r}), so no loss "
        "mask can be found",
        LEARN_ALL,
    )


def _places(text: str, content: str, start: int, end: int) -> list[int]:
    """Where `content` begins between `start` and `end`; the first MAX_PLACES."""
    places, at = [], text.find(content, start, end)
    while at >= 0 and len(places) < MAX_PLACES:
        places.append(at)
        at = text.find(content, at + 1, end)
    return places


def _after_space(text: str, at: int) -> int:
    """The first character from `at` on that is not white space."""
    return SPACE.match(text, at).end()  # type: ignore[union-attr]
