"""A message stays text: it may not write the tokens that begin and end turns.

A tokenizer reads `<|end|>` in a message as the token itself, so that a user, or a text that a user
quotes, could write turns of others. Training reads it so too, so there are no ids of it "as text"
that a model has learned: such a message is refused by name.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lorica.data.text_encoder import TextEncoder
from lorica.serve.refusals import InvalidRequest

BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class ControlTokens:
    """texts: what the prompts of the model are written with: its template, its end of turn.

    Special tokens are refused in every message. Tokens that were added without being special, and
    that `texts` have, are refused in questions alone: answers may have them (`<think>`).
    """

    def __init__(self, tokenizer: Any, encoder: TextEncoder, texts: Sequence[str]):
        added = tokenizer.added_tokens_decoder
        special = {i for i, token in added.items() if token.special}
        written = {i for i, token in added.items() if any(token.content in t for t in texts)}
        self._encoder = encoder
        self._of_answers = special | set(tokenizer.all_special_ids)
        self._of_questions = self._of_answers | written
        self._texts = {
            i: str(tokenizer.convert_ids_to_tokens(i)) for i in sorted(self._of_questions)
        }
        unknown = tokenizer.unk_token_id
        # Tokens that stand for characters, too. Written out, they are refused as well.
        self._of_characters = {
            i for i, text in self._texts.items() if i == unknown or BYTE.fullmatch(text)
        }

    def check(self, messages: Sequence[Mapping[str, str]]) -> None:
        """Raises: InvalidRequest if a message has a control token, or several of them together."""
        contents = [message["content"] for message in messages]
        *each, together = self._encoder.ids([*contents, "".join(contents)])
        for number, (message, ids) in enumerate(zip(messages, each, strict=True)):
            is_answer = message["role"] == "assistant"
            control = self._of_answers if is_answer else self._of_questions
            self._refuse(ids, control, message["content"], f"messages.{number}.content")
        self._refuse(together, self._of_answers, "".join(contents), "messages")

    def _refuse(self, ids: Sequence[int], control: set[int], content: str, param: str) -> None:
        for token in sorted(control.intersection(ids)):
            text = self._texts[token]
            if token in self._of_characters and text not in content:
                continue
            raise InvalidRequest(
                f"{param} has {text!r:.80}, which is a control token of this model.",
                fix="take it out, or put a space into it",
                param=param,
            )
