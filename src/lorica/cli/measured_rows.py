"""The settings of the rows that `lorica eval` and `lorica predict` read."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from lorica import plain_files
from lorica.data.config import DataConfig
from lorica.errors import ConfigError
from lorica.recipe.flags import apply_flags
from lorica.recipe.settings import Settings, raise_mistakes
from lorica.recipe.validate import setting_names, validate_settings
from lorica.recipe.yaml_file import read_yaml


class EvalSettings(BaseModel):
    """The rows that are measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    data: DataConfig = Field(description="short for data.path", json_schema_extra={"group": "data"})


TRAINING_ONLY = ("data.validation", "data.add_tokens")
"""Settings of the rows without an effect outside training."""
EVAL_SETTINGS = [name for name in setting_names(EvalSettings) if name not in TRAINING_ONLY]
PREDICT_SETTINGS = [
    "data",
    *(f"data.{name}" for name in ("path", "split", "columns", "max_length", "overlong", "limit")),
]
"""Those with an effect on the rows of a classifier."""


def rows_of(path: Path, flags: dict[str, str]) -> DataConfig:
    """The data settings: flags over those of the run at `path`.

    Without --data, the validation file of the run is read.
    Raises: ConfigError if there is none, or a setting is wrong.
    """
    settings = Settings()
    if plain_files.is_file(path / "config.yaml"):
        data = settings.data["data"] = read_yaml(path / "config.yaml").data.get("data", {})
        validation = data.pop("validation", None)
        data |= {
            "path": validation if isinstance(validation, str) else "",
            "mixture": [],
            "limit": None,
        }
    mistakes = apply_flags(settings, EvalSettings, flags)
    if not mistakes and not settings.get(("data", "path")):
        raise ConfigError("no rows to measure on were named.", fix="pass --data FILE")
    settings.put(("data", "validation"), 0)
    config, wrong_values = validate_settings(EvalSettings, settings)
    if config is None or mistakes or wrong_values:
        raise_mistakes(mistakes + wrong_values, settings)
    return config.data
