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
class Notices:
    """Sentences, and of each how many rows it is about and the first of them.

    A sentence holds {n} where the count belongs; the places follow it.
    """

    rows: dict[str, tuple[int, list[str]]] = field(default_factory=dict)

    def add(self, sentence: str, *places: str) -> None:
        count, first = self.rows.get(sentence, (0, []))
        first = [*first, *places][:SHOWN]
        self.rows[sentence] = count + len(places), first

    def merge(self, later: "Notices") -> None:
        """Add those of rows that stand behind these. In place."""
        for sentence, (count, places) in later.rows.items():
            before, first = self.rows.get(sentence, (0, []))
            self.rows[sentence] = before + count, [*first, *places][:SHOWN]

    @property
    def lines(self) -> list[str]:
        return [_line(sentence, *told) for sentence, told in self.rows.items()]


def _line(sentence: str, count: int, places: list[str]) -> str:
    text = sentence.replace("{n}", f"{count:,}")
    if not count:
        return text
    more = f" ... and {count - len(places):,} more" if count > len(places) else ""
    return f"{text}: {', '.join(places)}{more}"
