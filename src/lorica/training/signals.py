"""Ctrl-C and SIGTERM end a run after the current step; a second one ends it at once."""

import signal
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from lorica.errors import Stopped

KINDS = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Inside the block, signals are recorded. received: the number of the first; 0: none yet."""

    def __init__(self) -> None:
        self.received = 0
        self.before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python has none
            self.before = {kind: signal.getsignal(kind) for kind in KINDS}
            for kind in KINDS:
                signal.signal(kind, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: object) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        for kind, handler in self.before.items():
            signal.signal(kind, handler)  # type: ignore[arg-type]
        self.before = {}


def stopped_by(number: int, step: str, run: Path) -> Stopped:
    """The error of a run that a signal has stopped. step: of how many, as "3 of 9"."""
    return Stopped(
        f"stopped by {signal.Signals(number).name}; everything is saved.",
        step=step,
        signal=number,
        fix=f"resume with: lorica train --resume {run}",
    )
