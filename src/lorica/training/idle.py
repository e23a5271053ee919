"""Layers that a run leaves out because nothing could be learned there, and the notices about it."""

from typing import Any

from lorica.base.load import LoadedModel
from lorica.base.training_probe import uncalled
from lorica.core.adapter import Method
from lorica.core.targets import Targets, also_excluded, left_out, select
from lorica.errors import listed
from lorica.training.config import TrainConfig


def without_idle(
    base: LoadedModel, config: TrainConfig, method: Method, whole: list[str]
) -> tuple[str | list[str] | None, list[str]]:
    """What is excluded: as asked, and layers that text does not go through (a vision tower).

    A layer that was named alone stays, so that it is named when it gets no gradient.
    """
    targets = Targets(
        target_modules=config.target_modules,
        exclude_modules=config.exclude_modules,
        layers_to_transform=config.layers_to_transform,
        modules_to_save=whole,
    )
    exclude, lines = config.exclude_modules, []
    if line := left_out(base.model, targets, method.kinds, method.choose):
        lines.append(line)
    if config.split is not None or method.kinds[0] not in ("linear", "embedding"):
        return exclude, lines
    names = [site.name for site in select(base.model, targets, method.kinds, method.choose)]
    idle = uncalled(base.model, names)
    if not idle or len(idle) == len(names) or _named_alone(targets.target_modules, names, idle):
        return exclude, lines
    lines.append(
        f"{len(idle)} layers are not adapted, because text does not go through a call of "
        f"them: {listed(idle, 2)}"
    )
    return also_excluded(exclude, idle), lines


def _named_alone(entries: Any, names: list[str], idle: list[str]) -> bool:
    """Some entry of target_modules names idle layers only."""
    if isinstance(entries, str) or entries is None:
        return False
    hits = ([n for n in names if f".{n}".endswith(f".{entry}")] for entry in entries)
    return any(hit and set(hit) <= set(idle) for hit in hits)
