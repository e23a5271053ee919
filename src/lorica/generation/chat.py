"""A conversation in the terminal: messages are kept, answers are streamed.

When the context is full, the oldest exchange is dropped with a notice; the system message stays.
A model that was not trained on conversations gets each message by itself, in the format of its
training. A message that is longer than the context is an error, and leaves the conversation as it
was.
"""

from dataclasses import replace
from typing import Any

from lorica.base.load import LoadedModel
from lorica.data.text_encoder import prompt_ids
from lorica.errors import DataError
from lorica.generation.generate import generate_from_ids
from lorica.generation.prompts import (
    check_is_language_model,
    conversation_notices,
    end_of_turn,
    render_messages,
)
from lorica.generation.sampling import Sampling
from lorica.generation.stops import stops_of
from lorica.generation.task import OnText


class Chat:
    """One conversation with a model. Raises: ConfigError for a classifier.

    messages: all messages, also those that the model no longer sees.
    notices: sentences for the user: dropped messages, answers that were cut.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        system: str | None = None,
        sampling: Sampling | None = None,
        condition: str | None = None,
    ):
        check_is_language_model(loaded)
        self.loaded, self.sampling = loaded, sampling or Sampling(max_new_tokens=512)
        self.messages: list[dict[str, Any]] = []
        self.notices: list[str] = conversation_notices(loaded, has_system=bool(system))
        self._conditions = None if condition is None else [condition]
        self._system = [{"role": "system", "content": system}] if system else []
        self._dropped = 0
        self._stops = stops_of(loaded, [end_of_turn(loaded)])

    def answer(self, text: str, on_text: OnText | None = None) -> str:
        """Answer `text`; `on_text` gets each piece of the answer as soon as it is final.

        Raises: DataError if the message is empty or does not fit the context. The conversation
            is then as it was, also after Ctrl-C.
        """
        if not text.strip():
            raise DataError("the message is empty.", fix="write something")
        messages = [*self.messages, {"role": "user", "content": text}]
        ids, dropped = self._fit_context(messages)
        # Each answer has a seed of its own, or sampling would repeat the same draws.
        sampling = replace(self.sampling, seed=self.sampling.seed + len(messages))
        generation = generate_from_ids(
            self.loaded,
            [ids],
            sampling,
            stops=self._stops,
            on_text=on_text,
            conditions=self._conditions,
        )
        answer = generation.texts[0]
        if dropped > self._dropped:
            self.notices.append(
                f"the context of {self.loaded.max_length} tokens is full: "
                f"the first {dropped} messages are forgotten"
            )
        self.messages = [*messages, {"role": "assistant", "content": answer.strip()}]
        self._dropped = dropped
        self.notices += generation.notices
        return answer

    def _fit_context(self, messages: list[dict[str, Any]]) -> tuple[list[int], int]:
        """(ids of the prompt, how many of the oldest messages are left out)."""
        limit, first = self.loaded.max_length, self._dropped
        reserve = min(self.sampling.max_new_tokens, (limit or 0) // 4)
        while True:
            ids = self._ids(messages[first:])
            if limit is None or len(ids) + reserve <= limit:
                return ids, first
            if first + 2 > len(messages) - 1:  # only the new message is left
                raise DataError(
                    f"the message takes {len(ids)} tokens, and the base's context is {limit}.",
                    reserved=f"{reserve} tokens for the answer",
                    fix="shorten the message",
                )
            first += 2  # a question and its answer

    def _ids(self, messages: list[dict[str, Any]]) -> list[int]:
        rendered = render_messages(self.loaded, [*self._system, *messages])
        return prompt_ids([rendered], self.loaded.tokenizer)[0]
