"""Conversations: `messages` (role, content), ShareGPT's `conversations` (from, value), and prompt
and completion given as messages.

All become a list of messages as chat templates expect them, and which of them are learned: the
assistant's, unless the row says otherwise (`weight: 0`, `train: false`). Turns behind the last
learned answer have no effect on any loss; they are left out.
"""

import json
from dataclasses import dataclass, field, replace
from typing import Any

from lorica.data.row_format import BadRow, text_in

ROLES = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "system": "system",
    "developer": "system",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
    "function_response": "tool",
    "function": "tool",
    "ipython": "tool",
}
FLAGS = ("weight", "train", "training")


@dataclass(frozen=True)
class Conversation:
    """What a chat template is given, and which of the messages are learned.

    kwargs: variables of the template that the row sets itself.
    left_out: some answer is not learned because the row says so.
    """

    messages: list[dict[str, Any]]
    learned: list[bool]
    tools: list[Any] | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    left_out: bool = False

    @property
    def answers(self) -> list[int]:
        """The numbers of the messages that are learned."""
        return [i for i, learned in enumerate(self.learned) if learned]

    def upto(self, number: int) -> "Conversation":
        return replace(self, messages=self.messages[:number], learned=self.learned[:number])

    def one_answer_each(self) -> "list[Conversation]":
        """For each learned answer, the conversation up to it, in which it alone is learned."""
        return [replace(self.upto(i + 1), learned=[False] * i + [True]) for i in self.answers]


def conversation_of(
    fields: dict[str, Any],
    tools: list[Any] | None = None,
    *,
    words: frozenset[str] = frozenset(),
    nulls: bool = True,
) -> Conversation:
    """The row's messages, a separate system text in front.

    words: string literals of the chat template; a role among them is passed on as it is.
    nulls: whether null stands for itself inside of a message; False: the file's format fills
        in keys that a row does not have, and they are left out.

    Raises: BadRow with the number of the message.
    """
    items, context = _items(fields)
    messages, learned, left_out = [], [], False
    for number, item in enumerate(items, 1):
        try:
            message = _message(item if nulls else without_nulls(item), words)
            answer = message["role"] == "assistant"
            wanted = _is_learned(message, answer)
            learned.append(wanted and answer and number > context)
            left_out |= answer and not wanted
        except BadRow as error:
            raise BadRow(f"message {number} {error}", error.fix) from error
        messages.append({key: value for key, value in message.items() if key not in FLAGS})
    if fields.get("system"):
        messages = [{"role": "system", "content": text_in(fields, "system")}, *messages]
        learned = [False, *learned]
    kwargs = fields.get("chat_template_kwargs") or {}
    if not isinstance(kwargs, dict):
        raise BadRow(f"chat_template_kwargs is {type(kwargs).__name__}, not an object")
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    return Conversation(messages, learned, tools, kwargs, left_out)


def is_conversation(fields: dict[str, Any]) -> bool:
    """Prompt and completion are lists of messages."""
    return isinstance(fields.get("prompt"), list) and isinstance(fields.get("completion"), list)


def _items(fields: dict[str, Any]) -> tuple[list[Any], int]:
    """The row's messages, and how many of them are only read."""
    name = next((n for n in ("messages", "conversations") if n in fields), None)
    parts = [name] if name else ["prompt", "completion"]
    for part in parts:
        items = fields.get(part)
        if not isinstance(items, list) or not items:
            what = "empty" if items == [] else type(items).__name__
            raise BadRow(f"{part} is {what}, not a list of messages")
    return [item for part in parts for item in fields[part]], len(fields[parts[0]]) * (not name)


def _message(item: Any, words: frozenset[str]) -> dict[str, Any]:
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
        message.setdefault("content", "")
        _check_calls(message)
    message["role"] = _role(role, words)
    message["content"] = text_in(message, "content")
    return message


def _role(role: str, words: frozenset[str]) -> str:
    """The role as the chat template knows it.

    Raises: BadRow for one that neither lorica nor the template knows: it would be written by
        chance, or not at all.
    """
    ours = ROLES.get(role)
    if ours is None and role not in words:
        known = ", ".join(ROLES)
        raise BadRow(
            f"has the role {role!r}, which the chat template does not name; known are {known}",
            "rename it in the file",
        )
    if ours is None or (role in words and ours in ("system", "tool")):
        return role
    return ours


def _sharegpt(item: dict[str, Any]) -> dict[str, Any]:
    sender, value = text_in(item, "from"), text_in(item, "value")
    if sender not in ROLES:
        raise BadRow(f"is from {sender!r}; known are {', '.join(ROLES)}")
    message: dict[str, Any] = {"role": ROLES[sender], "content": value}
    message |= {key: item[key] for key in FLAGS if item.get(key) is not None}
    if sender == "function_call":
        calls = _parsed(value)
        calls = calls if isinstance(calls, list) else [calls]
        if all(isinstance(call, dict) and "name" in call for call in calls):
            calls = [{"type": "function", "function": call} for call in calls]
            message |= {"content": "", "tool_calls": calls}
    return message


def _check_calls(message: dict[str, Any]) -> None:
    calls = message["tool_calls"]
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise BadRow("has tool_calls that are no list of objects")


def _is_learned(message: dict[str, Any], answer: bool) -> bool:
    """What weight and train say. Raises: BadRow for what they cannot say."""
    flags = {key: message[key] for key in FLAGS if key in message}
    for key, value in flags.items():
        if value not in (0, 1):
            raise BadRow(f"has {key} {value!r}; 0 leaves it out of the loss, 1 learns it")
        if value and not answer and key != "weight":
            raise BadRow(f"has {key} {value!r}, but only what the assistant says is learned")
    return all(flags.values())


def _joined(parts: list[Any]) -> str:
    """Content given as parts, when all of them are text."""
    if any(not isinstance(part, dict) or part.get("type", "text") != "text" for part in parts):
        raise BadRow("has content that is not text; images and sound cannot be learned")
    return "".join(text_in(part, "text") for part in parts)


def tools_of(fields: dict[str, Any], *, nulls: bool = True) -> list[Any] | None:
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
    return (tools if nulls else without_nulls(tools)) or None


def without_nulls(value: Any) -> Any:
    """`value` without the keys that hold null, at any depth."""
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
