"""The text that a chat template writes for a conversation, and the texts of its first messages."""

from dataclasses import dataclass, field
from typing import Any

from lorica.data.fields import BadRow


@dataclass(frozen=True)
class Prefix:
    """The text of the first messages, compared with the text of the whole conversation."""

    length: int  # characters
    common: int  # characters from the start that both texts have in common
    near: str  # the text around the first difference

    @property
    def is_prefix(self) -> bool:
        return self.common == self.length


@dataclass(frozen=True)
class RenderedChat:
    """The text that the template writes for one conversation.

    marked: (start, end) characters of the template's {% generation %} blocks.
    before, through: for each learned answer, the prompt for generation, and the text that ends
        with the answer. Empty for a template that marks its answers.
    dated: the text contains today's date.
    refused: why there is no text; the other fields are empty then.
    """

    text: str = ""
    marked: list[tuple[int, int]] = field(default_factory=list)
    before: list[Prefix] = field(default_factory=list)
    through: list[Prefix] = field(default_factory=list)
    dated: bool = False
    refused: str | None = None

    @classmethod
    def from_answer(cls, answer: dict[str, Any]) -> "RenderedChat":
        """From an answer of the template process, to a job with two cuts for each answer."""
        if "refused" in answer:
            return cls(refused=answer["refused"])
        cuts = [Prefix(*cut) for cut in answer["cuts"]]
        marked = [(start, end) for start, end in answer["turns"]]
        return cls(answer["text"], marked, cuts[::2], cuts[1::2], answer["dated"])

    def check(self) -> None:
        """Raises: BadRow if the template refused the conversation."""
        if self.refused is not None:
            raise BadRow(f"the chat template refuses it ({self.refused})")
