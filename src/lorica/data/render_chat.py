"""Render rows that are conversations: in batches, each text checked and masked."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorica.data.chat_template import ChatTemplate, chat_templates
from lorica.data.config import DataConfig
from lorica.data.conversation import Conversation, parse_conversation, parse_tools
from lorica.data.fields import BadRow
from lorica.data.loss_mask import LEARN_ALL, LossMask, Turn
from lorica.data.notices import Notices
from lorica.data.rendered_chat import RenderedChat
from lorica.data.rendered_row import Outcome, RenderedRow, TextSpan
from lorica.data.rendering_check import check_rendering
from lorica.data.source import Row

WRITTEN_NULLS = (".json", ".jsonl")  # file formats in which somebody wrote the null


@dataclass(frozen=True)
class _Job:
    """One text to render, and the row that it belongs to."""

    row: int
    where: str
    group: str  # of several texts of one row
    template: ChatTemplate
    conversation: Conversation


def render_conversations(
    kind: str, rows: Sequence[Row], config: DataConfig, tokenizer: Any, notices: Notices
) -> list[Outcome]:
    """The texts of each row (several under data.split_turns), or why it cannot be used."""
    templates = chat_templates(tokenizer, config.chat_template, config.chat_template_kwargs)
    outcomes: list[Outcome] = []
    by_template: dict[int, list[_Job]] = defaultdict(list)
    nulls = Path(config.path).suffix.lower() in WRITTEN_NULLS
    for number, row in enumerate(rows):
        outcomes.append(Outcome())
        try:
            tools = parse_tools(row.fields, nulls=nulls)
            template = templates.for_tools(tools)
            literals = template.compiled.words
            conversation = parse_conversation(row.fields, tools, literals=literals, nulls=nulls)
            _notice_unread_kwargs(conversation, template, row.where, notices)
            for job in _jobs(number, row, template, conversation, config, notices):
                by_template[id(template)].append(job)
        except BadRow as error:
            outcomes[-1].problem = error
    for jobs in by_template.values():
        texts = jobs[0].template.render_all([job.conversation for job in jobs])
        for job, rendered in zip(jobs, texts, strict=True):
            outcome = outcomes[job.row]
            if outcome.problem is None:
                try:
                    outcome.rows.append(_rendered_row(kind, job, rendered, config, notices))
                except BadRow as error:
                    outcome.problem = error
    return outcomes


def _jobs(
    number: int,
    row: Row,
    template: ChatTemplate,
    conversation: Conversation,
    config: DataConfig,
    notices: Notices,
) -> list[_Job]:
    if conversation.has_unlearned_answer and not config.completion_only:
        raise BadRow(
            "leaves an answer out of the loss, but data.completion_only: false learns the whole "
            "conversation",
            "data.completion_only: true",
        )
    answers = conversation.learned_indices
    if answers and answers[-1] + 1 < len(conversation.messages):
        notices.add(
            "{n} conversations go on after their last answer; what follows it is left out",
            row.where,
        )
        conversation = conversation.first(answers[-1] + 1)
    if not config.split_turns or len(answers) < 2:
        return [_Job(number, row.where, "", template, conversation)]
    return [
        _Job(number, f"{row.where} answer {i}", row.where, template, part)
        for i, part in enumerate(conversation.split_by_answer(), 1)
    ]


def _notice_unread_kwargs(
    conversation: Conversation, template: ChatTemplate, where: str, notices: Notices
) -> None:
    for name in conversation.kwargs:
        if name not in template.compiled.variables:
            notices.add(
                f"the chat template does not read {name!r}, which {{n}} rows set in "
                "chat_template_kwargs",
                where,
            )


def _rendered_row(
    kind: str, job: _Job, rendered: RenderedChat, config: DataConfig, notices: Notices
) -> RenderedRow:
    """Raises: BadRow if the text lacks part of the row, or has no loss mask."""
    rendered.check()
    conversation, text, where = job.conversation, rendered.text, job.where
    check_rendering(text, conversation, where, notices)
    if rendered.dated:
        notices.add("the chat template prints today's date, so the rows' text changes with it")
    if not conversation.learned_indices:
        return RenderedRow(kind, (TextSpan(text, False),), True, where=where, group=job.group)
    try:
        turns = LossMask(job.template, conversation, rendered, where, notices).turns()
    except BadRow as error:
        if config.completion_only or LEARN_ALL not in (error.fix or ""):
            raise
        spans = (TextSpan(text.rstrip(), True),)
        return RenderedRow(kind, spans, True, where=where, group=job.group)
    spans = _spans(text, turns, _empty_answers(conversation, turns), config.completion_only)
    ending = text[turns[-1].stop : turns[-1].end].strip()
    return RenderedRow(kind, spans, True, where=where, ending=ending, group=job.group)


def _empty_answers(conversation: Conversation, turns: list[Turn]) -> list[bool]:
    """Which turns have neither content nor tool calls: they teach the model to say nothing."""
    answers = [conversation.messages[i] for i in conversation.learned_indices]
    empty = [not m["content"].strip() and not m.get("tool_calls") for m in answers]
    return empty if len(empty) == len(turns) else [False] * len(turns)


def _spans(
    text: str, turns: list[Turn], empty: list[bool], completion_only: bool
) -> tuple[TextSpan, ...]:
    """The text up to the last turn, cut into turns and what is between them."""
    spans, end = [], 0
    for turn, is_empty in zip(turns, empty, strict=True):
        spans.append(TextSpan(text[end : turn.start], not completion_only))
        spans.append(TextSpan(text[turn.start : turn.end], not is_empty))
        end = turn.end
    return tuple(span for span in spans if span.text)
