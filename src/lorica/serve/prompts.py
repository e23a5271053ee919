"""The prompts of a served model: in the format that its adapter was trained with, and no other."""

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

from lorica.base.load import LoadedModel
from lorica.data.prompt_format import PromptFormat
from lorica.data.rendered_row import RenderedRow, TextSpan
from lorica.data.template_worker import rendering_by
from lorica.data.text_encoder import TextEncoder
from lorica.errors import DataError, counted
from lorica.generation.prompts import (
    end_of_turn,
    prompt_format_of,
    render_messages,
    uses_system_message,
)
from lorica.generation.stops import Stops, stops_of
from lorica.serve.control_tokens import ControlTokens
from lorica.serve.exchange import Job
from lorica.serve.refusals import InvalidRequest
from lorica.serve.served_templates import ServedTemplates, Stopped

ROLES = ("system", "user", "assistant")


class Prompts:
    """loaded: the base. form: of the adapter's training; None: the base's own chat template.

    most_characters: of a text; a longer one is refused before it is encoded, which takes seconds.
    templates: what renders them, with limits; by default this process's worker.
    The tokenizer is a copy that shares its vocabulary with the base's: it holds the template.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        form: PromptFormat | None,
        *,
        most_characters: int | None = None,
        templates: ServedTemplates | None = None,
    ):
        tokenizer = copy.copy(loaded.tokenizer)
        if form is not None and form.kind == "chat":
            tokenizer.chat_template = form.template
        self._view = replace(loaded, tokenizer=tokenizer, prompt_format=form)
        self._encoder = TextEncoder(tokenizer)
        self.form = prompt_format_of(self._view)
        self._most, self._templates = most_characters, templates
        turn = [end_of_turn(self._view)] if self.is_chat else ()
        written = [str(self.form.template), *turn]
        self._control = ControlTokens(tokenizer, self._encoder, written)
        is_trained_on_chats = form is not None and form.kind == "chat"
        self._stops = {
            False: stops_of(self._view, turn if is_trained_on_chats else ()),
            True: stops_of(self._view, turn),
        }

    @property
    def is_chat(self) -> bool:
        """Whether a message can be written in a format: a chat template, Alpaca's text or another
        template."""
        return self.form.kind in ("chat", "alpaca") or self.form.template is not None

    def encode(self, prompt: str) -> tuple[int, ...]:
        """Token ids of a plain prompt, in which special tokens are tokens.

        Raises: InvalidRequest if it is too long.
        """
        self._check_size(len(prompt), "prompt")
        return self._ids(RenderedRow("prompt", (TextSpan(prompt, False),), False))

    def encode_chat(
        self, messages: Sequence[Mapping[str, str]], template: str | None = None
    ) -> tuple[int, ...]:
        """Token ids of a conversation, up to where the answer begins.

        template: one that the client wants. Raises: InvalidRequest if it is not that of the
        training, or the conversation has no place in the format, or writes control tokens.
        """
        if template is not None and template != self.form.template:
            raise InvalidRequest(
                "the chat template of the request is not the one that this model was trained with.",
                fix="leave chat_template out: the server uses the template of the training",
                param="chat_template",
            )
        self._check(messages)
        self._check_size(sum(len(message["content"]) for message in messages), "messages")
        self._control.check(messages)
        row = self._rendered(messages)
        self._check_size(len(row.prompt), "messages")
        return self._ids(row)

    def stops(self, chat: bool, strings: Sequence[str] = ()) -> Stops:
        """What ends an answer: the model's stops, the end of the turn, and `strings`."""
        own = self._stops[chat]
        return replace(own, strings=(*own.strings, *strings)) if strings else own

    def _check(self, messages: Sequence[Mapping[str, str]]) -> None:
        if not self.is_chat:
            raise InvalidRequest(
                "this model has no chat template: it was not made for conversations.",
                fix="use /v1/completions with a prompt",
                param="messages",
            )
        roles = [message["role"] for message in messages]
        if unknown := [role for role in roles if role not in ROLES]:
            raise InvalidRequest(
                f"a message has the role {unknown[0]!r:.40}.",
                fix=f"use {', '.join(ROLES)}",
                param="messages",
            )
        if not roles or roles[-1] != "user":
            raise InvalidRequest(
                "the last message must be the user's.",
                fix="end messages with one of role user",
                param="messages",
            )
        if self.form.kind == "chat":
            return
        if len(roles) > 1 + (roles[0] == "system"):
            raise InvalidRequest(
                f"the adapter was trained with {self.form.name}, which has one message for each "
                "answer: it would not see the earlier ones.",
                fix="send the last message alone",
                param="messages",
            )
        if roles[0] == "system" and not uses_system_message(self.form):
            raise InvalidRequest(
                f"the adapter was trained with {self.form.name}, which has no place for a system "
                "message.",
                fix="leave it out",
                param="messages",
            )

    def _check_size(self, count: int, param: str) -> None:
        if self._most is not None and count > self._most:
            raise InvalidRequest(
                f"the prompt has {count:,} characters; more than {self._most:,} do not fit into "
                "the context.",
                fix="shorten the prompt",
                param=param,
            )

    def _rendered(self, messages: Sequence[Mapping[str, str]]) -> RenderedRow:
        """Raises: InvalidRequest if the template refuses the messages, or takes too long."""
        limited = nullcontext() if self._templates is None else rendering_by(self._templates)
        try:
            with limited:
                return render_messages(self._view, [dict(m) for m in messages])
        except DataError as error:
            raise InvalidRequest(error.what, fix=error.fix, param="messages") from None
        except Stopped:
            raise InvalidRequest(
                f"the template of this model (sha256 {self.form.digest[:12]}) took too long for "
                "these messages, and was stopped.",
                fix="shorten them; if that does not help, ask the operator: the template came "
                "with the adapter",
                param="messages",
            ) from None

    def _ids(self, row: RenderedRow) -> tuple[int, ...]:
        (ids,) = self._encoder.ids([row.prompt])
        return tuple(self._encoder.with_front(ids, special=row.special)[0])


def check_job(job: Job, max_length: int, vocabulary: int) -> None:
    """Raises: InvalidRequest if the prompt, or prompt and answer, have no place.

    max_length: tokens of prompt and answer together. vocabulary: token ids of the model.
    """
    count, most = len(job.prompt), job.sampling.max_new_tokens
    if not count:
        raise InvalidRequest("the prompt is empty.", fix="write at least one word", param="prompt")
    if count >= max_length:
        raise InvalidRequest(
            f"the prompt has {counted(count, 'token')}; prompt and answer may have "
            f"{max_length:,} together.",
            fix="shorten the prompt",
            param="prompt",
        )
    if not 0 <= min(job.prompt) <= max(job.prompt) < vocabulary:
        raise InvalidRequest(
            f"the prompt has token ids outside of the vocabulary of {vocabulary:,}.",
            fix="send text, or ids of this model's tokenizer",
            param="prompt",
        )
    if count + most > max_length:
        raise InvalidRequest(
            f"the prompt has {counted(count, 'token')} and max_tokens is {most:,}; together "
            f"they may have {max_length:,}.",
            fix=f"set max_tokens to {max_length - count:,} or less",
            param="max_tokens",
        )
