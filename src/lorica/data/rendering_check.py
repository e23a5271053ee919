"""Check that the text of a chat template contains what the row says.

Whatever a template does, every content and every tool call of the row must be in its text. White
space may differ (templates trim), and text may be escaped as in JSON (some templates write tool
results so). Thinking may be left out, with a notice where it was to be learned.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from lorica.data.conversation import Conversation
from lorica.data.fields import BadRow, as_object
from lorica.data.notices import Notices

THINKING_KEYS = ("reasoning_content", "reasoning", "thinking")
OTHER_TEMPLATE = (
    "pass another template, data.chat_template: FILE; or choose a base whose template does it"
)


def check_rendering(text: str, conversation: Conversation, where: str, notices: Notices) -> None:
    """Check that every message of a conversation is in `text`, in order.

    where: file and line of the row, for notices.
    Raises: BadRow that names the first message which is missing.
    """
    messages = conversation.messages
    missing = _first_missing(text, messages, ignore_space=False)
    if missing is not None:
        missing = _first_missing(_without_space(text), messages, ignore_space=True)
    if missing is not None:
        message = messages[missing]
        raise BadRow(
            f"message {missing + 1} ({message['role']}): the chat template does not write what it "
            f"says ({_shortened(message['content'])})",
            OTHER_TEMPLATE,
        )
    for number, message in enumerate(messages):
        for call in message.get("tool_calls") or ():
            _check_tool_call(text, call, number)
        if conversation.learned[number] and not _has_thinking(text, message):
            notices.add(
                "the chat template leaves out the thinking of answers that are learned ({n} rows)",
                where,
            )
    names = [name for tool in conversation.tools or () if (name := _tool_name(tool))]
    if unwritten := [name for name in names if name not in text]:
        notices.add(
            f"the chat template does not write the tools of {{n}} rows ({unwritten[0]}, for "
            "example), so calls are learned without them",
            where,
        )


def written_forms(message: dict[str, Any]) -> Iterator[str]:
    """The forms of a message's content in a text: whole, without its thinking, as JSON."""
    content = message["content"]
    yield content
    if "</think>" in content:
        yield content.rpartition("</think>")[2]
    if message["role"] not in ("user", "assistant", "system"):
        yield json.dumps(content, ensure_ascii=False)[1:-1]
        yield json.dumps(content)[1:-1]


def _first_missing(text: str, messages: list[dict[str, Any]], ignore_space: bool) -> int | None:
    """The first message that is not in `text` after the ones before it; a system text anywhere."""
    position = 0
    for number, message in enumerate(messages):
        system = message["role"] in ("system", "developer")
        for form in written_forms(message):
            form = _without_space(form) if ignore_space else form.strip()
            start = text.find(form, 0 if system else position)
            if start >= 0:
                position = position if system else start + len(form)
                break
        else:
            return number
    return None


def _without_space(text: str) -> str:
    return "".join(text.split())


def _has_thinking(text: str, message: dict[str, Any]) -> bool:
    content = message["content"]
    thoughts = [message[key] for key in THINKING_KEYS if type(message.get(key)) is str]
    if "</think>" in content:
        thoughts.append(content.rpartition("</think>")[0].rpartition("<think>")[2])
    flat = _without_space(text) if thoughts else ""
    return all(_without_space(thought) in flat for thought in thoughts)


def _check_tool_call(text: str, call: dict[str, Any], number: int) -> None:
    """Name and arguments of a tool call are in the text, and not in Python's notation."""
    function = as_object(call.get("function")) or call
    name = function.get("name")
    words = [name, *_leaves(_parsed(function.get("arguments")))]
    lost = next((w for w in words if w is not None and not _is_written(text, w)), None)
    if lost is not None:
        raise BadRow(
            f"message {number + 1}: the chat template does not write its tool call "
            f"({_shortened(str(lost))} is missing)",
            OTHER_TEMPLATE,
        )
    if f"'name': {name!r}" in text:
        raise BadRow(
            f"message {number + 1}: the chat template writes its tool call in Python's notation, "
            "not as JSON",
            "write it with tojson: {{ tool_call.function.arguments | tojson }}; " + OTHER_TEMPLATE,
        )


def _parsed(arguments: Any) -> Any:
    """The arguments as an object; the row may have them as JSON text."""
    match arguments:
        case str():
            with suppress(ValueError, RecursionError):
                return json.loads(arguments)
    return arguments


def _leaves(value: Any) -> list[Any]:
    """The keys, texts, numbers and truth values of a JSON value."""
    leaves, todo = [], [value]
    while todo:
        match todo.pop():
            case dict() as item:
                leaves += item.keys()
                todo += item.values()
            case list() as item:
                todo += item
            case None:
                pass
            case item:
                leaves.append(item)
    return leaves


def _is_written(text: str, value: Any) -> bool:
    match value:
        case str():
            escaped = (json.dumps(value, ensure_ascii=False)[1:-1], json.dumps(value)[1:-1])
            return value.strip() in text or any(form in text for form in escaped)
        case _:
            return json.dumps(value) in text or str(value) in text


def _tool_name(tool: Any) -> str:
    match tool:
        case {"function": {"name": str(name)}} | {"name": str(name)}:
            return name
        case _:
            return ""


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
