"""Exporters that follow the event log: TensorBoard and Weights & Biases.

The log is the truth. An exporter that fails is named once and left out; training goes on.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorica.errors import MissingError

Exporter = Callable[[dict[str, Any]], None]


def exporter(name: str, folder: Path, config: dict[str, Any]) -> Exporter:
    """A function that takes each event. Raises: MissingError if the package is not installed."""
    try:
        return {"tensorboard": _tensorboard, "wandb": _wandb}[name](folder, config)
    except ImportError:
        raise MissingError(
            f"report_to {name} needs a package that is not installed.",
            fix=f'pip install "lorica[{name}]"',
        ) from None


def figures(event: dict[str, Any]) -> dict[str, float]:
    """The numbers of a step or an evaluation, by the name that they have in a tracker."""
    kinds = {"step": "train", "eval": "eval"}
    if event["event"] not in kinds:
        return {}
    head = kinds[event["event"]]
    return {
        f"{head}/{k}": v for k, v in event.items() if k != "step" and isinstance(v, int | float)
    }


def _tensorboard(folder: Path, config: dict[str, Any]) -> Exporter:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))

    def take(event: dict[str, Any]) -> None:
        for key, value in figures(event).items():
            writer.add_scalar(key, value, event["step"])
        if event["event"] == "end":
            writer.close()

    return take


def _wandb(folder: Path, config: dict[str, Any]) -> Exporter:
    import wandb  # type: ignore[import-not-found]

    run = wandb.init(project="lorica", name=folder.name, dir=str(folder), config=config)

    def take(event: dict[str, Any]) -> None:
        if values := figures(event):
            run.log(values, step=event["step"])
        if event["event"] == "end":
            run.finish()

    return take
