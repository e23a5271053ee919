"""Several processes train one run: what must be alike in all of them, before the first step.

A process with other rows, another base or another version would average gradients of something
else with those of the others, and nobody would see it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lorica.errors import ConfigError
from lorica.recipe.versions import versions
from lorica.training.checkpoint import Checkpoint
from lorica.training.config import TrainConfig, plain_settings
from lorica.training.placement import Placement
from lorica.training.resume import FREE, PATHS, flat
from lorica.training.state import RunState


def settings_of(config: TrainConfig) -> dict[str, str]:
    """The settings and versions of this process; paths may differ, as on a resume."""
    free = {*FREE, *PATHS} - {"shard"}
    settings = {k: repr(v) for k, v in flat(plain_settings(config)) if k not in free}
    return settings | {f"version of {name}": text for name, text in versions().items()}


def facts_of(state: RunState, saved: Checkpoint | None) -> dict[str, str]:
    """What this process trains on, and from where. saved: the checkpoint that it continues."""
    base = asdict(state.fingerprint) | {"path": ""}
    return {
        "rows": state.data.digest,
        "base": hashlib.sha256(json.dumps(base, sort_keys=True).encode()).hexdigest()[:16],
        "checkpoint": "none" if saved is None else f"step {saved.progress.step}",
    }


def check_alike(placement: Placement, facts: Mapping[str, str]) -> None:
    """Raises: ConfigError in every process, with what differs, if `facts` differ between them."""
    texts = placement.texts(json.dumps(facts, sort_keys=True))
    first: dict[str, Any] = json.loads(texts[0])
    for number, text in enumerate(texts):
        other: dict[str, Any] = json.loads(text)
        if other != first:
            keys = sorted(k for k in first | other if first.get(k) != other.get(k))
            raise ConfigError(
                f"process {number} is not like process 0, and both train one run.",
                **{
                    key: f"{first.get(key)} in process 0, {other.get(key)} in process {number}"
                    for key in keys
                },
                fix="give all processes the same settings, rows, base and versions"
                + (
                    "; a run is resumed from a folder that all of them see"
                    if "checkpoint" in keys
                    else ""
                ),
            )
