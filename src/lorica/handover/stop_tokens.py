"""The stops of an adapter's training, as far as they are recorded."""

from typing import Any

from lorica.base.load import LoadedModel
from lorica.generation.prompts import end_of_turn
from lorica.generation.stops import Stops, stops_of

CONFIG = "generation_config.json"


def recorded_stops(opened: LoadedModel) -> Stops:
    """Those of the base and, where the format of the training is recorded, its end of turn."""
    end = "" if opened.prompt_format is None else end_of_turn(opened)
    return stops_of(opened, [end])


def missing_stops(opened: LoadedModel) -> list[int]:
    """Stop tokens of the training that the base's generation settings do not have."""
    return sorted(set(recorded_stops(opened).tokens) - set(stops_of(opened).tokens))


def generation_config(opened: LoadedModel) -> dict[str, Any]:
    """The base's generation settings with the stops of the training, as plain JSON."""
    model: Any = opened.model
    return {
        **model.generation_config.to_diff_dict(),
        "eos_token_id": list(recorded_stops(opened).tokens),
    }
