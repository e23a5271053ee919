"""The first single change of a run's settings by which it fits into the memory of a device.

They are tried in the order of what they cost: smaller micro-batches change nothing but speed,
gradient checkpointing computes each block twice, nf4 rounds the base, and a lower rank learns less.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lorica.plan.devices import Device
from lorica.plan.estimate import Estimate, estimate
from lorica.plan.shapes import read_shapes
from lorica.plan.tokens import count_tokens
from lorica.recipe.catalogue import method as catalogued
from lorica.recipe.yaml_file import to_yaml
from lorica.training.config import TrainConfig

Settings = Mapping[str, Any]
"""Setting -> value; `method` is a mapping of its own."""


@dataclass(frozen=True)
class Change:
    """A change of settings. cost: what it costs, in words. estimate: of the run with it."""

    settings: Settings
    cost: str
    config: TrainConfig
    estimate: Estimate

    @property
    def flags(self) -> str:
        """As flags of the command line."""
        flat = {
            f"{key}.{name}" if name else key: value
            for key, inner in self.settings.items()
            for name, value in (inner.items() if isinstance(inner, dict) else [("", inner)])
        }
        return " ".join(f"--{key} {_word(value)}" for key, value in flat.items())


def change_that_fits(config: TrainConfig, device: Device) -> Change | None:
    """The first single change by which the run fits; None if none does."""
    return next((c for c in single_changes(config, device) if c.estimate.fits), None)


def single_changes(config: TrainConfig, device: Device) -> Iterator[Change]:
    """Every single change that may help, in the order in which they are tried."""
    tokens = count_tokens(config, read_shapes(config.base))
    for settings, cost in _candidates(config):
        changed = _with(config, settings)
        resized = changed.micro_batch_size != config.micro_batch_size
        own = None if resized else tokens
        yield Change(settings, cost, changed, estimate(changed, device, own))


def all_changes(config: TrainConfig, device: Device) -> Change:
    """The change that needs the least memory: the last of each kind, together."""
    settings: dict[str, Any] = {}
    for change, _ in _candidates(config):
        settings |= change
    changed = _with(config, settings)
    return Change(settings, "all of them together", changed, estimate(changed, device))


def _candidates(config: TrainConfig) -> Iterator[tuple[Settings, str]]:
    rows, accumulated = config.micro_batch_size, config.gradient_accumulation_steps
    for size in _halves(rows):
        if rows % size == 0:
            steps = accumulated * rows // size
            yield (
                {"micro_batch_size": size, "gradient_accumulation_steps": steps},
                "slower; the result is the same",
            )
    if not config.gradient_checkpointing and config.split is None:
        yield {"gradient_checkpointing": True}, "each block is computed twice"
    on_quantised = catalogued(config.method["name"]).facts["on_quantised"]
    if config.quantisation is None and on_quantised and config.split is None:
        yield {"quantisation": "nf4"}, "the base is rounded to 4 bits, and unpacked in each pass"
    if rank := config.method.get("r"):
        for r in _halves(rank):
            yield {"method": {"r": r}}, "fewer parameters to learn with"


def _halves(number: int) -> list[int]:
    """Half of a number, a quarter and so on, down to 1."""
    halves = []
    while number > 1:
        number //= 2
        halves.append(number)
    return halves


def _with(config: TrainConfig, settings: Settings) -> TrainConfig:
    """The settings with some changed."""
    update = {**settings}
    if own := settings.get("method"):
        update["method"] = {**config.method, **own}
    return config.model_copy(update=update)


def recipe(config: TrainConfig, changed: Settings) -> str:
    """The recipe of a run as YAML: what was given, and the settings that were `changed`."""
    given = config.model_dump(mode="json", exclude_unset=True)
    for key in changed:
        given[key] = getattr(config, key)
    defaults = {option.name: option.value for option in catalogued(config.method["name"]).options}
    given["method"] = {
        key: value for key, value in config.method.items() if defaults.get(key, ...) != value
    }
    return to_yaml(given)


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
