"""A chat template as a function of messages, with what no template says of itself.

Templates differ in what they expect and do not say so: content as text or as a list of parts,
what ends a turn, whether there is a prompt for generation. A few conversations of words that
stand nowhere else tell: they are rendered once, when the template is opened. Every row is
checked on its own text as well (`contents.py`, `mask.py`), whatever was found here.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from lorica.data.conversation import Conversation
from lorica.data.row_format import BadRow
from lorica.data.template_sandbox import common_length
from lorica.data.template_worker import Compiled, Overrun, Refused, compile_template, render_all
from lorica.errors import DataError, closest, listed

MEND = "mend chat_template.jinja (or chat_template in tokenizer_config.json), or pass another: "
MEND += "data.chat_template: FILE"
HEADER = re.compile(r"[^\w\s]*\b(user|human|system|tool|observation)\b", re.IGNORECASE)
RESERVED = ("messages", "tools", "documents", "add_generation_prompt")
WORDS = {"user": "Qvexalu", "assistant": "Zorbimat", "system": "Wudrinop", "tool": "Kyfestra"}
CALL = {"type": "function", "function": {"name": "Xuplendi", "arguments": {}}}
# Roles whose content is given as a list of parts, in the order in which they are tried.
PARTS: tuple[frozenset[str], ...] = (
    frozenset(),
    frozenset({"user", "assistant"}),
    frozenset({"user"}),
    frozenset({"assistant"}),
)


@dataclass(frozen=True)
class Cut:
    """The text of the first messages, held against the text of all of them."""

    length: int  # characters
    common: int  # of them, how many the whole text begins with
    near: str  # the text around the first difference

    @property
    def is_prefix(self) -> bool:
        return self.common == self.length


@dataclass(frozen=True)
class Reply:
    """What the template makes of one conversation.

    marked: (start, end) of what the template's {% generation %} blocks enclose.
    before, through: of each learned answer, the text that generation is given, and the text
        that ends with the answer; empty for a template that marks its answers itself.
    """

    text: str
    marked: list[tuple[int, int]]
    before: list[Cut] = field(default_factory=list)
    through: list[Cut] = field(default_factory=list)
    dated: bool = False  # it holds today's date


class ChatTemplate:
    """One template, compiled and probed.

    parts: the roles whose content it takes as a list of parts.
    end: what it writes behind every answer; None where that could not be found out.
    opens: whether it has a prompt for generation.
    """

    def __init__(self, source: str, special: dict[str, str], kwargs: dict[str, Any] | None = None):
        self._source = source
        self._shared = {**special, **(kwargs or {}), "documents": None}
        try:
            self.compiled: Compiled = compile_template(source)
        except Overrun as error:
            raise _endless(error) from None
        except Refused as error:
            raise DataError(
                "the tokenizer's chat template cannot be read.",
                reason=str(error),
                line=error.line or "unknown",
                fix=MEND,
            ) from None
        _known(kwargs or {}, self.compiled)
        self.parts: frozenset[str] = frozenset()
        self.end: str | None = None
        self.opens = True
        self._probe()

    @property
    def marks(self) -> bool:
        return self.compiled.marks

    def replies(self, talks: Sequence[Conversation]) -> list[Reply | BadRow]:
        """What the template makes of each conversation; a BadRow where it refuses one.

        Raises: DataError if the template does not end.
        """
        jobs = [self._job(talk, [] if self.marks else _cuts(talk)) for talk in talks]
        return [_reply(answer) for answer in self._render(jobs)]

    def prompt(self, messages: list[dict[str, Any]], tools: list[Any] | None = None) -> str:
        """The text of the messages, up to where the assistant begins to speak.

        Raises: BadRow if the template refuses the messages; DataError if it does not end.
        """
        job = self._job(Conversation(messages, [False] * len(messages), tools), [])
        job["given"]["add_generation_prompt"] = True
        (reply,) = map(_reply, self._render([job]))
        if isinstance(reply, BadRow):
            raise reply
        return reply.text

    def _job(
        self, talk: Conversation, cuts: list[tuple[int, bool]], parts: frozenset[str] | None = None
    ) -> dict[str, Any]:
        parts = self.parts if parts is None else parts
        messages = [_in_parts(m) if m["role"] in parts else m for m in talk.messages]
        given = {
            **talk.kwargs,
            "messages": messages,
            "tools": talk.tools,
            "add_generation_prompt": False,
        }
        return {"given": given, "cuts": cuts}

    def _render(self, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        try:
            return render_all(self._source, self._shared, jobs)
        except Overrun as error:
            raise _endless(error) from None
        except (ValueError, RecursionError) as error:  # one of them is no JSON
            if len(jobs) == 1:
                return [{"refused": f"{type(error).__name__}: {error}"}]
            return [answer for job in jobs for answer in self._render([job])]

    def _probe(self) -> None:
        """Find out how the template takes content, and what it writes around an answer."""
        turn = [_word("user"), _word("assistant")]
        for parts in PARTS:
            reply = self._try(turn, parts, [(1, True), (1, False)])
            if reply and all(WORDS[m["role"]] in reply.text for m in turn) and _plain(reply.text):
                self.parts = parts
                break
        else:
            return
        opened, closed = reply.before[0], reply.through[0]
        self.opens = opened.length > closed.length
        again = self._try([*turn, *turn], self.parts, [])
        if again and WORDS["assistant"] in again.text:
            self.end = _common_end(reply.text, again.text)
        call = {"role": "assistant", "content": "", "tool_calls": [CALL]}
        for role, talk in (
            ("system", [_word("system"), *turn]),
            ("tool", [turn[0], call, _word("tool"), turn[1]]),
        ):
            for parts in (self.parts, self.parts ^ {role}):
                found = self._try(talk, parts, [])
                if found and WORDS[role] in found.text and _plain(found.text):
                    self.parts = parts
                    break

    def _try(
        self, messages: list[dict[str, Any]], parts: frozenset[str], cuts: list[tuple[int, bool]]
    ) -> Reply | None:
        talk = Conversation(messages, [False] * len(messages))
        reply = _reply(self._render([self._job(talk, cuts, parts)])[0])
        return None if isinstance(reply, BadRow) else reply


class ChatTemplates:
    """The templates of a tokenizer: the one for rows with tools, and the one for all others."""

    def __init__(
        self,
        sources: str | dict[str, str],
        special: dict[str, str],
        kwargs: dict[str, Any] | None = None,
    ):
        self._sources = {"default": sources} if isinstance(sources, str) else sources
        self._special, self._kwargs = special, kwargs or {}

    def for_tools(self, tools: list[Any] | None) -> ChatTemplate:
        """Raises: DataError if none of several is named default."""
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

    Raises: DataError if there is none.
    """
    sources = tokenizer.chat_template
    if isinstance(sources, dict) and override in sources:
        sources = sources[override]
    elif override is not None:
        if "{" not in override:
            known = list(sources) if isinstance(sources, dict) else []
            raise DataError(
                f"data.chat_template is {override!r}, and the base has no template of that name.",
                known=listed(known, 12),
                fix="name a file, or give the Jinja text itself",
            )
        sources = override
    if not sources:
        raise DataError(
            "the rows are conversations, but the base's tokenizer has no chat template.",
            fix="choose a base with one, or pass one with data.chat_template: FILE, or save one "
            "as chat_template.jinja beside the base's tokenizer.json, or write the rows as "
            "prompt and completion",
        )
    special = {k: v for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str)}
    return ChatTemplates(sources, special, kwargs)


