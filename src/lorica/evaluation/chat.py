"""A conversation in the terminal: messages kept, answers told token by token.

When the context is full, the oldest exchange is forgotten, and said so; the system message
stays. A model that was not trained on conversations is given each message by itself, in the
words of its training. What cannot be helped that way (one message longer than the context) is an
error, and leaves the conversation as it was.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lorica.base.load import LoadedModel
from lorica.data.tokenise import prompt_ids
from lorica.errors import DataError
from lorica.evaluation.asking import ask, end_of_turn, how_asked, stop_tokens
from lorica.evaluation.generate import Sampling, continue_ids, text_after

OnText = Callable[[str], object]


class Chat:
    """One conversation with `base`.

    messages: all that was said, also what the model has forgotten.
    notices: sentences for the user: what was forgotten, which answers were cut.
    """

    def __init__(
        self,
        base: LoadedModel,
        *,
        system: str | None = None,
        sampling: Sampling | None = None,
        condition: str | None = None,
    ):
        self.base, self.sampling = base, sampling or Sampling(max_new_tokens=512)
        self._conditions = None if condition is None else [condition]
        self.messages: list[dict[str, Any]] = []
        self.notices: list[str] = how_asked(base, system=bool(system))
        self._system = [{"role": "system", "content": system}] if system else []
        self._forgotten = 0
        self._stops = stop_tokens(base, end_of_turn(base))

    def say(self, text: str, on_text: OnText | None = None) -> str:
        """Answer `text`; `on_text` is given each piece of the answer as soon as it is known.

        Raises: DataError if the message is empty or does not fit the context. The conversation
            is then as it was, also after Ctrl-C.
        """
        if not text.strip():
            raise DataError("the message is empty.", fix="write something")
        asked = [*self.messages, {"role": "user", "content": text}]
        ids, forgotten = self._fitting(asked)
        # Another seed for each answer, or sampling would go the same way each time.
        sampling = replace(self.sampling, seed=self.sampling.seed + len(asked))
        teller = Teller(self.base, ids, self._stops, on_text) if on_text else None
        made = continue_ids(
            self.base,
            [ids],
            sampling,
            stops=self._stops,
            streamer=teller,
            conditions=self._conditions,
        )
        answer = made.texts[0]
        if forgotten > self._forgotten:
            self.notices.append(
                f"the context of {self.base.max_length} tokens is full: "
                f"the first {forgotten} messages are forgotten"
            )
        self.messages = [*asked, {"role": "assistant", "content": answer.strip()}]
        self._forgotten = forgotten
        self.notices += made.notices
        return answer

    def _fitting(self, asked: list[dict[str, Any]]) -> tuple[list[int], int]:
        """The ids of what the model is given, and how many of the oldest messages are left out."""
        limit, first = self.base.max_length, self._forgotten
        reserve = min(self.sampling.max_new_tokens, (limit or 0) // 4)
        while True:
            ids = self._ids(asked[first:])
            if limit is None or len(ids) + reserve <= limit:
                return ids, first
            if first + 2 > len(asked) - 1:  # only the new message is left
                raise DataError(
                    f"the message takes {len(ids)} tokens, and the base's context is {limit}.",
                    kept_free=f"{reserve} tokens for the answer",
                    fix="shorten it",
                )
            first += 2  # a question and its answer

    def _ids(self, messages: list[dict[str, Any]]) -> list[int]:
        rendered = ask(self.base, [*self._system, *messages])
        return prompt_ids([rendered], self.base.tokenizer)[0]


class Teller:
    """transformers' streamer: gives `on_text` the text that no later token can change."""

    def __init__(self, base: LoadedModel, prompt: list[int], stops: list[int], on_text: OnText):
        self.base, self.prompt, self.stops, self.on_text = base, prompt, stops, on_text
        self.tokens: list[int] = []
        self.told = 0
        self.begun = False

    def put(self, value: Any) -> None:
        if not self.begun:  # the prompt comes first
            self.begun = True
            return
        self.tokens += value.reshape(-1).tolist()
        self._tell(final=False)

    def end(self) -> None:
        self._tell(final=True)

    def _tell(self, *, final: bool) -> None:
        text = text_after(self.base, self.prompt, self.tokens, self.stops, goes_on=not final)
        if not final:  # a character of several bytes may be half there
            text = text.rstrip("\N{REPLACEMENT CHARACTER}")
        if len(text) > self.told:
            self.on_text(text[self.told :])
            self.told = len(text)
