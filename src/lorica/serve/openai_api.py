"""Bodies of OpenAI's requests, strictly: a field that would have no effect is refused by name.

https://platform.openai.com/docs/api-reference: completions, chat. Beyond it: `top_k`, and
`chat_template`, which must be the one of the adapter's training.
"""

from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from lorica.generation.sampling import MAX_SEED, MAX_TOP_K
from lorica.serve.limits import Limits
from lorica.serve.refusals import InvalidRequest

LIMITS = Limits()
MAX_MESSAGES = 1024
MAX_PARTS = 256
"""Parts of a message's content."""
SIMILAR = 0.75
"""Similarity from which the name of a field is taken for a slip of another one."""

HARMLESS = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
}
"""Fields that change no answer: bookkeeping of OpenAI's own service."""
WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none",),
    "functions": ([],),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""Fields that are not supported -> values that mean the same as leaving them out, beside null."""

TopK = Annotated[int, Field(ge=1, le=MAX_TOP_K)]
NewTokens = Annotated[int, Field(ge=1, le=LIMITS.new_tokens)]
Stop = Annotated[str, Field(min_length=1, max_length=LIMITS.stop_length)]
Stops = Annotated[list[Stop], Field(max_length=LIMITS.stops, fail_fast=True)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
ModelName = Annotated[str, Field(min_length=1, max_length=256)]
TokenIds = Annotated[list[TokenId], Field(max_length=LIMITS.prompt_ids, fail_fast=True)]
"""Every list of a body ends at a limit, and at its first mistake: an error costs a thousand times
the byte that makes it."""


def kind_of_prompt(value: Any) -> str:
    """The one kind that a prompt is checked against, by its first item: tried one after another,
    each would count its own mistakes."""
    match value:
        case [str(), *_]:
            return "list[str]"
        case [[*_], *_]:
            return "list[list[int]]"
        case [*_]:
            return "list[int]"
        case _:
            return "str"


def kind_of_content(value: Any) -> str:
    return "list[part]" if isinstance(value, list) else "str"


Prompt = Annotated[
    Annotated[str, Tag("str")]
    | Annotated[list[str], Field(max_length=LIMITS.choices, fail_fast=True), Tag("list[str]")]
    | Annotated[TokenIds, Tag("list[int]")]
    | Annotated[
        list[TokenIds], Field(max_length=LIMITS.choices, fail_fast=True), Tag("list[list[int]]")
    ],
    Discriminator(kind_of_prompt),
]


class Body(BaseModel):
    """Unknown fields are refused, and nothing is converted: "1" is no number."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_harmless(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kept = {}
        for name, value in data.items():
            if name in cls.model_fields:
                kept[name] = value
            elif name not in HARMLESS and value is not None:
                _check_without_effect(name, value, cls.model_fields)
        return kept


class StreamOptions(Body):
    include_usage: bool = False


class GenerationBody(Body):
    """What completions and conversations share."""

    model: ModelName
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=LIMITS.choices)] | None = 1
    max_tokens: NewTokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] | None = 1.0
    top_k: TopK | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    stop: Stops | None = None

    @field_validator("stop", mode="before", json_schema_input_type=Stops | Stop | None)
    @classmethod
    def _list_stop(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_stream_options(self) -> "GenerationBody":
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest(
                "stream_options is for streams.", fix="add stream: true", param="stream_options"
            )
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        return tuple(self.stop or ())

    @property
    def choices(self) -> int:
        """Answers for each prompt."""
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionBody(GenerationBody):
    """POST /v1/completions. prompt: a text, texts, token ids, or lists of token ids."""

    prompt: Prompt
    logprobs: Annotated[int, Field(ge=0, le=LIMITS.logprobs)] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as text or as token ids. Raises: InvalidRequest if there is none."""
        prompt: Any = self.prompt
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            prompt = [prompt]
        if not prompt or not all(isinstance(p, str) or p for p in prompt):
            raise InvalidRequest("the prompt is an empty list.", param="prompt")
        return prompt


class TextPart(Body):
    type: Literal["text"]
    text: str


Content = Annotated[
    Annotated[str, Tag("str")]
    | Annotated[list[TextPart], Field(max_length=MAX_PARTS, fail_fast=True), Tag("list[part]")],
    Discriminator(kind_of_content),
]


class Message(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: Content

    def as_plain(self) -> dict[str, str]:
        """Role and text, as chat templates take them."""
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatBody(GenerationBody):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_completion_tokens: NewTokens | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=LIMITS.logprobs)] | None = None
    chat_template: str | None = None

    @model_validator(mode="after")
    def _check_pairs(self) -> "ChatBody":
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest(
                "top_logprobs is given without logprobs.",
                fix="add logprobs: true",
                param="top_logprobs",
            )
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise InvalidRequest(
                "max_tokens and max_completion_tokens are one setting, and both are given.",
                fix="leave max_tokens out",
                param="max_tokens",
            )
        return self


def _check_without_effect(name: str, value: Any, known: dict[str, Any]) -> None:
    """Raises: InvalidRequest unless the field may be left out without a change."""
    param = name[:200]
    if name in WITHOUT_EFFECT:
        values = WITHOUT_EFFECT[name]
        if any(
            value == same and isinstance(value, bool) == isinstance(same, bool) for same in values
        ):
            return
        raise InvalidRequest(
            f"{name} is not supported by this server.", fix="leave it out", param=param
        )
    similar = get_close_matches(param, list(known), n=2, cutoff=SIMILAR)
    raise InvalidRequest(
        f"the field {name!r:.200} is unknown.",
        fix="leave it out" + (f"; similar: {', '.join(similar)}" if similar else ""),
        param=param,
    )
