"""Parse a row into a conversation: the messages for the chat template, and which are learned.

Three formats are read: `messages` (role, content), ShareGPT's `conversations` (from, value), and
a prompt and completion that are lists of messages. The assistant's messages are learned, unless
the row says otherwise (`weight: 0`, `train: false`).
"""

import json
from dataclasses import dataclass, field, replace
from typing import Any

from lorica.data.fields import BadRow, as_list, as_object, as_text, text_field

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
LOSS_FLAGS = ("weight", "train", "training")


@dataclass(frozen=True)
class Conversation:
    """The input of a chat template, and which of the messages are learned.

    kwargs: template variables that the row sets.
    has_unlearned_answer: the row takes an answer out of the loss.
    """

    messages: list[dict[str, Any]]
    learned: list[bool]
    tools: list[Any] | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    has_unlearned_answer: bool = False

    @property
    def learned_indices(self) -> list[int]:
        """The indices of the messages that are learned."""
        return [i for i, learned in enumerate(self.learned) if learned]

    def first(self, count: int) -> "Conversation":
        """The same conversation, cut after `count` messages."""
        return replace(self, messages=self.messages[:count], learned=self.learned[:count])

    def split_by_answer(self) -> "list[Conversation]":
        """For each learned answer: the conversation up to it, in which only it is learned."""
        return [
            replace(self.first(i + 1), learned=[False] * i + [True]) for i in self.learned_indices
        ]


def parse_conversation(
    fields: dict[str, Any],
    tools: list[Any] | None = None,
    *,
    literals: frozenset[str] = frozenset(),
    nulls: bool = True,
) -> Conversation:
    """The conversation of a row, with the text of its column `system` as the first message.

    literals: the string literals of the chat template. A role among them is passed on unchanged.
    nulls: keep null values inside messages. False for file formats that fill in missing keys
        with null (Parquet): the null keys are removed.

    Raises: BadRow with the number of the message.
    """
    items, context = _message_items(fields)
    messages, learned, unlearned_answer = [], [], False
    for number, item in enumerate(items, 1):
        try:
            message = _parse_message(item if nulls else without_nulls(item), literals)
            is_answer = message["role"] == "assistant"
            in_loss = _is_in_loss(message, is_answer)
        except BadRow as error:
            raise BadRow(f"message {number} {error}", error.fix) from error
        learned.append(in_loss and is_answer and number > context)
        unlearned_answer |= is_answer and not in_loss
        messages.append({key: value for key, value in message.items() if key not in LOSS_FLAGS})
    if fields.get("system"):
        messages = [{"role": "system", "content": text_field(fields, "system")}, *messages]
        learned = [False, *learned]
    kwargs = fields.get("chat_template_kwargs") or {}
    if as_object(kwargs) is None:
        raise BadRow(f"chat_template_kwargs is {type(kwargs).__name__}, not an object")
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    return Conversation(messages, learned, tools, kwargs, unlearned_answer)


def is_conversation(fields: dict[str, Any]) -> bool:
    """Whether prompt and completion are lists of messages."""
    return None not in (as_list(fields.get("prompt")), as_list(fields.get("completion")))


def _message_items(fields: dict[str, Any]) -> tuple[list[Any], int]:
    """(the row's messages, how many of them belong to the prompt)."""
    name = next((n for n in ("messages", "conversations") if n in fields), None)
    columns = [name] if name else ["prompt", "completion"]
    lists = [_nonempty_list(fields.get(column), column) for column in columns]
    return [item for items in lists for item in items], 0 if name else len(lists[0])


def _nonempty_list(value: Any, name: str) -> list[Any]:
    items = as_list(value)
    if not items:
        what = type(value).__name__ if items is None else "empty"
        raise BadRow(f"{name} is {what}, not a list of messages")
    return items


