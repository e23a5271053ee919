"""The prompt that a model is given for a message: in the format it was trained with.

An adapter's folder records how its rows were written (`data/prompt_format.py`). A base without
an adapter, or an adapter without that record, is prompted through its chat template.
"""

from typing import Any

from lorica.base.load import LoadedModel
from lorica.data.chat_template import ChatTemplate, chat_templates
from lorica.data.fields import BadRow
from lorica.data.prompt_format import PromptFormat
from lorica.data.render_prompt import ALPACA_TEMPLATE, alpaca_prompt, render_prompts
from lorica.data.rendered_row import RenderedRow, TextSpan
from lorica.errors import ConfigError, DataError


def prompt_format_of(loaded: LoadedModel) -> PromptFormat:
    """The format of training; else the chat template; else plain prompts."""
    if loaded.prompt_format is not None:
        return loaded.prompt_format
    template = loaded.tokenizer.chat_template
    return PromptFormat(kind="chat" if template else "prompt", template=template or None)


def check_has_template(loaded: LoadedModel) -> None:
    """Raises: DataError if there is no template to put around a prompt."""
    if prompt_format_of(loaded).template is None and not loaded.tokenizer.chat_template:
        form = loaded.prompt_format
        trained = "" if form is None else f", and its adapter was trained with {form.name}"
        raise DataError(
            f"the base has no chat template to put around prompts{trained}.",
            fix="leave --chat (chat=True) out, or save a template as chat_template.jinja beside "
            "the base's tokenizer.json",
        )


def check_is_language_model(loaded: LoadedModel) -> None:
    """Raises: ConfigError for a classifier."""
    if loaded.labels is not None:
        raise ConfigError(
            "this model is a classifier: it writes no text.",
            fix="measure it with lorica eval, or classify rows with lorica predict",
        )


def render_messages(loaded: LoadedModel, messages: list[dict[str, Any]]) -> RenderedRow:
    """The prompt for a conversation, up to where the answer begins.

    Only a chat template uses more than the system message and the last message.
    Raises: DataError if the template refuses the messages.
    """
    form, text = prompt_format_of(loaded), messages[-1]["content"]
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    try:
        if form.kind == "chat":
            prompt = _chat_template(loaded, form).prompt(messages)
        elif form.kind == "alpaca" and form.template in (None, ALPACA_TEMPLATE):
            prompt = alpaca_prompt(text, system=system)
        elif form.kind == "alpaca":
            system = system if uses_system_message(form) else ""
            fields = {"instruction": text, "input": "", "system": system, "history": []}
            prompt = _filled(str(form.template), fields)
        elif form.template is not None:
            prompt = _filled(str(form.template), {"prompt": text})
        else:
            prompt = text
    except BadRow as error:
        raise DataError(f"the messages cannot be used: {error}.", fix=error.fix) from None
    return RenderedRow("prompt", (TextSpan(prompt, False),), special=form.kind == "chat")


def end_of_turn(loaded: LoadedModel) -> str:
    """The text behind an answer in training; empty where it is not known."""
    form = prompt_format_of(loaded)
    if form.kind != "chat":
        return ""
    if form.end_of_turn is not None:
        return form.end_of_turn
    return _chat_template(loaded, form).end_of_turn or ""


def conversation_notices(loaded: LoadedModel, *, has_system: bool = False) -> list[str]:
    """Notices on a conversation with a model that was not trained on conversations.

    has_system: the conversation has a system message.
    """
    form = prompt_format_of(loaded)
    if form.kind == "chat":
        return []
    if loaded.prompt_format is None:
        notice = "the base has no chat template: each message is a prompt by itself"
    elif form.kind == "alpaca":
        notice = (
            f"the adapter was trained with {form.name}, which is used here too: each message "
            "is an instruction by itself"
        )
    else:
        notice = f"the adapter was trained with {form.name}: each message is a prompt by itself"
    notices = [f"{notice}, the model does not see earlier messages"]
    if has_system and not uses_system_message(form):
        notices.append("the system message is not used")
    return notices


def plain_prompt_notices(loaded: LoadedModel) -> list[str]:
    """A notice on plain prompts for an adapter that was trained with a template around them."""
    form = loaded.prompt_format
    if form is None or (form.kind in ("prompt", "text") and form.template is None):
        return []
    notice = (
        f"the adapter was trained with {form.name}, but the prompts are given without it; "
        "--chat puts it around them"
    )
    return [notice]


def uses_system_message(form: PromptFormat) -> bool:
    """Whether a format without a chat template has a place for a system message."""
    return form.kind == "alpaca" and "system" in str(form.template or ALPACA_TEMPLATE)


def _chat_template(loaded: LoadedModel, form: PromptFormat) -> ChatTemplate:
    return chat_templates(loaded.tokenizer, kwargs=form.kwargs).for_tools(None)


def _filled(template: str, fields: dict[str, Any]) -> str:
    (prompt,) = render_prompts(template, [fields])
    return prompt.checked()
