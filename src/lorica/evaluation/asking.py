"""A message as the model was taught to be asked, and what ends its answer.

An adapter's folder says how its rows were put into words (`data/prompt_format.py`); a base
without an adapter, or an adapter of which nothing is recorded, is asked through its chat template.
"""

from typing import Any

from lorica.base.load import LoadedModel
from lorica.data.chat import ChatTemplate, chat_templates
from lorica.data.prompt_format import PromptFormat
from lorica.data.prompts import ALPACA, alpaca_prompt, prompts
from lorica.data.rendered import Rendered, Segment
from lorica.data.shape import BadRow
from lorica.data.tokenise import Texts
from lorica.errors import DataError


def format_of(base: LoadedModel) -> PromptFormat:
    """How `base` is asked: as it was trained; else by its chat template; else by plain prompts."""
    if base.prompt_format is not None:
        return base.prompt_format
    template = base.tokenizer.chat_template
    return PromptFormat(kind="chat" if template else "prompt", template=template or None)


def check_can_ask(base: LoadedModel) -> None:
    """Raises: DataError if there is nothing to put around a prompt, here or in training."""
    if format_of(base).template is None and not base.tokenizer.chat_template:
        form = base.prompt_format
        trained = "" if form is None else f", and its adapter was trained with {form.name}"
        raise DataError(
            f"the base has no chat template to put around prompts{trained}.",
            fix="leave --chat (chat=True) out, or save a template as chat_template.jinja beside "
            "the base's tokenizer.json",
        )


def ask(base: LoadedModel, messages: list[dict[str, Any]]) -> Rendered:
    """What the model is given: the messages, up to where its answer begins.

    Only a chat template shows it more than the system message and the last one.
    Raises: DataError if the template refuses the messages.
    """
    form, text = format_of(base), messages[-1]["content"]
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    try:
        if form.kind == "chat":
            asked = _template(base, form).prompt(messages)
        elif form.kind == "alpaca" and form.template in (None, ALPACA):
            asked = alpaca_prompt(text, system=system)
        elif form.template is not None:
            system = system if _takes_system(form) else ""
            fields = {"instruction": text, "input": "", "system": system, "history": []}
            fields = fields if form.kind == "alpaca" else {"prompt": text}
            asked = _written(str(form.template), fields)
        else:
            asked = text
    except BadRow as error:
        raise DataError(f"the messages cannot be used: {error}.", fix=error.fix) from None
    return Rendered("prompt", (Segment(asked, False),), special=form.kind == "chat")


def end_of_turn(base: LoadedModel) -> str:
    """What stands behind an answer in training; nothing where that cannot be told."""
    form = format_of(base)
    if form.kind != "chat":
        return ""
    return (form.end_of_turn if form.end_of_turn is not None else _template(base, form).end) or ""


def stop_tokens(base: LoadedModel, end: str = "") -> list[int]:
    """The tokens that end a text: EOS, the base's own, and `end` if it is one special token."""
    model: Any = base.model
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = {base.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
    if end:
        (ids,) = Texts(base.tokenizer).ids([end])
        if len(ids) == 1 and ids[0] in base.tokenizer.added_tokens_decoder:
            found.add(ids[0])
    return sorted(found - {None})


def how_asked(base: LoadedModel, system: bool = False) -> list[str]:
    """Notices: what a conversation is for a model that was not trained on conversations.

    system: a system message is given.
    """
    form = format_of(base)
    if form.kind == "chat":
        return []
    alone = "earlier messages are not seen"
    if base.prompt_format is None:
        lines = [f"the base has no chat template: each message is a prompt by itself, {alone}"]
    elif form.kind == "alpaca":
        lines = [
            (
                f"the adapter was trained with {form.name}, which is used here too: each message "
                f"is an instruction by itself, {alone}"
            )
        ]
    else:
        lines = [
            (
                f"the adapter was trained with {form.name}: each message is a prompt by itself, "
                f"{alone}"
            )
        ]
    if system and not _takes_system(form):
        lines.append("the system message is not used")
    return lines


def not_asked(base: LoadedModel) -> list[str]:
    """Notices: prompts are continued as they are, by an adapter that was trained otherwise."""
    form = base.prompt_format
    if form is None or (form.kind in ("prompt", "text") and form.template is None):
        return []
    return [
        (
            f"the adapter was trained with {form.name}, and the prompts are given without it; "
            "--chat puts it around them"
        )
    ]


def _takes_system(form: PromptFormat) -> bool:
    return form.kind == "alpaca" and "system" in str(form.template or ALPACA)


def _template(base: LoadedModel, form: PromptFormat) -> ChatTemplate:
    return chat_templates(base.tokenizer, kwargs=form.kwargs).for_tools(None)


def _written(template: str, fields: dict[str, Any]) -> str:
    (text,) = prompts(template, [fields])
    if isinstance(text, BadRow):
        raise text
    return text
