"""A chat template, compiled in the sandbox and probed for what it does not declare.

Templates differ in ways that no field describes: whether content is text or a list of parts, what
ends a turn, whether there is a generation prompt. `ChatTemplate` renders a few conversations of
invented words once, to find out. Every row is checked on its own text as well
(`rendering_check.py`, `loss_mask.py`).
"""

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from lorica.data.conversation import Conversation
from lorica.data.fields import as_object
from lorica.data.rendered_chat import RenderedChat
from lorica.data.template_sandbox import common_length
from lorica.data.template_worker import (
    Compiled,
    Overrun,
    Refused,
    compile_template,
    render_all,
)
from lorica.errors import DataError, closest, listed

FIX = "correct chat_template.jinja (or chat_template in tokenizer_config.json), or pass another: "
FIX += "data.chat_template: FILE"
ROLE_HEADER = re.compile(r"[^\w\s]*\b(user|human|system|tool|observation)\b", re.IGNORECASE)
RESERVED = ("messages", "tools", "documents", "add_generation_prompt")
PROBE_WORDS = {
    "user": "Qvexalu",
    "assistant": "Zorbimat",
    "system": "Wudrinop",
    "tool": "Kyfestra",
}
PROBE_CALL = {"type": "function", "function": {"name": "Xuplendi", "arguments": {}}}
# Roles whose content the template takes as a list of parts; tried in this order.
ROLES_WITH_PARTS: tuple[frozenset[str], ...] = (
    frozenset(),
    frozenset({"user", "assistant"}),
    frozenset({"user"}),
    frozenset({"assistant"}),
)


