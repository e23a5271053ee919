"""The prompt format of a training: recorded in the adapter's manifest, and used from there.

An adapter needs the prompts of its training: the chat template, the Alpaca text or plain prompts,
whatever template the base has today. So the manifest holds the format itself, not its name: the
text of the template, its variables, and the end of turn.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from lorica.data.chat_template import chat_templates
from lorica.data.config import DataConfig
from lorica.data.fields import as_object
from lorica.data.render_prompt import ALPACA_TEMPLATE
from lorica.data.row_format import columns_of, detect_format
from lorica.data.source import Source
from lorica.data.text_encoder import TextEncoder
from lorica.errors import FileError

Kind = Literal["chat", "alpaca", "prompt", "text"]
SAMPLE = 100  # rows from which the format of a file is detected
NAMES = {
    "chat": "a chat template",
    "alpaca": "the text of Alpaca rows",
    "prompt": "plain prompts",
    "text": "plain text",
}


@dataclass(frozen=True, kw_only=True)
class PromptFormat:
    """The text around a prompt and after an answer.

    template: Jinja text: the chat template (or several, by name), or the prompt template; None:
        the prompt as it is.
    kwargs: variables of the chat template. end_of_turn: what it writes after an answer.
    bos, eos: the first and the last token of every row. A chat template writes its own BOS, so
        bos is None.
    """

    kind: Kind
    template: str | dict[str, str] | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    end_of_turn: str | None = None
    bos: str | None = None
    eos: str | None = None

    @property
    def name(self) -> str:
        """The format in words, for notices."""
        own = self.kind == "prompt" and self.template is not None
        own = own or (self.kind == "alpaca" and self.template != ALPACA_TEMPLATE)
        return "a prompt template" if own else NAMES[self.kind]

    @property
    def digest(self) -> str:
        """sha256 of the template's text."""
        return hashlib.sha256(json.dumps(self.template, sort_keys=True).encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "template_sha256": self.digest}

    def same_text(self, other: "PromptFormat") -> bool:
        """Whether both write the same text around a prompt."""
        return (self.kind, self.template, self.kwargs) == (other.kind, other.template, other.kwargs)


def prompt_format_from_dict(value: Any, where: str) -> PromptFormat | None:
    """The format that `as_dict` wrote. Raises: FileError if it was changed since."""
    if value is None:
        return None
    try:
        fields = dict(value)
        digest = fields.pop("template_sha256", None)
        prompt_format = TypeAdapter(PromptFormat).validate_json(json.dumps(fields), strict=True)
    except (ValidationError, TypeError, ValueError) as error:
        raise FileError(
            f"{where}: prompt_format is damaged.", why=error, fix="copy the folder anew"
        ) from None
    if digest != prompt_format.digest:
        raise FileError(
            f"{where}: prompt_format is damaged: its template does not match its digest.",
            fix="copy the folder anew",
        )
    return prompt_format


def format_of(
    kind: str, has_conversations: bool, config: DataConfig, tokenizer: Any
) -> PromptFormat | None:
    """The prompt format of rows of `kind`; None for rows with classes.

    has_conversations: rows are conversations, or prompts and completions given as messages.
    """
    if kind == "label":
        return None
    if has_conversations:
        template = tokenizer.chat_template
        if config.chat_template is not None:
            template = (as_object(template) or {}).get(config.chat_template, config.chat_template)
        kwargs = config.chat_template_kwargs
        opened = chat_templates(tokenizer, config.chat_template, kwargs).for_tools(None)
        return PromptFormat(
            kind="chat",
            template=template,
            kwargs=kwargs,
            end_of_turn=opened.end_of_turn,
            eos=tokenizer.eos_token,
        )
    template = config.prompt_template or (ALPACA_TEMPLATE if kind == "alpaca" else None)
    known: Kind = "alpaca" if kind == "alpaca" else "prompt" if kind == "prompt" else "text"
    front = tokenizer.decode(TextEncoder(tokenizer).front) or None
    return PromptFormat(kind=known, template=template, bos=front, eos=tokenizer.eos_token)


def format_notices(
    trained: PromptFormat | None, rows: PromptFormat | None, tokenizer: Any
) -> list[str]:
    """Notices on differences between the prompts of the training and those of today.

    trained: the format of the training. rows: the format of the rows of an evaluation, if any.
    """
    if trained is None:
        return []
    notices = []
    if rows is not None and not trained.same_text(rows):
        other = rows.name if rows.name != trained.name else f"another text of {rows.name}"
        notices.append(
            f"the adapter was trained with {trained.name}; these rows are written with {other}"
        )
    if trained.eos != tokenizer.eos_token:
        notices.append(
            f"rows ended in {trained.eos!r} in training; the tokenizer's end is now "
            f"{tokenizer.eos_token!r}"
        )
    return notices


def with_training_templates(trained: PromptFormat | None, config: DataConfig) -> DataConfig:
    """`config` with the training's templates, unless it sets its own or has other rows."""
    if trained is None:
        return config
    changes: dict[str, Any] = {}
    if trained.kind == "chat" and not config.chat_template_kwargs and config.chat_template is None:
        changes["chat_template_kwargs"] = trained.kwargs
    own = trained.kind in ("alpaca", "prompt") and trained.template not in (None, ALPACA_TEMPLATE)
    if own and config.prompt_template is None:
        first = next(Source(config).chunks(SAMPLE), [])
        if detect_format(columns_of(first, config), config).kind == trained.kind:
            changes["prompt_template"] = trained.template
    return config.model_copy(update=changes)
