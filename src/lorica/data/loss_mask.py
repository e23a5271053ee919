"""Which of a conversation's text is learned: each answer with its end of turn, and no header.

A template says nowhere what the assistant wrote. Two ways find it:

1. the template marks it itself, with `{% generation %}`;
2. the text of `messages[:i]` with the prompt for generation is a prefix of the text of
   `messages[:i + 1]`: what follows the prefix is turn i, exactly as generation will see it.

Where neither holds there is no mask, and that is an error: a mask that is guessed (say, by
looking for the content in the text) would train on another prompt than generation gives.
Whatever was found, the answer must stand in it. The end of turn behind the answer is learned
too, also where the template's own marks leave it out; what follows that is not.
"""

import re
from dataclasses import dataclass

from lorica.data.chat_template import ChatTemplate, Cut, Reply
from lorica.data.conversation import Conversation
from lorica.data.notices import Notices
from lorica.data.rendering_check import forms
from lorica.data.row_format import BadRow
from lorica.data.template_sandbox import AROUND

WHOLE = "data.completion_only: false learns the whole conversation"
SPACE = re.compile(r"\s*")
SPLIT = "data.split_turns: true makes one row of each answer"


@dataclass(frozen=True)
class Turn:
    """A learned stretch of the conversation's text, in characters.

    stop: where the answer ends and the end of turn begins.
    """

    start: int
    stop: int
    end: int


def learned_turns(
    template: ChatTemplate, talk: Conversation, reply: Reply, where: str, notices: Notices
) -> list[Turn]:
    """The turn of each learned answer of `talk`, in order.

    Raises: BadRow if there is no mask, or an answer does not stand in its own turn.
    """
    if template.marks:
        spans = _marked(template, talk, reply, where, notices)
        if len(spans) != len(talk.answers):  # blocks of the template's own making
            return [_extended(template, reply.text, *span) for span in spans]
    else:
        spans = _by_prefix(template, talk, reply)
    pairs = zip(talk.answers, spans, strict=True)
    return [_turn(template, talk, reply, i, span, where, notices) for i, span in pairs]


def _marked(
    template: ChatTemplate, talk: Conversation, reply: Reply, where: str, notices: Notices
) -> list[tuple[int, int]]:
    """What the template's blocks enclose, of the learned answers."""
    if not reply.marked:
        raise BadRow("the chat template's {% generation %} blocks mark nothing in it", WHOLE)
    said = [i for i, m in enumerate(talk.messages) if m["role"] == "assistant"]
    if len(said) == len(reply.marked):
        spans = [s for i, s in zip(said, reply.marked, strict=True) if talk.learned[i]]
    elif len(said) == len(talk.answers):
        spans = reply.marked
    else:
        raise BadRow(
            f"the chat template marks {len(reply.marked)} stretches of {len(said)} answers, so "
            "that those which are not to be learned cannot be told apart",
            "pass a template with one {% generation %} block an answer, data.chat_template: FILE",
        )
    covered = "".join(reply.text[start:end] for start, end in reply.marked)
    for i in talk.answers:
        if not any(form.strip() in covered for form in forms(talk.messages[i])):
            raise BadRow(
                f"message {i + 1}: the {{% generation %}} blocks of the chat template leave its "
                "answer out",
                "pass another template, data.chat_template: FILE",
            )
    end = template.end
    if end and any(reply.text.startswith(end, _past_space(reply.text, s)) for _, s in spans):
        notices.add(
            f"the {{% generation %}} blocks of the chat template leave out the end of turn "
            f"({end!r}); it is learned all the same, in {{n}} rows",
            where,
        )
    return spans


def _by_prefix(template: ChatTemplate, talk: Conversation, reply: Reply) -> list[tuple[int, int]]:
    spans = []
    for i, before, through in zip(talk.answers, reply.before, reply.through, strict=True):
        whole = i + 1 == len(talk.messages)
        start, end = before.length, len(reply.text) if whole else through.common
        changed = not through.is_prefix and not _holds_answer(template, talk, reply, i, start, end)
        if changed and (before.is_prefix or before.common == through.common):
            raise BadRow(
                f"message {i + 1}: the chat template writes it differently once others follow, "
                "so no loss mask can be found",
                f"{SPLIT}; or {WHOLE}",
            )
        if not before.is_prefix:
            raise _other_prompt(i, before, reply.text)
        spans.append((start, end))
    return spans


