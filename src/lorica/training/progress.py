"""What a person sees while a run goes on: a live line in a terminal, plain lines elsewhere."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

EVERY = 5.0  # seconds between plain lines


class Show:
    """Follows the events of a run. name: stands before its lines, where several are followed."""

    def __init__(self, total: int, name: str = "", console: Console | None = None):
        self.total, self.name = total, name
        self.console = console or Console(stderr=True, highlight=False)
        self.first, self.began, self.shown = 0, 0.0, 0.0  # the first step seen, and when
        self.bar: Progress | None = None
        if self.console.is_terminal and not name:
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
            told = "" if accuracy is None else f", accuracy {accuracy:.1%}"
            self.line(f"step {event['step']}: held-out loss {event['loss']:.4f}{told}")
        elif kind in ("line", "checkpoint", "stop"):
            self.line(event.get("text", ""))

    def _step(self, event: dict[str, Any]) -> None:
        step, now = event["step"], time.monotonic()
        if not self.first:
            self.first, self.began = step, now
        text = (
            f"step {step}/{self.total}  loss {event['loss']:.4f}  lr {event['lr']:.2e}  "
            f"{event['tokens_per_second']:,.0f} tokens/s  {event['memory'] / 2**20:,.0f} MiB"
        )
        if self.bar is not None:
            self.bar.update(self.task, completed=step, description=text)
            return
        if now - self.shown >= EVERY or step == self.total:
            self.shown = now
            self.line(text + self._left(step, now))

    def _left(self, step: int, now: float) -> str:
        if step == self.first:  # nothing to judge by yet
            return ""
        left = (now - self.began) / (step - self.first) * (self.total - step)
        return f"  {left:,.0f} s left"

    def line(self, text: str) -> None:
        if text:
            text = f"{self.name}: {text}" if self.name else text
            self.console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
