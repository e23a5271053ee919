"""One row as text: segments in order, each learned or only read."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TextSpan:
    text: str
    learned: bool


@dataclass(frozen=True)
class RenderedRow:
    """One row as text.

    group: what rows made from one row of the file share (data.split_turns); they stay on one
        side of the split. Empty for a row of its own.
    references: other right answers beside `reference`; they are compared with, and not learned.
    """

    kind: str
    segments: tuple[TextSpan, ...]
    special: bool  # the text carries BOS and its like already (chat template)
    label: str | None = None
    where: str = ""
    ending: str = ""  # the chat template's end-of-turn, at the end of the last learned segment
    condition: str | None = None
    group: str = ""
    references: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """What generation is given: the text before the last learned segment."""
        return "".join(segment.text for segment in self.segments[: self._last])

    @property
    def reference(self) -> str:
        """What generation should answer: the last learned segment, without end-of-turn."""
        last = self.segments[self._last].text if self._last < len(self.segments) else ""
        return last.rstrip().removesuffix(self.ending) if self.ending else last

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments)

    @property
    def _last(self) -> int:
        learned = (i for i, segment in enumerate(self.segments) if segment.learned)
        return max(learned, default=len(self.segments))
