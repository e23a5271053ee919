"""A row as text: spans in order, each learned or context only."""

from dataclasses import dataclass, field

from lorica.data.fields import BadRow


@dataclass(frozen=True)
class TextSpan:
    text: str
    learned: bool


@dataclass(frozen=True)
class RenderedRow:
    """A row as text, before it is tokenised.

    special: the text has its own BOS and similar tokens (it comes from a chat template).
    ending: the end-of-turn text at the end of the last learned span; "" without chat template.
    group: rows made from one row of the file share it (data.split_turns), and stay on one side
        of the validation split. Empty for a row of its own.
    references: other right answers. An evaluation accepts them; they are not learned.
    """

    kind: str
    spans: tuple[TextSpan, ...]
    special: bool
    label: str | None = None
    where: str = ""
    ending: str = ""
    condition: str | None = None
    group: str = ""
    references: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """The prompt for generation: the text before the last learned span."""
        return "".join(span.text for span in self.spans[: self._last_learned])

    @property
    def reference(self) -> str:
        """The expected answer: the last learned span without its end of turn."""
        if self._last_learned == len(self.spans):
            return ""
        text = self.spans[self._last_learned].text
        return text.rstrip().removesuffix(self.ending) if self.ending else text

    @property
    def text(self) -> str:
        return "".join(span.text for span in self.spans)

    @property
    def _last_learned(self) -> int:
        learned = (i for i, span in enumerate(self.spans) if span.learned)
        return max(learned, default=len(self.spans))


@dataclass
class Outcome:
    """What rendering one row of the file gives: its rows of text, or why it cannot be used."""

    rows: list[RenderedRow] = field(default_factory=list)
    problem: BadRow | None = None
