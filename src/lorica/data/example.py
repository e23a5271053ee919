"""One row as the model sees it: token ids, and which of them are labels."""

from dataclasses import dataclass, field

from lorica.data.rendered_row import RenderedRow


@dataclass(frozen=True)
class Example:
    """A tokenised row, or a range of one.

    learned[i]: token i is a label; learned[0] is always False. where: file and line. label: the
    class. source: the row's text, if it was kept. row: the number of the row in the file.
    """

    ids: list[int]
    learned: list[bool]
    where: str
    label: int | None = None
    source: RenderedRow | None = field(default=None, compare=False, repr=False)
    row: int = field(default=0, compare=False, repr=False)
    condition: str | None = None

    @property
    def prompt(self) -> list[int]:
        """The prompt ids for generation: those before the last range of labels."""
        end = len(self.learned)
        while end and not self.learned[end - 1]:
            end -= 1
        while end and self.learned[end - 1]:
            end -= 1
        return self.ids[:end]
