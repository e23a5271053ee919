"""Experiment trackers that follow the event log of a run: accelerate's, by the name in report_to.

The event log is the record. A tracker that fails is named in it and left out; training continues.
"""

from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from lorica.errors import MissingError
from lorica.training.run import Follower

PROJECT = "lorica"
PREFIXES = {"step": "train", "eval": "eval"}
"""Events with metrics, and the prefix of their metrics in a tracker."""


def start_tracker(name: str, folder: Path, config: dict[str, Any]) -> Follower:
    """Start the tracker `name` for the run in `folder`. Returns: a function that takes each event.

    config: the settings of the run, plain. Raises: MissingError if the package is not installed.
    """
    project, options = {
        "tensorboard": (name, {"logging_dir": folder}),  # the events go to folder/tensorboard
        "wandb": (PROJECT, {"name": folder.name, "dir": str(folder), "config": config}),
        "mlflow": (PROJECT, {"run_name": folder.name}),
        "trackio": (PROJECT, {"name": folder.name, "config": config}),
    }[name]
    tracker: Any = LOGGER_TYPE_TO_CLASS[name](project, **options)
    try:
        tracker.start()
    except ImportError:
        raise MissingError(
            f"report_to {name} needs a package that is not installed.",
            fix=f'pip install "lorica[{name}]"',
        ) from None

    def follow(event: dict[str, Any]) -> None:
        if values := metrics(event):
            tracker.log(values, step=event["step"])
        if event["event"] == "end":
            tracker.finish()

    return follow


def metrics(event: dict[str, Any]) -> dict[str, float]:
    """The numbers of a step or an evaluation, by their names in a tracker; {} for other events."""
    prefix = PREFIXES.get(event["event"])
    if prefix is None:
        return {}
    return {
        f"{prefix}/{key}": value
        for key, value in event.items()
        if key != "step" and isinstance(value, int | float)
    }
