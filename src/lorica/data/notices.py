"""Notices about rows, counted over all chunks of a file."""

from dataclasses import dataclass, field

SHOWN = 4  # rows that a notice names


@dataclass
class Places:
    """Counts places (file and line), and names the first of them."""

    most: int = SHOWN  # places that are named
    between: str = ", "
    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, where: str) -> None:
        self.count += 1
        if len(self.first) < self.most:
            self.first.append(where)

    def take(self) -> tuple[int, list[str]]:
        """The count and the first places, which are then forgotten, for `merge` elsewhere."""
        taken = self.count, self.first
        self.count, self.first = 0, []
        return taken

    def merge(self, taken: tuple[int, list[str]]) -> None:
        """Add what another process counted in later rows."""
        count, first = taken
        self.count += count
        self.first = [*self.first, *first][: self.most]

    def __bool__(self) -> bool:
        return self.count > 0

    def __str__(self) -> str:
        more = self.count - len(self.first)
        return self.between.join(self.first) + (f" ... and {more:,} more" if more else "")


@dataclass
class Tally:
    """How many rows a notice is about, the first of them, and the last."""

    count: int = 0
    first: list[str] = field(default_factory=list)
    last: str = ""


@dataclass
class Notices:
    """Notices, each with the rows that it is about.

    A notice has {n} in place of the number of rows. Their places follow it.
    """

    rows_of: dict[str, Tally] = field(default_factory=dict)

    def add(self, notice: str, place: str = "") -> None:
        """place: of the row; empty for a notice about no row. A row is counted once."""
        tally = self.rows_of.setdefault(notice, Tally())
        if place and place != tally.last:
            tally.count += 1
            tally.first = [*tally.first, place][:SHOWN]
            tally.last = place

    def take(self) -> dict[str, tuple[int, list[str]]]:
        """The notices with count and first places, which are then forgotten, for `merge`."""
        taken = {notice: (tally.count, tally.first) for notice, tally in self.rows_of.items()}
        self.rows_of = {}
        return taken

    def merge(self, taken: dict[str, tuple[int, list[str]]]) -> None:
        """Add the notices of another process on later rows."""
        for notice, (count, first) in taken.items():
            tally = self.rows_of.setdefault(notice, Tally())
            tally.count += count
            tally.first = [*tally.first, *first][:SHOWN]

    @property
    def texts(self) -> list[str]:
        return [_with_rows(notice, tally) for notice, tally in self.rows_of.items()]


def _with_rows(notice: str, tally: Tally) -> str:
    text = notice.replace("{n}", f"{tally.count:,}")
    if not tally.count:
        return text
    more = tally.count - len(tally.first)
    return f"{text}: {', '.join(tally.first)}" + (f" ... and {more:,} more" if more else "")
