"""How the rows of a training were put into words: recorded with an adapter, and taken from there.

An adapter answers as it was taught: with the chat template, the Alpaca text or the plain prompts
of its training, whatever the base brings today. So its manifest holds the format itself, not a
name for it: the template's text, its variables, what ends an answer.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from lorica.data.chat_template import chat_templates
from lorica.data.config import DataConfig
from lorica.data.render_prompt import ALPACA_TEMPLATE
from lorica.data.row_format import columns_of, detect_format
from lorica.data.source import Source
from lorica.data.text_encoder import TextEncoder
from lorica.errors import FileError

Kind = Literal["chat", "alpaca", "prompt", "text"]
FIRST = 100  # rows that tell their shape
NAMES = {
    "chat": "a chat template",
    "alpaca": "the text of Alpaca rows",
    "prompt": "plain prompts",
    "text": "plain text",
}


@dataclass(frozen=True, kw_only=True)
class PromptFormat:
    """What stands around a prompt and behind an answer.

    template: Jinja text: the chat template (several by name), or what stands before an answer;
        None: the prompt as it is.
    kwargs: variables of the chat template. end_of_turn: what it writes behind an answer.
    bos, eos: the tokens that every row begins with and ends in; of a chat template, which writes
        its own, only the end.
    """

    kind: Kind
    template: str | dict[str, str] | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    end_of_turn: str | None = None
    bos: str | None = None
    eos: str | None = None

    @property
    def name(self) -> str:
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
        """Whether both put the same words around a prompt."""
        return (self.kind, self.template, self.kwargs) == (other.kind, other.template, other.kwargs)


def prompt_format_from_dict(value: Any, where: str) -> PromptFormat | None:
    """What `as_dict` wrote. Raises: FileError if it was changed since."""
    if value is None:
        return None
    try:
        fields = dict(value)
        digest = fields.pop("template_sha256", None)
        found = TypeAdapter(PromptFormat).validate_json(json.dumps(fields), strict=True)
    except (ValidationError, TypeError, ValueError) as error:
        raise FileError(
            f"{where}: prompt_format is damaged.", why=error, fix="copy the folder anew"
        ) from None
    if digest != found.digest:
        raise FileError(
            f"{where}: prompt_format is damaged: its template is not the one whose "
            "digest stands beside it.",
            fix="copy the folder anew",
        )
    return found


def format_of(kind: str, talks: bool, config: DataConfig, tokenizer: Any) -> PromptFormat | None:
    """The format of rows of `kind`; None for rows that have classes.

    talks: the rows are conversations, or prompts and completions given as messages.
    """
    if kind == "label":
        return None
    if talks:
        template = config.chat_template
        named = tokenizer.chat_template
        if template is None or (isinstance(named, dict) and template in named):
            template = named if template is None else named[template]
        kwargs = config.chat_template_kwargs
        opened = chat_templates(tokenizer, config.chat_template, kwargs).for_tools(None)
        return PromptFormat(
            kind="chat",
            template=template,
            kwargs=kwargs,
            end_of_turn=opened.end,
            eos=tokenizer.eos_token,
        )
    template = config.prompt_template or (ALPACA_TEMPLATE if kind == "alpaca" else None)
    known: Kind = "alpaca" if kind == "alpaca" else "prompt" if kind == "prompt" else "text"
    front = tokenizer.decode(TextEncoder(tokenizer).front) or None
    return PromptFormat(kind=known, template=template, bos=front, eos=tokenizer.eos_token)


def format_notices(
    form: PromptFormat | None, rows: PromptFormat | None, tokenizer: Any
) -> list[str]:
    """Notices: what an adapter is shown now otherwise than in its training.

    form: of the training. rows: of the rows that it is measured on; None: there are none.
    """
    if form is None:
        return []
    lines = []
    if rows is not None and not form.same_text(rows):
        other = rows.name if rows.name != form.name else f"another text of {rows.name}"
        lines.append(
            f"the adapter was trained with {form.name}; these rows are written with {other}"
        )
    if form.eos != tokenizer.eos_token:
        lines.append(
            f"rows ended in {form.eos!r} in training; the tokenizer's end is now "
            f"{tokenizer.eos_token!r}"
        )
    return lines


def with_training_templates(form: PromptFormat | None, config: DataConfig) -> DataConfig:
    """`config` with the templates of `form`, where it names none and the rows are of its kind."""
    if form is None:
        return config
    changes: dict[str, Any] = {}
    if form.kind == "chat" and not config.chat_template_kwargs and config.chat_template is None:
        changes["chat_template_kwargs"] = form.kwargs
    own = form.kind in ("alpaca", "prompt") and form.template not in (None, ALPACA_TEMPLATE)
    if own and config.prompt_template is None:
        first = next(Source(config).chunks(FIRST), [])
        if detect_format(columns_of(first, config), config).kind == form.kind:
            changes["prompt_template"] = form.template
    return config.model_copy(update=changes)
