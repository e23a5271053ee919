"""One row as the model sees it: token ids, and which of them are labels."""

from dataclasses import dataclass, field

from lorica.data.rendered_row import RenderedRow


@dataclass(frozen=True)
class Example:
    """One row as the model sees it."""

    ids: list[int]
    learned: list[bool]  # learned[i]: token i is a label; learned[0] is always False
    where: str
    label: int | None = None
    source: RenderedRow | None = field(default=None, compare=False, repr=False)
    row: int = field(default=0, compare=False, repr=False)  # number of the row it comes from
    condition: str | None = None

    @property
    def prompt(self) -> list[int]:
        """The ids that generation is given: those before the last learned stretch."""
        end = len(self.learned)
        while end and not self.learned[end - 1]:
            end -= 1
        while end and self.learned[end - 1]:
            end -= 1
        return self.ids[:end]
