"""Rows that are conversations, as text: rendered in batches, checked, and masked."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorica.data.chat_template import ChatTemplate, Reply, chat_templates
from lorica.data.config import DataConfig
from lorica.data.conversation import Conversation, conversation_of, tools_of
from lorica.data.loss_mask import WHOLE, learned_turns
from lorica.data.notices import Notices
from lorica.data.rendered_row import RenderedRow, TextSpan
from lorica.data.rendering_check import check
from lorica.data.row_format import BadRow
from lorica.data.source import Row

TEXT_FILES = (".json", ".jsonl")  # formats in which a null is one that somebody wrote


@dataclass(frozen=True)
class _Job:
    """One text to render, and the row that it belongs to."""

    row: int
    where: str
    group: str  # of several texts of one row
    template: ChatTemplate
    talk: Conversation


def conversations(
    kind: str, rows: Sequence[Row], config: DataConfig, tokenizer: Any, notices: Notices
) -> list[list[RenderedRow] | BadRow]:
    """Of each row its texts (several under data.split_turns), or why it cannot be used."""
    templates = chat_templates(tokenizer, config.chat_template, config.chat_template_kwargs)
    found: list[list[RenderedRow] | BadRow] = []
    by_template: dict[int, list[_Job]] = defaultdict(list)
    nulls = Path(config.path).suffix.lower() in TEXT_FILES
    for number, row in enumerate(rows):
        found.append([])
        try:
            tools = tools_of(row.fields, nulls=nulls)
            template = templates.for_tools(tools)
            talk = conversation_of(row.fields, tools, words=template.compiled.words, nulls=nulls)
            _check_kwargs(talk, template, row.where, notices)
            for job in _jobs(number, row, template, talk, config, notices):
                by_template[id(template)].append(job)
        except BadRow as error:
            found[-1] = error
    for jobs in by_template.values():
        replies = jobs[0].template.replies([job.talk for job in jobs])
        for job, reply in zip(jobs, replies, strict=True):
            texts = found[job.row]
            if isinstance(texts, BadRow):
                continue
            try:
                texts.append(_rendered(kind, job, reply, config, notices))
            except BadRow as error:
                found[job.row] = error
    return found


def _jobs(
    number: int,
    row: Row,
    template: ChatTemplate,
    talk: Conversation,
    config: DataConfig,
    notices: Notices,
) -> list[_Job]:
    if talk.left_out and not config.completion_only:
        raise BadRow(
            "leaves an answer out of the loss, but data.completion_only: false learns the whole "
            "conversation",
            "data.completion_only: true",
        )
    answers = talk.answers
    if answers and answers[-1] + 1 < len(talk.messages):
        notices.add(
            "{n} conversations go on after their last answer; what follows it is left out",
            row.where,
        )
        talk = talk.upto(answers[-1] + 1)
    if not config.split_turns or len(answers) < 2:
        return [_Job(number, row.where, "", template, talk)]
    return [
        _Job(number, f"{row.where} answer {i}", row.where, template, part)
        for i, part in enumerate(talk.one_answer_each(), 1)
    ]


def _check_kwargs(talk: Conversation, template: ChatTemplate, where: str, notices: Notices) -> None:
    for name in talk.kwargs:
        if name not in template.compiled.variables:
            notices.add(
                f"the chat template does not read {name!r}, which {{n}} rows set in "
                "chat_template_kwargs",
                where,
            )


def _rendered(
    kind: str, job: _Job, reply: Reply | BadRow, config: DataConfig, notices: Notices
) -> RenderedRow:
    if isinstance(reply, BadRow):
        raise reply
    talk, text, where = job.talk, reply.text, job.where
    check(text, talk, where, notices)
    if reply.dated:
        notices.add("the chat template prints today's date, so the rows' text changes with it")
    if not talk.answers:
        return RenderedRow(kind, (TextSpan(text, False),), True, where=where, group=job.group)
    try:
        turns = learned_turns(job.template, talk, reply, where, notices)
    except BadRow as error:
        if config.completion_only or WHOLE not in (error.fix or ""):
            raise
        return RenderedRow(
            kind, (TextSpan(text.rstrip(), True),), True, where=where, group=job.group
        )
    said = [talk.messages[i] for i in talk.answers]
    empty = [not m["content"].strip() and not m.get("tool_calls") for m in said]
    if len(empty) != len(turns):
        empty = [False] * len(turns)
    pieces, last = [], 0
    for turn, nothing in zip(turns, empty, strict=True):
        pieces.append(TextSpan(text[last : turn.start], not config.completion_only))
        pieces.append(TextSpan(text[turn.start : turn.end], not nothing))
        last = turn.end
    ending = text[turns[-1].stop : turns[-1].end].strip()
    segments = tuple(piece for piece in pieces if piece.text)
    return RenderedRow(kind, segments, True, None, where, ending, group=job.group)
