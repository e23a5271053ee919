"""Conversations: `messages` (role, content) and ShareGPT's `conversations` (from, value).

Both become a list of messages as chat templates expect them, then segments of text, of which
the assistant's are learned. Turns behind the last answer have no effect on any loss; they are
left out and counted.
"""

import json
from typing import Any

from lorica.data.chat import ChatTemplate, Turn, ending, masked
from lorica.data.shape import BadRow, text_in

ROLES = {
    "human": "user", "user": "user", "prompter": "user",
    "gpt": "assistant", "assistant": "assistant", "bot": "assistant", "model": "assistant",
    "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "system": "system", "function_call": "assistant",
    "observation": "tool", "tool": "tool", "function_response": "tool",
}  # fmt: skip


def messages_of(fields: dict[str, Any]) -> list[dict[str, Any]]:
    """The row's messages, each with role and content, a separate system text in front.

    Raises: BadRow with the number of the message.
    """
    name = "messages" if "messages" in fields else "conversations"
    items = fields.get(name)
    if not isinstance(items, list) or not items:
        raise BadRow(
            f"{name} is {'empty' if items == [] else type(items).__name__}, not a list of messages"
        )
    found = []
    for number, item in enumerate(items, 1):
        try:
            found.append(_message(item))
        except BadRow as error:
            raise BadRow(f"message {number} {error}") from error
    if fields.get("system"):
        found = [{"role": "system", "content": text_in(fields, "system")}, *found]
    return found


def _message(item: Any) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise BadRow(f"is {type(item).__name__}, not an object with role and content")
    if "from" in item and "role" not in item:
        return _sharegpt(item)
    role = text_in(item, "role")
    # Parquet gives every message every key; an absent one is None there.
    message = {key: value for key, value in item.items() if value is not None}
    if isinstance(message.get("content"), list):
        message["content"] = _joined(message["content"])
    if message.get("tool_calls"):
        message["tool_calls"] = [_call(call) for call in message["tool_calls"]]
        message.setdefault("content", "")
    message["role"] = ROLES.get(role, role)
    message["content"] = text_in(message, "content")
    return message


def _sharegpt(item: dict[str, Any]) -> dict[str, Any]:
    sender, value = text_in(item, "from"), text_in(item, "value")
    if sender not in ROLES:
        raise BadRow(f"is from {sender!r}; known are {', '.join(ROLES)}")
    message: dict[str, Any] = {"role": ROLES[sender], "content": value}
    if sender == "function_call":
        call = _parsed(value)
        if isinstance(call, dict) and "name" in call:
            message |= {"content": "", "tool_calls": [{"type": "function", "function": call}]}
    return message


def _joined(parts: list[Any]) -> str:
    """Content given as parts, when all of them are text."""
    if any(not isinstance(part, dict) or part.get("type", "text") != "text" for part in parts):
        raise BadRow("has content that is not text; images and sound cannot be learned")
    return "".join(text_in(part, "text") for part in parts)


def _call(call: Any) -> Any:
    """OpenAI writes a call's arguments as a string of JSON; templates expect the object."""
    function = call.get("function") if isinstance(call, dict) else None
    if isinstance(function, dict) and isinstance(function.get("arguments"), str):
        arguments = _parsed(function["arguments"])
        if isinstance(arguments, dict):
            return call | {"function": function | {"arguments": arguments}}
    return call


def tools_of(fields: dict[str, Any]) -> list[Any] | None:
    """The row's tools: a list, or a string that holds one as JSON.

    Raises: BadRow if they are neither.
    """
    tools = fields.get("tools")
    if isinstance(tools, str) and tools.strip():
        tools = _parsed(tools)
        if tools is None:
            raise BadRow("tools is text, but no JSON")
    if tools and not isinstance(tools, list):
        raise BadRow(f"tools is {type(tools).__name__}, not a list")
    return tools or None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def segments(
    template: ChatTemplate,
    messages: list[dict[str, Any]],
    tools: list[Any] | None,
    completion_only: bool,
) -> tuple[list[tuple[str, bool]], str]:
    """The conversation as (text, learned) pieces, and the last answer's end-of-turn.

    messages: the last one is the assistant's.
    Raises: BadRow as `masked` does; with completion_only False only if the template refuses.
    """
    try:
        text, turns = masked(template, messages, tools)
    except BadRow as error:
        if completion_only or error.fix is None:
            raise
        text, turns = template.render(messages, tools)[0].rstrip(), []
        return [(text, True)], ""
    end = ending(text, turns[-1], messages[-1]["content"])
    return _cut(text, turns, messages, completion_only), end


def _cut(
    text: str, turns: list[Turn], messages: list[dict[str, Any]], completion_only: bool
) -> list[tuple[str, bool]]:
    said = [m for m in messages if m["role"] == "assistant"]
    empty = [not m["content"].strip() and not m.get("tool_calls") for m in said]
    if len(empty) != len(turns):
        empty = [False] * len(turns)
    pieces, last = [], 0
    for turn, nothing in zip(turns, empty, strict=True):
        pieces.append((text[last : turn.start], not completion_only))
        pieces.append((text[turn.start : turn.end], not nothing))
        last = turn.end
    return [(piece, learned) for piece, learned in pieces if piece]