def _known(kwargs: dict[str, Any], compiled: Compiled) -> None:
    """Raises: DataError for variables that the template does not read, or that are the row's."""
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


def _word(role: str) -> dict[str, Any]:
    return {"role": role, "content": WORDS[role]}


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    return message | {"content": [{"type": "text", "text": message["content"]}]}


def _plain(text: str) -> bool:
    """A list of parts was not printed as Python shows it."""
    return "'type': 'text'" not in text and '"type": "text"' not in text


def _cuts(talk: Conversation) -> list[tuple[int, bool]]:
    return [cut for i in talk.answers for cut in ((i, True), (i + 1, False))]


def _reply(answer: dict[str, Any]) -> Reply | BadRow:
    if "refused" in answer:
        return BadRow(f"the chat template refuses it ({answer['refused']})")
    cuts = [Cut(*cut) for cut in answer["cuts"]]
    marked = [(start, end) for start, end in answer["turns"]]
    return Reply(answer["text"], marked, cuts[::2], cuts[1::2], answer["dated"])


def _common_end(single: str, double: str) -> str:
    """What stands behind an answer in both texts, whatever follows: the end of turn."""
    word = WORDS["assistant"]
    one, two = single.rpartition(word)[2], double.partition(word)[2]
    head = one[: common_length(one, two)]
    if head not in (one, two):  # "<|end|>\n<|" reaches into a token that differs
        head = re.match(r"(.*[\s>\]])?", head, re.DOTALL).group()  # type: ignore[union-attr]
    header = HEADER.search(head)  # of a next turn that the template opens at once
    return (head[: header.start()] if header else head).strip()


def _endless(error: Overrun) -> DataError:
    return DataError(
        "the tokenizer's chat template does not come to an end, and was stopped.",
        reason=str(error),
        fix=f"{MEND}; a template from a stranger may mean harm; a conversation of megabytes must "
        "be cut",
    )
