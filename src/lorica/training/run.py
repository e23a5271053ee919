"""A run folder: one place for what was asked, what happened, and what came out.

    config.yaml  events.jsonl  checkpoints/  adapter/  results.json  loss.png  ranks.png

The event log is appended to and never rewritten; after a resume the later line of a step counts.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorica.errors import ConfigError, FileError, ResourceError, writing
from lorica.formats import commit

CONFIG, EVENTS, RESULTS = "config.yaml", "events.jsonl", "results.json"


class Run:
    """The folder of one run, open for writing by one process."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self.adapter = folder / "adapter"

    def create(self, config: str) -> None:
        """Make the folder. Raises: ConfigError if a run, or anything else, is there."""
        if self.folder.is_dir() and any(self.folder.iterdir()):
            resume = f", or go on with it: lorica train --resume {self.folder}"
            raise ConfigError(
                f"{self.folder} is there already, and is not overwritten.",
                fix="choose another output" + (resume if self.is_run else ""),
            )
        with commit.folder(self.folder) as staging:  # so no run is without its settings
            (staging / self.checkpoints.name).mkdir()
            commit.write_text(staging / CONFIG, config)

    @contextmanager
    def beginning(self, config: str) -> Iterator[None]:
        """Make the folder for what the block prepares; if that fails it is gone again.

        So a command line that is corrected can be given again with the same output.
        """
        self.create(config)
        try:
            yield
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    @property
    def is_run(self) -> bool:
        return (self.folder / CONFIG).is_file()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Only one process writes to a run. Raises: ResourceError if another one does."""
        with writing(self.folder), (self.folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ResourceError(
                    f"another process is training in {self.folder}.", fix="wait for it, or stop it"
                ) from None
            commit.sweep(self.folder)
            yield

    def log(self, event: str, **facts: Any) -> dict[str, Any]:
        """Append one line to the event log."""
        line = {"event": event, **facts}
        path = self.folder / EVENTS
        with writing(path), path.open("ab+") as file:
            if file.tell() and _last_byte(file) != b"\n":
                file.write(b"\n")  # a killed process left half a line
            file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        return line


def _last_byte(file: Any) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)


def read_events(folder: Path) -> list[dict[str, Any]]:
    """The event log of a run; a line that a kill cut short is passed over."""
    path = folder / EVENTS
    if not path.is_file():
        raise FileError(f"{path} is not there.", fix="name a run folder")
    events = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events


def by_step(events: list[dict[str, Any]], kind: str, key: str) -> tuple[list[int], list[float]]:
    """(steps, values) of one figure; of a step that was done twice, the later value."""
    found = {e["step"]: e[key] for e in events if e["event"] == kind and e.get(key) is not None}
    return sorted(found), [found[step] for step in sorted(found)]