def _parse_message(item: Any, literals: frozenset[str]) -> dict[str, Any]:
    fields = as_object(item)
    if fields is None:
        raise BadRow(f"is {type(item).__name__}, not an object with role and content")
    if "from" in fields and "role" not in fields:
        return _parse_sharegpt(fields)
    role = text_field(fields, "role")
    # Parquet gives every message every key; a missing one is None.
    message = {key: value for key, value in fields.items() if value is not None}
    if (parts := as_list(message.get("content"))) is not None:
        message["content"] = _joined_text_parts(parts)
    if message.get("tool_calls"):
        message.setdefault("content", "")
        if not _is_list_of_objects(message["tool_calls"]):
            raise BadRow("has tool_calls that are not a list of objects")
    message["role"] = _template_role(role, literals)
    message["content"] = text_field(message, "content")
    return message


def _template_role(role: str, literals: frozenset[str]) -> str:
    """The role under the name that the chat template uses.

    Raises: BadRow for a role that neither lorica nor the template knows. The template would
        treat it as another role, or drop the message.
    """
    ours = ROLES.get(role)
    if ours is None and role not in literals:
        known = ", ".join(ROLES)
        raise BadRow(
            f"has the role {role!r}, which the chat template does not name; known are {known}",
            "rename it in the file",
        )
    if ours is None or (role in literals and ours in ("system", "tool")):
        return role
    return ours


def _parse_sharegpt(fields: dict[str, Any]) -> dict[str, Any]:
    sender, value = text_field(fields, "from"), text_field(fields, "value")
    if sender not in ROLES:
        raise BadRow(f"is from {sender!r}; known are {', '.join(ROLES)}")
    message: dict[str, Any] = {"role": ROLES[sender], "content": value}
    message |= {key: fields[key] for key in LOSS_FLAGS if fields.get(key) is not None}
    if sender == "function_call":
        parsed = _parse_json(value)
        calls = [parsed] if as_list(parsed) is None else parsed
        if _is_list_of_objects(calls) and all("name" in call for call in calls):
            calls = [{"type": "function", "function": call} for call in calls]
            message |= {"content": "", "tool_calls": calls}
    return message


def _is_list_of_objects(value: Any) -> bool:
    items = as_list(value)
    return items is not None and all(as_object(item) is not None for item in items)


def _is_in_loss(message: dict[str, Any], is_answer: bool) -> bool:
    """What weight and train say. Raises: BadRow for values that they cannot have."""
    flags = {key: message[key] for key in LOSS_FLAGS if key in message}
    for key, value in flags.items():
        if value not in (0, 1):
            raise BadRow(f"has {key} {value!r}; 0 leaves it out of the loss, 1 learns it")
        if value and not is_answer and key != "weight":
            raise BadRow(f"has {key} {value!r}, but only messages of the assistant are learned")
    return all(flags.values())


def _joined_text_parts(parts: list[Any]) -> str:
    """The text of content that is a list of parts. Raises: BadRow if a part is not text."""
    texts = []
    for part in parts:
        match part:
            case {"text": text} if part.get("type", "text") == "text":
                texts.append(as_text(text, "text"))
            case dict() if part.get("type", "text") == "text":
                raise BadRow("has no text")
            case _:
                raise BadRow("has content that is not text; images and sound cannot be learned")
    return "".join(texts)


def parse_tools(fields: dict[str, Any], *, nulls: bool = True) -> list[Any] | None:
    """The row's tools: a list, or a text that is a JSON list. nulls: as in `parse_conversation`.

    Raises: BadRow if they are neither.
    """
    match fields.get("tools"):
        case str(text) if text.strip():
            tools = _parse_json(text)
            if tools is None:
                raise BadRow("tools is text, but not JSON")
        case tools:
            pass
    if tools and as_list(tools) is None:
        raise BadRow(f"tools is {type(tools).__name__}, not a list")
    return (tools if nulls else without_nulls(tools)) or None


def without_nulls(value: Any) -> Any:
    """`value` without the keys that hold null, at any depth."""
    match value:
        case dict():
            return {k: without_nulls(v) for k, v in value.items() if v is not None}
        case list():
            return [without_nulls(item) for item in value]
        case _:
            return value


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