class ChatTemplate:
    """One template, compiled and probed.

    roles_with_parts: the roles whose content it takes as a list of parts.
    end_of_turn: what it writes after every answer; None if that is not known.
    has_generation_prompt: whether it reads add_generation_prompt.
    """

    def __init__(self, source: str, special: dict[str, str], kwargs: dict[str, Any] | None = None):
        self._source = source
        self._shared = {**special, **(kwargs or {}), "documents": None}
        try:
            self.compiled: Compiled = compile_template(source)
        except Overrun as error:
            raise _overrun(error) from None
        except Refused as error:
            raise DataError(
                "the tokenizer's chat template cannot be read.",
                reason=str(error),
                line=error.line or "unknown",
                fix=FIX,
            ) from None
        _check_kwargs(kwargs or {}, self.compiled)
        self.roles_with_parts: frozenset[str] = frozenset()
        self.end_of_turn: str | None = None
        self.has_generation_prompt = True
        self._probe()

    @property
    def marks_answers(self) -> bool:
        """Whether it has {% generation %} blocks."""
        return self.compiled.marks

    def render_all(self, conversations: Sequence[Conversation]) -> list[RenderedChat]:
        """The text of each conversation, or why the template refuses it.

        Raises: DataError if the template does not come to an end.
        """
        jobs = [self._job(c, [] if self.marks_answers else _cuts(c)) for c in conversations]
        return [RenderedChat.from_answer(answer) for answer in self._run(jobs)]

    def prompt(self, messages: list[dict[str, Any]], tools: list[Any] | None = None) -> str:
        """The text of the messages with the generation prompt.

        Raises: BadRow if the template refuses the messages; DataError if it does not end.
        """
        job = self._job(Conversation(messages, [False] * len(messages), tools), [])
        job["given"]["add_generation_prompt"] = True
        (rendered,) = map(RenderedChat.from_answer, self._run([job]))
        rendered.check()
        return rendered.text

    def _job(
        self,
        conversation: Conversation,
        cuts: list[tuple[int, bool]],
        with_parts: frozenset[str] | None = None,
    ) -> dict[str, Any]:
        with_parts = self.roles_with_parts if with_parts is None else with_parts
        messages = [
            _content_as_parts(m) if m["role"] in with_parts else m for m in conversation.messages
        ]
        given = {
            **conversation.kwargs,
            "messages": messages,
            "tools": conversation.tools,
            "add_generation_prompt": False,
        }
        return {"given": given, "cuts": cuts}

    def _run(self, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        try:
            return render_all(self._source, self._shared, jobs)
        except Overrun as error:
            raise _overrun(error) from None
        except (ValueError, RecursionError) as error:  # some job is not JSON; find out which
            if len(jobs) == 1:
                return [{"refused": f"{type(error).__name__}: {error}"}]
            return [answer for job in jobs for answer in self._run([job])]

    def _probe(self) -> None:
        """Find out how the template takes content, and what it writes around an answer."""
        turn = [_probe_message("user"), _probe_message("assistant")]
        for with_parts in ROLES_WITH_PARTS:
            single = self._try(turn, with_parts, [(1, True), (1, False)])
            if _contains(single, "user") and _contains(single, "assistant"):
                self.roles_with_parts = with_parts
                break
        else:
            return
        self.has_generation_prompt = single.before[0].length > single.through[0].length
        double = self._try([*turn, *turn], self.roles_with_parts, [])
        if PROBE_WORDS["assistant"] in double.text:
            self.end_of_turn = _common_end(single.text, double.text)
        call = {"role": "assistant", "content": "", "tool_calls": [PROBE_CALL]}
        for role, messages in (
            ("system", [_probe_message("system"), *turn]),
            ("tool", [turn[0], call, _probe_message("tool"), turn[1]]),
        ):
            for with_parts in (self.roles_with_parts, self.roles_with_parts ^ {role}):
                if _contains(self._try(messages, with_parts, []), role):
                    self.roles_with_parts = with_parts
                    break

    def _try(
        self,
        messages: list[dict[str, Any]],
        with_parts: frozenset[str],
        cuts: list[tuple[int, bool]],
    ) -> RenderedChat:
        conversation = Conversation(messages, [False] * len(messages))
        return RenderedChat.from_answer(self._run([self._job(conversation, cuts, with_parts)])[0])


class ChatTemplates:
    """The templates of a tokenizer: one for rows with tools, one for all other rows."""

    def __init__(
        self,
        sources: dict[str, str],
        special: dict[str, str],
        kwargs: dict[str, Any] | None = None,
    ):
        self._sources, self._special, self._kwargs = sources, special, kwargs or {}
        self._opened: dict[bool, ChatTemplate] = {}  # by whether there are tools

    def for_tools(self, tools: list[Any] | None) -> ChatTemplate:
        """Raises: DataError if there are several templates, and none is named default."""
        has_tools = bool(tools)
        if has_tools not in self._opened:
            self._opened[has_tools] = self._open(has_tools)
        return self._opened[has_tools]

    def _open(self, tools: bool) -> ChatTemplate:
        names = ("tool_use", "default") if tools else ("default",)
        source = next((self._sources[n] for n in names if n in self._sources), None)
        if source is None and len(self._sources) == 1:
            (source,) = self._sources.values()
        if source is None:
            known = list(self._sources)
            raise DataError(
                "the tokenizer has several chat templates, and none is named default.",
                known=listed(known, 12),
                fix=f"data.chat_template: {known[0]}",
            )
        return _opened(source, json.dumps(self._special), json.dumps(self._kwargs, default=str))


@lru_cache(maxsize=32)
def _opened(source: str, special: str, kwargs: str) -> ChatTemplate:
    return ChatTemplate(source, json.loads(special), json.loads(kwargs))


def chat_templates(
    tokenizer: Any, override: str | None = None, kwargs: dict[str, Any] | None = None
) -> ChatTemplates:
    """The tokenizer's templates, or `override`: a template, or the name of one of them.

    Raises: DataError if there is no template.
    """
    own = tokenizer.chat_template
    named = as_object(own) or {}
    source = named.get(override, override) if override is not None else own
    if override is not None and override not in named and "{" not in override:
        raise DataError(
            f"data.chat_template is {override!r}, and the base has no template of that name.",
            known=listed(named, 12),
            fix="name a file, or give the Jinja text itself",
        )
    if not source:
        raise DataError(
            "the rows are conversations, but the base's tokenizer has no chat template.",
            fix="choose a base with one, or pass one with data.chat_template: FILE, or save one "
            "as chat_template.jinja beside the base's tokenizer.json, or write the rows as "
            "prompt and completion",
        )
    special = {k: v for k, v in tokenizer.special_tokens_map.items() if type(v) is str}
    return ChatTemplates(as_object(source) or {"default": source}, special, kwargs)


def _check_kwargs(kwargs: dict[str, Any], compiled: Compiled) -> None:
    """Raises: DataError for variables that the template does not read, or that the row sets."""
    wrong = [name for name in kwargs if name in RESERVED or name not in compiled.variables]
    if wrong:
        known = sorted(compiled.variables - {*RESERVED, "raise_exception", "strftime_now"})
        raise DataError(
            f"data.chat_template_kwargs sets {listed(map(repr, wrong))}, which the chat template "
            "does not read.",
            closest="; ".join(closest(name, known) for name in wrong),
            known=listed(known, 12),
            fix="correct the name, or leave it out",
        )


def _probe_message(role: str) -> dict[str, Any]:
    return {"role": role, "content": PROBE_WORDS[role]}


def _contains(rendered: RenderedChat, role: str) -> bool:
    """The role's word is in the text, and no list of parts was printed as Python shows it."""
    text = rendered.text
    raw_parts = "'type': 'text'" in text or '"type": "text"' in text
    return PROBE_WORDS[role] in text and not raw_parts


def _content_as_parts(message: dict[str, Any]) -> dict[str, Any]:
    return message | {"content": [{"type": "text", "text": message["content"]}]}


def _cuts(conversation: Conversation) -> list[tuple[int, bool]]:
    """(number of messages, with generation prompt): before and through each learned answer."""
    return [cut for i in conversation.learned_indices for cut in ((i, True), (i + 1, False))]


def _common_end(single: str, double: str) -> str:
    """The end of turn: what follows the answer in both texts, whatever comes after it."""
    word = PROBE_WORDS["assistant"]
    last, followed = single.rpartition(word)[2], double.partition(word)[2]
    common = last[: common_length(last, followed)]
    if common not in (last, followed):  # "<|end|>\n<|" reaches into a token that differs
        common = re.match(r"(.*[\s>\]])?", common, re.DOTALL).group()  # type: ignore[union-attr]
    header = ROLE_HEADER.search(common)  # of a next turn that the template opens at once
    return (common[: header.start()] if header else common).strip()


def _overrun(error: Overrun) -> DataError:
    return DataError(
        "the tokenizer's chat template does not come to an end, and was stopped.",
        reason=str(error),
        fix=f"{FIX}; a template from a stranger may be malicious; a conversation of megabytes "
        "must be shortened",
    )
