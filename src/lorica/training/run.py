"""A run folder: the settings, the event log, the checkpoints and the results of one run.

    config.yaml  events.jsonl  checkpoints/  adapter/  results.json  loss.png  ranks.png

The event log is only appended to; after a resume the later line of a step counts.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lorica import plain_files, strict_json
from lorica.errors import ConfigError, FileError, ResourceError, listed, writing
from lorica.evaluation.html import result_html
from lorica.evaluation.trained_rows import ROWS, short_digests
from lorica.formats import commit
from lorica.formats.adapter_folder import can_be_replaced

CONFIG, EVENTS, RESULTS = "config.yaml", "events.jsonl", "results.json"
NAMES = (
    CONFIG,
    EVENTS,
    RESULTS,
    ROWS,
    "predictions.jsonl",
    ".lock",
    "checkpoints",
    "adapter",
    "loss.png",
    "ranks.png",
    "tensorboard",
    "wandb",
)
"""Names in a run folder. Each is a plain file or folder, never a link to another place."""


@dataclass(frozen=True)
class Result:
    """A finished run: its folder, its figures (results.json) and its notices."""

    folder: Path
    figures: dict[str, Any]
    notices: list[str] = field(default_factory=list)

    def _repr_html_(self) -> str:
        """As a notebook shows it."""
        return result_html(str(self.folder), self.figures, self.notices)


Follower = Callable[[dict[str, Any]], None]
"""Receives every event of a run: the display, a tracker."""


class Run:
    """The folder of one run, its event log and its notices.

    is_writer: of several processes that train, the one that writes.
    """

    def __init__(self, folder: Path, *, is_writer: bool = True):
        self.folder, self.is_writer = folder, is_writer
        self.checkpoints = folder / "checkpoints"
        self.adapter = folder / "adapter"
        self.notices: list[str] = []
        self.followers: list[Follower] = []
        self.closing = ExitStack()

    def create(self, config: str) -> None:
        """Create the folder. It replaces a run that failed before its first checkpoint.

        Raises: ConfigError if another run, or anything else, is in the folder; ResourceError if a
            process is training there.
        """
        if self._is_failed_start():
            with self.lock():
                commit.remove(self.folder)
            self.notices.append(f"{self.folder} held a run without a checkpoint; it was replaced")
        if self.folder.is_dir() and any(self.folder.iterdir()):
            resume = f", or resume it: lorica train --resume {self.folder}"
            raise ConfigError(
                f"{self.folder} exists, and is not overwritten.",
                fix="choose another output" + (resume if self.is_run else ""),
            )
        with commit.folder(self.folder) as staging:  # so no run is without its settings
            (staging / self.checkpoints.name).mkdir()
            commit.write_text(staging / CONFIG, config)

    def _is_failed_start(self) -> bool:
        """Whether the folder holds a run without a checkpoint, and only files that runs write."""
        if not self.folder.is_dir() or self.folder.is_symlink() or not self.is_run:
            return False
        names = set(plain_files.names_in(self.folder))
        has_checkpoint = bool(plain_files.names_in(self.checkpoints))
        return not has_checkpoint and names <= {
            CONFIG,
            EVENTS,
            ROWS,
            ".lock",
            self.checkpoints.name,
        }

    def rewrite(self, config: str) -> None:
        """Replace the settings: those of a run that was resumed with changed ones."""
        commit.write_text(self.folder / CONFIG, config)

    @contextmanager
    def beginning(self, config: str) -> Iterator[None]:
        """Create the folder, and remove it if the block that prepares the run fails.

        A corrected command can then use the same output.
        """
        self.create(config)
        try:
            yield
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    @property
    def is_run(self) -> bool:
        return plain_files.is_file(self.folder / CONFIG)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Inside the block this process alone writes to the run.

        The lock belongs to the process (flock): one that was killed leaves none behind.
        Raises: ResourceError if another process holds it; FileError if something in the folder is a
            link, or is in the place of what the run writes.
        """
        plain_files.check(self.folder, *NAMES)
        self._check_places()
        with writing(self.folder), plain_files.open_to_append(self.folder / ".lock") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ResourceError(
                    f"another process is training in {self.folder}.", fix="wait for it, or stop it"
                ) from None
            commit.sweep(self.folder)
            yield

    def _check_places(self) -> None:
        """Raises: FileError if something else is in the place of what the run writes at its end."""
        wrong: dict[str, str] = {}
        for name in NAMES:
            kind = plain_files.kind_of(self.folder / name)
            wanted = "file" if "." in name else "folder"
            if kind not in (None, wanted):
                wrong[name] = f"a {kind}, where the run writes a {wanted}"
        if "adapter" not in wrong and plain_files.names_in(self.adapter):
            try:
                if not can_be_replaced(self.adapter):
                    inside = listed(plain_files.names_in(self.adapter), 8)
                    wrong["adapter"] = f"it holds files that are no part of an adapter: {inside}"
            except FileError as error:
                wrong["adapter"] = error.what
        if wrong:
            moves = " && ".join(
                f"mv {self.folder / name} {self.folder / name}.old" for name in wrong
            )
            raise FileError(
                f"{self.folder} has other things in the places of what the run writes.",
                **wrong,
                fix=f"move it away: {moves}",
            )
        if plain_files.is_file(self.folder / EVENTS):
            plain_files.check_log(self.folder / EVENTS)

    def note_rows(self, contents: np.ndarray) -> None:
        """Save which rows were trained on. contents: (N,) digests of the rows."""
        commit.write_bytes(self.folder / ROWS, short_digests(contents))

    def log(self, event: str, **facts: Any) -> None:
        """Append an event to the log, and hand it to the followers. Other processes do nothing.

        A follower that fails is left out from then on, and training continues.
        """
        if not self.is_writer:
            return
        line = {"event": event, **facts}
        self._append(line)
        for follower in list(self.followers):
            try:
                follower(line)
            except Exception as error:  # a tracker may fail in any way
                self.followers.remove(follower)
                self._append(
                    {
                        "event": "line",
                        "text": f"a follower of the log failed and is left out: {error}",
                    }
                )

    def notice(self, *texts: str) -> None:
        """Add notices to those of the run, and log them."""
        self.notices += texts
        for text in texts:
            self.log("line", text=text)

    def close(self) -> None:
        """Close the display and the trackers."""
        self.closing.close()

    def _append(self, event: dict[str, Any]) -> None:
        path = self.folder / EVENTS
        with writing(path), plain_files.open_to_append(path) as file:
            if file.tell() and _last_byte(file) != b"\n":
                file.write(b"\n")  # a killed process left half a line
            file.write(json.dumps(event, allow_nan=False).encode() + b"\n")


def _last_byte(file: Any) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)


def read_events(folder: Path) -> list[dict[str, Any]]:
    """The event log of a run; a line that a kill cut short is skipped."""
    path = folder / EVENTS
    if not plain_files.is_file(path):
        raise FileError(f"{path} is not there.", fix="name a run folder")
    events = []
    for line in plain_files.read_lines(path):
        with suppress(ValueError):
            event = strict_json.parse(line)
            events += [event] if isinstance(event, dict) else []
    return events


def losses_of(folder: Path) -> list[float]:
    """The training loss of every step, also before a resume; [] without a log."""
    has_log = plain_files.is_file(folder / EVENTS)
    return by_step(read_events(folder), "step", "loss")[1] if has_log else []


def by_step(events: list[dict[str, Any]], kind: str, key: str) -> tuple[list[int], list[float]]:
    """(steps, values) of a figure; where a step was done twice, the later value counts."""
    values = {
        e["step"]: e[key]
        for e in events
        if e.get("event") == kind
        and type(e.get("step")) is int
        and type(e.get(key)) in (int, float)
    }
    return sorted(values), [values[step] for step in sorted(values)]
