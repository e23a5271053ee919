"""Notices about rows, counted while rows come in chunks, from one process or several."""

from dataclasses import dataclass, field

SHOWN = 4  # places that a notice names


@dataclass
class Places:
    """How many things there are, and where the first of them stand."""

    most: int = SHOWN  # that are named
    between: str = ", "
    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, where: str) -> None:
        self.count += 1
        if len(self.first) < self.most:
            self.first.append(where)

    def __bool__(self) -> bool:
        return self.count > 0

    def __str__(self) -> str:
        left = self.count - len(self.first)
        return self.between.join(self.first) + (f" ... and {left:,} more" if left else "")


@dataclass
class Tally:
    """How many rows a sentence is about, the first of them, and the last."""

    count: int = 0
    first: list[str] = field(default_factory=list)
    last: str = ""


@dataclass
class Notices:
    """Sentences, and the rows that each is about.

    A sentence holds {n} where the count belongs; the places follow it.
    """

    about: dict[str, Tally] = field(default_factory=dict)

    def add(self, sentence: str, place: str = "") -> None:
        """place: of the row; none for what is not about a row. A row counts once."""
        tally = self.about.setdefault(sentence, Tally())
        if place and place != tally.last:
            tally.count += 1
            tally.first = [*tally.first, place][:SHOWN]
            tally.last = place

    def merge(self, later: "Notices") -> None:
        """Add those of rows that stand behind these. In place."""
        for sentence, told in later.about.items():
            tally = self.about.setdefault(sentence, Tally())
            tally.count += told.count
            tally.first = [*tally.first, *told.first][:SHOWN]
            tally.last = told.last

    @property
    def texts(self) -> list[str]:
        return [_line(sentence, tally) for sentence, tally in self.about.items()]


def _line(sentence: str, tally: Tally) -> str:
    text = sentence.replace("{n}", f"{tally.count:,}")
    if not tally.count:
        return text
    left = tally.count - len(tally.first)
    return f"{text}: {', '.join(tally.first)}" + (f" ... and {left:,} more" if left else "")
