"""The event log of a run, and those who follow it: the screen, and exporters."""

from collections.abc import Callable
from typing import Any

from lorica.training.config import TrainConfig
from lorica.training.export import exporter
from lorica.training.progress import Show
from lorica.training.run import Run


class Log:
    """Writes events to the run's log and hands each to the followers."""

    def __init__(self, run: Run, show: Show | None, config: TrainConfig):
        self._run, self._show = run, show
        plain = config.model_dump(mode="json")
        self._followers: list[Callable[[dict[str, Any]], None]] = [show] if show else []
        self._followers += [exporter(name, run.folder, plain) for name in config.report_to]

    def __call__(self, event: str, **facts: Any) -> None:
        line = self._run.log(event, **facts)
        for follower in list(self._followers):
            try:
                follower(line)
            except Exception as error:  # a tracker that fails must not end the run
                self._followers.remove(follower)
                text = f"a follower of the log failed and is left out: {error}"
                self._run.log("line", text=text)

    def close(self) -> None:
        if self._show:
            self._show.close()


class Silent:
    """The log of a process that is not the main one."""

    def __call__(self, event: str, **facts: Any) -> None:
        """Nothing is written."""

    def close(self) -> None:
        """Nothing is open."""
