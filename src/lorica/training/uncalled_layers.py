"""Exclude layers that the model never calls on text (a vision tower): they could not learn."""

from collections.abc import Sequence

from lorica.base.load import LoadedModel
from lorica.base.training_probe import layers_not_called
from lorica.core.adapter import Method
from lorica.core.targets import Targets, also_excluded, left_out, select
from lorica.errors import listed
from lorica.training.config import TrainConfig


def exclude_uncalled(
    base: LoadedModel, config: TrainConfig, method: Method, whole: list[str], *, can_probe: bool
) -> tuple[str | list[str] | None, list[str]]:
    """`exclude_modules` as in the settings, with the layers_not_called layers added; and notices.

    whole: modules that are trained whole. can_probe: the base can be run here to see what it calls.
    A target that names uncalled layers only stays, so that the first step refuses it by name.
    """
    targets = Targets(
        target_modules=config.target_modules,
        exclude_modules=config.exclude_modules,
        layers_to_transform=config.layers_to_transform,
        target_parameters=config.target_parameters if "expert" in method.kinds else None,
        modules_to_save=whole,
    )
    exclude, notices = config.exclude_modules, []
    if notice := left_out(base.model, targets, method.kinds, method.choose):
        notices.append(notice)
    if not can_probe or method.kinds[0] not in ("linear", "embedding"):
        return exclude, notices
    sites = select(base.model, targets, method.kinds, method.choose)
    names = [site.name for site in sites if site.kind != "expert"]
    idle = layers_not_called(base.model, names)
    if not idle or len(idle) == len(names):
        return exclude, notices
    if _has_target_of(targets.target_modules, names, idle):
        return exclude, notices
    notices.append(
        f"{len(idle)} layers are not adapted, because the model does not call them on text: "
        f"{listed(idle, 2)}"
    )
    return also_excluded(exclude, idle), notices


def _has_target_of(entries: str | Sequence[str] | None, names: list[str], idle: list[str]) -> bool:
    """Whether an entry of the list target_modules selects uncalled layers only."""
    if isinstance(entries, str) or entries is None:
        return False
    hits = ([n for n in names if f".{n}".endswith(f".{entry}")] for entry in entries)
    return any(hit and set(hit) <= set(idle) for hit in hits)
