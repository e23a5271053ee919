"""What a command is doing, on stderr: a live line in a terminal, else a plain line now and then.

Whatever may take over two seconds says so here: reading rows, loading a base, evaluating,
merging. A library that is imported is quiet; commands, and `train` with `show`, report.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Timer
from types import TracebackType

AFTER = 2.0  # seconds before a plain line about work that goes on; shorter work needs none
EVERY = 10.0  # seconds between plain lines
LIVE = 0.2  # seconds between updates of a live line
SOON = 1.0  # seconds until a command that goes on says what it is
WIDTH = 160  # characters of it
_reports: ContextVar[bool] = ContextVar("reports", default=False)


@contextmanager
def reporting(on: bool = True) -> Iterator[None]:
    """Inside the block progress is reported, or not."""
    token = _reports.set(on)
    try:
        yield
    finally:
        _reports.reset(token)


def announce(text: str) -> None:
    """One plain line: what begins now."""
    if _reports.get():
        print(text, file=sys.stderr, flush=True)


@contextmanager
def first_word(command: str) -> Iterator[None]:
    """Repeat a command that has not ended soon: libraries and bases take seconds to load."""
    if not _reports.get():
        yield
        return
    text = command if len(command) <= WIDTH else f"{command[: WIDTH - 3]}..."
    timer = Timer(SOON, print, [f"{text}: starting"], {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Progress:
    """Work that goes on, in a `with` block: how much is done, and how long the rest will take.

    what: the work, as "reading rows.jsonl". total: of what `update` counts; None: not known.
    unit: "B" writes bytes as MB; other units are written behind the count.
    """

    def __init__(self, what: str, total: int | None = None, unit: str = "rows"):
        self.what, self.total, self.unit = what, total, unit
        self._done, self._note = 0, ""
        self._began = self._shown = time.monotonic()
        self._on = _reports.get()
        self._live = self._on and sys.stderr.isatty()
        self._drawn = False

    def __enter__(self) -> "Progress":
        return self

    def update(self, done: int, note: str = "") -> None:
        """done: of `total`. note: stands behind it, as "120,000 rows"."""
        self._done, self._note = done, note
        if not self._on:
            return
        now = time.monotonic()
        first = AFTER if self._shown == self._began else EVERY
        if now - self._shown >= (LIVE if self._live else first):
            self._shown = now
            self._draw(now)

    def advance(self, count: int = 1, note: str = "") -> None:
        self.update(self._done + count, note)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        took = time.monotonic() - self._began
        if self._live and self._drawn:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        if self._on and kind is None and took >= AFTER:
            print(f"{self.what}: {self._count()}done in {took:.1f} s", file=sys.stderr, flush=True)

    def _draw(self, now: float) -> None:
        text = f"{self.what}: {self._amount()}{self._left(now)}"
        end, start = ("", "\r\x1b[K") if self._live else ("\n", "")
        print(f"{start}{text}", end=end, file=sys.stderr, flush=True)
        self._drawn = True

    def _count(self) -> str:
        return f"{self._note}, " if self._note else ""

    def _amount(self) -> str:
        of = f" of {self._written(self.total)}" if self.total else ""
        unit = "" if self.unit == "B" else f" {self.unit}"
        note = f", {self._note}" if self._note else ""
        return f"{self._written(self._done)}{of}{unit}{note}"

    def _written(self, count: int) -> str:
        return f"{count / 1e6:,.1f} MB" if self.unit == "B" else f"{count:,}"

    def _left(self, now: float) -> str:
        if not self.total or not 0 < self._done < self.total:
            return ""
        left = (now - self._began) / self._done * (self.total - self._done)
        return f", {left:,.0f} s left"
