"""Show the progress of a run: a live bar in a terminal, plain lines elsewhere."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_EVERY = 5.0  # seconds between plain lines


class Display:
    """Shows the events of a run on stderr. title: before each line, for one of several runs."""

    def __init__(self, total: int, title: str = ""):
        self.total, self.title = total, title
        self.console = Console(stderr=True, highlight=False)
        self.first_step, self.began, self.last_shown = 0, 0.0, 0.0
        self.bar: Progress | None = None
        if self.console.is_terminal and not title:
            columns = (TextColumn("{task.description}"), BarColumn(None), TimeRemainingColumn())
            self.bar = Progress(*columns, console=self.console, transient=True)
            self.bar.start()
            self.task = self.bar.add_task("", total=total)

    def __call__(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "step":
            self._step(event)
        elif kind == "eval":
            accuracy = event.get("accuracy")
            share = "" if accuracy is None else f", accuracy {accuracy:.1%}"
            self.print(f"step {event['step']}: held-out loss {event['loss']:.4f}{share}")
        elif kind in ("line", "checkpoint", "stop"):
            self.print(event.get("text", ""))

    def _step(self, event: dict[str, Any]) -> None:
        step, now = event["step"], time.monotonic()
        if not self.first_step:
            self.first_step, self.began = step, now
        text = (
            f"step {step}/{self.total}  loss {event['loss']:.4f}  lr {event['lr']:.2e}  "
            f"{event['tokens_per_second']:,.0f} tokens/s  {event['memory'] / 2**20:,.0f} MiB"
        )
        if self.bar is not None:
            self.bar.update(self.task, completed=step, description=text)
            return
        if now - self.last_shown >= PLAIN_EVERY or step == self.total:
            self.last_shown = now
            self.print(text + self._time_left(step, now))

    def _time_left(self, step: int, now: float) -> str:
        if step == self.first_step:  # nothing to judge by yet
            return ""
        left = (now - self.began) / (step - self.first_step) * (self.total - step)
        return f"  {left:,.0f} s left"

    def print(self, text: str) -> None:
        if text:
            text = f"{self.title}: {text}" if self.title else text
            self.console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
