"""A request to the decoder, and the row that it becomes."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lorica.generation.choice import NOT_FINITE, TokenLogprobs, draws
from lorica.generation.sampling import Sampling, not_finite
from lorica.generation.stops import Stops
from lorica.generation.text_stream import TextStream

Ended = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt and what is to be done with it.

    prompt: ids, at least one, all in the vocabulary.
    sampling: its max_new_tokens fits the decoder's max_length. Its seed is this row's own.
    adapter: handed to the decoder's `acting`.
    logprobs: how many alternatives to give at each token; None: no log-probabilities.
    has_text: decode the row's text as it grows, for `Row.text`.
    """

    prompt: Sequence[int]
    sampling: Sampling
    stops: Stops
    adapter: Hashable = None
    logprobs: int | None = None
    has_text: bool = False


@dataclass(eq=False)
class Row:
    """A request in a slot.

    tokens: generated so far, with the stop token. logprobs: one for each token, if asked for.
    text: None unless the request has text or stop strings.
    ended: why it left its slot. error: a sentence for the user, if ended is "error".
    read: tokens whose keys and values are in the slot. patience: how many later rows may still be
    read before it.
    """

    request: Request
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    ended: Ended | None = None
    error: str | None = None
    read: int = 0
    patience: int = 0
    text: TextStream | None = None

    def __post_init__(self):
        request = self.request
        self.draws = draws(request.sampling.seed)
        if request.has_text or request.stops.strings:
            self.text = request.stops.stream(request.prompt)

    @property
    def is_prefilled(self) -> bool:
        return self.read >= len(self.request.prompt)

    @property
    def unread(self) -> Sequence[int]:
        """The rest of the prompt."""
        return self.request.prompt[self.read :]

    def fail(self, sentence: str) -> None:
        """End in an error; the first one stays."""
        self.ended, self.error = "error", self.error or sentence

    def add(self, token: int) -> None:
        """Append a token, and end where it ends the text. In place."""
        if token == NOT_FINITE:
            self.fail(not_finite(self.read))
            return
        self.tokens.append(token)
        is_stop = token in self.request.stops.tokens
        if self.text is not None and not is_stop:
            self.text.push(token)
            is_stop = self.text.has_stopped
        if is_stop:
            self.ended = "stop"
        elif len(self.tokens) >= self.request.sampling.max_new_tokens:
            self.ended = "length"
        if self.ended and self.text is not None:
            self.text.end()
