"""Progress of a command on stderr: a live line in a terminal, else a plain line now and then.

Everything that may take over two seconds reports here: reading rows, loading a base, evaluating,
merging. As a library the package is silent; commands, and `train` with `show`, report.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from threading import Timer
from types import TracebackType

FIRST_LINE = 2.0  # seconds of work before its first plain line; shorter work has none
PLAIN_INTERVAL = 10.0  # seconds between plain lines
LIVE_INTERVAL = 0.2  # seconds between updates of a live line
SLOW_START = 1.0  # seconds until a command that still runs is announced
MAX_CHARACTERS = 160  # of the announcement
_reports: ContextVar[bool] = ContextVar("reports", default=False)


def _print(text: str, end: str = "\n") -> None:
    """To stderr; one that is closed or full ends no work."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            print(text, end=end, file=sys.stderr, flush=True)


@contextmanager
def reporting(on: bool = True) -> Iterator[None]:
    """Turn reports on or off inside the block."""
    token = _reports.set(on)
    try:
        yield
    finally:
        _reports.reset(token)


def announce(text: str) -> None:
    """Print one plain line, if reports are on."""
    if _reports.get():
        _print(text)


@contextmanager
def announce_slow_start(command: str) -> Iterator[None]:
    """Print the command if it still runs after a second: libraries and bases take time to load."""
    if not _reports.get():
        yield
        return
    text = command if len(command) <= MAX_CHARACTERS else f"{command[: MAX_CHARACTERS - 3]}..."
    timer = Timer(SLOW_START, _print, [f"{text}: starting"])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Progress:
    """Work in a `with` block: how much is done, and the estimated time left.

    what: the work, as "reading rows.jsonl". total: of what `update` counts; None: unknown.
    unit: "B" prints bytes as MB; other units are printed after the count.
    """

    def __init__(self, what: str, total: int | None = None, unit: str = "rows"):
        self.what, self.total, self.unit = what, total, unit
        self._done, self._note = 0, ""
        self._began = self._last_line = time.monotonic()
        self._on = _reports.get()
        self._live = self._on and sys.stderr.isatty()
        self._has_line = False

    def __enter__(self) -> "Progress":
        return self

    def update(self, done: int, note: str = "") -> None:
        """done: of `total`. note: printed after it, as "120,000 rows"."""
        self._done, self._note = done, note
        if not self._on:
            return
        now = time.monotonic()
        plain_interval = FIRST_LINE if self._last_line == self._began else PLAIN_INTERVAL
        if now - self._last_line >= (LIVE_INTERVAL if self._live else plain_interval):
            self._last_line = now
            self._print_line(now)

    def advance(self, count: int = 1, note: str = "") -> None:
        self.update(self._done + count, note)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        seconds = time.monotonic() - self._began
        if self._live and self._has_line:
            _print("\r\x1b[K", end="")
        if self._on and kind is None and seconds >= FIRST_LINE:
            note = f"{self._note}, " if self._note else ""
            _print(f"{self.what}: {note}done in {seconds:.1f} s")

    def _print_line(self, now: float) -> None:
        start, end = ("\r\x1b[K", "") if self._live else ("", "\n")
        text = f"{start}{self.what}: {self._amount()}{self._time_left(now)}"
        _print(text, end)
        self._has_line = True

    def _amount(self) -> str:
        total = f" of {self._format(self.total)}" if self.total else ""
        unit = "" if self.unit == "B" else f" {self.unit}"
        note = f", {self._note}" if self._note else ""
        return f"{self._format(self._done)}{total}{unit}{note}"

    def _format(self, count: int) -> str:
        return f"{count / 1e6:,.1f} MB" if self.unit == "B" else f"{count:,}"

    def _time_left(self, now: float) -> str:
        if not self.total or not 0 < self._done < self.total:
            return ""
        seconds = (now - self._began) / self._done * (self.total - self._done)
        return f", {seconds:,.0f} s left"
