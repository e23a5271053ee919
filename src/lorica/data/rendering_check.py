"""Whether what a row says stands in the text that a template made of it.

Whatever a template did, its text is held against the row: every content, every tool call with
its arguments. White space may differ (templates trim), text may be escaped as in JSON (some
write tool results so), and thinking may be left out, which is noticed where it was to be learned.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from lorica.data.conversation import Conversation
from lorica.data.notices import Notices
from lorica.data.row_format import BadRow

THINKING = ("reasoning_content", "reasoning", "thinking")
OTHER = "pass another template, data.chat_template: FILE; or choose a base whose template does it"


def check(text: str, talk: Conversation, where: str, notices: Notices) -> None:
    """Every message of `talk` stands in `text`, its rendering.

    Raises: BadRow that names the first message which does not.
    """
    missing = _missing(text, talk.messages, squeeze=False)
    if missing is not None:
        missing = _missing(_squeezed(text), talk.messages, squeeze=True)
    if missing is not None:
        message = talk.messages[missing]
        raise BadRow(
            f"message {missing + 1} ({message['role']}): the chat template does not write what it "
            f"says ({_shown(message['content'])})",
            OTHER,
        )
    for number, message in enumerate(talk.messages):
        for call in message.get("tool_calls") or ():
            _check_call(text, call, number)
        if talk.learned[number] and not _thinking_stands(text, message):
            notices.add(
                "the chat template leaves out the thinking of answers that are learned ({n} rows)",
                where,
            )
    if unnamed := [name for name in map(_name, talk.tools or ()) if name and name not in text]:
        notices.add(
            f"the chat template does not write the tools of {{n}} rows ({unnamed[0]}, for "
            "example), so calls are learned without them",
            where,
        )


def forms(message: dict[str, Any]) -> Iterator[str]:
    """How the content of a message may stand in a text: whole, without its thinking, as JSON."""
    content = message["content"]
    yield content
    if "</think>" in content:
        yield content.rpartition("</think>")[2]
    if message["role"] not in ("user", "assistant", "system"):
        yield json.dumps(content, ensure_ascii=False)[1:-1]
        yield json.dumps(content)[1:-1]


def _missing(text: str, messages: list[dict[str, Any]], squeeze: bool) -> int | None:
    """The first message that does not stand behind those before it; a system text anywhere."""
    at = 0
    for number, message in enumerate(messages):
        system = message["role"] in ("system", "developer")
        for form in forms(message):
            form = _squeezed(form) if squeeze else form.strip()
            found = text.find(form, 0 if system else at)
            if found >= 0:
                at = at if system else found + len(form)
                break
        else:
            return number
    return None


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _thinking_stands(text: str, message: dict[str, Any]) -> bool:
    content = message["content"]
    thoughts = [message[key] for key in THINKING if isinstance(message.get(key), str)]
    if "</think>" in content:
        thoughts.append(content.rpartition("</think>")[0].rpartition("<think>")[2])
    flat = _squeezed(text) if thoughts else ""
    return all(_squeezed(thought) in flat for thought in thoughts)


def _check_call(text: str, call: dict[str, Any], number: int) -> None:
    """Name and arguments of a tool call stand in the text, and not as Python writes them."""
    function = call["function"] if isinstance(call.get("function"), dict) else call
    name, arguments = function.get("name"), function.get("arguments")
    if isinstance(arguments, str):
        with suppress(ValueError, RecursionError):
            arguments = json.loads(arguments)
    words = [name, *_leaves(arguments)]
    lost = next((w for w in words if w is not None and not _stands(text, w)), None)
    if lost is not None:
        raise BadRow(
            f"message {number + 1}: the chat template does not write its tool call "
            f"({_shown(str(lost))} is missing)",
            OTHER,
        )
    if isinstance(name, str) and f"'name': {name!r}" in text:
        raise BadRow(
            f"message {number + 1}: the chat template writes its tool call in Python's notation, "
            "not as JSON",
            "write it with tojson: {{ tool_call.function.arguments | tojson }}; " + OTHER,
        )


def _leaves(value: Any) -> list[Any]:
    """The keys, texts, numbers and truth values of a JSON value."""
    found, todo = [], [value]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            found += item.keys()
            todo += item.values()
        elif isinstance(item, list):
            todo += item
        elif item is not None:
            found.append(item)
    return found


def _stands(text: str, value: Any) -> bool:
    if not isinstance(value, str):
        return json.dumps(value) in text or str(value) in text
    escaped = (json.dumps(value, ensure_ascii=False)[1:-1], json.dumps(value)[1:-1])
    return value.strip() in text or any(form in text for form in escaped)


def _name(tool: Any) -> str:
    tool = tool.get("function", tool) if isinstance(tool, dict) else {}
    name = tool.get("name") if isinstance(tool, dict) else None
    return name if isinstance(name, str) else ""


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