def _holds_answer(
    template: ChatTemplate, talk: Conversation, reply: Reply, i: int, start: int, end: int
) -> bool:
    """The answer and its end of turn stand before `end`, from where on the texts differ."""
    if not template.end:
        return False
    stop = _answer_in(template, talk, reply.text, i, start, end)
    if stop is None:
        return False
    at = _past_space(reply.text, stop[1])
    return at + len(template.end) <= end and reply.text.startswith(template.end, at)


def _other_prompt(i: int, before: Cut, text: str) -> BadRow:
    near = text[max(before.common - AROUND, 0) : before.common + AROUND]
    return BadRow(
        f"message {i + 1}: what the chat template gives for generation ({before.near!r}) is not "
        f"how it writes the same conversation with the answer ({near!r}), so no loss mask can be "
        "found",
        WHOLE,
    )


def _answer_in(
    template: ChatTemplate, talk: Conversation, text: str, i: int, start: int, end: int
) -> tuple[int, int] | None:
    """(first, last) character of the answer, which ends between `start` and `end`."""
    for form in forms(talk.messages[i]):
        for content in (form, form.strip()):
            if not content:
                continue
            places = _places(text, content, max(start - len(content) + 1, 0), end)
            ended = [p for p in places if _is_ended(template, text, p + len(content), end)]
            if found := ended[:1] or places[-1:]:
                return found[0], found[0] + len(content)
    return None


def _places(text: str, content: str, start: int, end: int) -> list[int]:
    places, at = [], text.find(content, start, end)
    while at >= 0 and len(places) < 1000:
        places.append(at)
        at = text.find(content, at + 1, end)
    return places


def _is_ended(template: ChatTemplate, text: str, at: int, end: int) -> bool:
    if template.end:
        return text.startswith(template.end, _past_space(text, at))
    return not text[at:end].strip()


def _turn(
    template: ChatTemplate,
    talk: Conversation,
    reply: Reply,
    i: int,
    span: tuple[int, int],
    where: str,
    notices: Notices,
) -> Turn:
    text, (start, end), message = reply.text, span, talk.messages[i]
    calls = bool(message.get("tool_calls"))
    answer = _answer_in(template, talk, text, i, start, end)
    if answer is None and message["content"].strip() and not calls:
        raise BadRow(
            f"message {i + 1}: its answer does not stand where the chat template writes the turn",
            WHOLE,
        )
    turn = _extended(template, text, answer[1] if answer else start, end, start)
    if answer and not calls and "think" not in text[start : answer[0]]:
        _notice_lead(template, text[start : answer[0]].strip(), where, notices)
    last = i + 1 == len(talk.messages)
    ended = bool(template.end) and text[: turn.end].endswith(template.end or "")
    if template.end is not None and answer and not calls and not ended:
        _notice_end(text[turn.stop : turn.end].strip(), last, where, notices)
    return turn


def _extended(
    template: ChatTemplate, text: str, stop: int, end: int, start: int | None = None
) -> Turn:
    """The turn up to and with the end of turn that follows the answer, or what encloses it."""
    if start is None:
        start, stop = stop, end
    close = max(start + len(text[start:end].rstrip()), stop)
    mark = template.end
    if not mark:
        return Turn(start, stop if stop > start else close, close)
    after, behind = _past_space(text, stop), _past_space(text, close)
    if text.startswith(mark, after):
        close = after + len(mark)
    elif text[stop:close].endswith(mark):
        pass
    elif text.startswith(mark, behind):
        close = behind + len(mark)
    return Turn(start, stop if stop > start else close, close)


def _past_space(text: str, at: int) -> int:
    return SPACE.match(text, at).end()  # type: ignore[union-attr]


def _notice_lead(template: ChatTemplate, lead: str, where: str, notices: Notices) -> None:
    if not lead:
        return
    if template.opens:
        notices.add(
            f"the chat template writes {lead!r} before answers of {{n}} rows, and it is "
            "learned with them",
            where,
        )
    else:
        notices.add(
            f"the chat template has no prompt for generation, so that the header {lead!r} is "
            "learned with the answers of {n} rows; add {% if add_generation_prompt %} to it",
            where,
        )


def _notice_end(tail: str, last: bool, where: str, notices: Notices) -> None:
    if tail:
        notices.add(
            f"{tail!r}, which the chat template does not write behind every answer, is "
            "learned as the end of answers of {n} rows",
            where,
        )
    elif not last:
        notices.add(
            "the chat template writes no end of turn behind answers that others follow: in {n} "
            "rows only the last answer, at whose end EOS stands, teaches to stop",
            where,
        )
