"""lorica eval: an adapter beside its base on held-out rows, with intervals."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from pydantic import BaseModel, ConfigDict, Field

from lorica import plain_files
from lorica.cli.help import SettingsHelp
from lorica.cli.options import Bank, Grade, Quantisation, Words, one, print_json, split
from lorica.data.config import DataConfig
from lorica.errors import ConfigError, ResourceError
from lorica.recipe.flags import apply_flags
from lorica.recipe.settings import Settings, raise_mistakes
from lorica.recipe.validate import validate_settings
from lorica.recipe.yaml_file import read_yaml


class EvalSettings(BaseModel):
    """The rows that are measured on."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    data: DataConfig = Field(description="short for data.path", json_schema_extra={"group": "data"})


app = App(
    name="eval",
    usage="Usage: lorica eval RUN|ADAPTER|BASE --data FILE [OPTIONS]",
    help_formatter=SettingsHelp(EvalSettings),
)


@app.default
def evaluate(
    *words: Words,
    base: str | None = None,
    exact_match: Annotated[bool, Parameter(show_default=False)] = True,
    max_new_tokens: int | None = None,
    dtype: Literal["float32", "bfloat16"] | None = None,
    allow_base: Grade | None = None,
    quantisation: Quantisation | None = None,
    predictions: Path | None = None,
    json: Bank = False,
) -> None:
    """Measure an adapter beside its base on held-out rows; or a base alone.

    Settings of the rows are those of the run, where a run is measured; flags stand over them.
    What is measured of a run is kept in its results.json, and every row in its predictions.jsonl.

    Parameters
    ----------
    base
        Another place of the base: folder, hub id, or bundled.
    exact_match
        Let both write an answer to every prompt, and count those that equal the reference.
    max_new_tokens
        Most tokens of an answer; by default as many as the longest reference needs.
    dtype
        Data type of the weights and of the computation; by default as in training.
    allow_base
        Accept a base that is not the one of training.
    quantisation
        Pack the base's linear layers, or not; by default as in training.
    predictions
        A new file for what became of every row, as JSON lines; of a run, its predictions.jsonl.
    json
        Print one JSON object.
    """
    plain, flags = split(words)
    path = Path(str(one(plain, "run, adapter or base", needed=True)))
    data = rows_of(path, flags)
    if predictions is not None:
        check_new(predictions)

    from rich.console import Console

    from lorica.evaluation.evaluate import evaluate, record
    from lorica.evaluation.predictions import write
    from lorica.evaluation.tables import show_report

    report = evaluate(
        path,
        data=data,
        base=base,
        dtype=dtype,
        exact_match=exact_match,
        max_new_tokens=max_new_tokens,
        allow_base=allow_base,
        quantisation=quantisation,
    )
    if plain_files.is_file(path / "results.json"):
        try:
            record(report, path)
        except ResourceError as error:  # a run of someone else's, or on a read-only disk
            report.notices.append(f"these figures are not kept in the run: {error.what}")
    if predictions is not None:
        write(predictions, report.predictions)
    if json:
        print_json(report.as_dict())
    else:
        show_report(report, Console(highlight=False))


def check_new(path: Path) -> None:
    """Raises: ConfigError if `path` is there: it may be the rows themselves."""
    if path.exists() or path.is_symlink():
        raise ConfigError(
            f"{path} is there already, and is not overwritten.", fix="name a new file"
        )


def rows_of(path: Path, flags: dict[str, str]) -> DataConfig:
    """The data settings: flags over those of the run.

    Without --data, the file that the run kept for validation is taken.
    Raises: ConfigError if there is none, or a setting is wrong.
    """
    settings = Settings()
    if plain_files.is_file(path / "config.yaml"):
        settings.data["data"] = read_yaml(path / "config.yaml").data.get("data", {})
        kept = settings.data["data"].pop("validation", None)
        settings.data["data"]["path"] = kept if isinstance(kept, str) else ""
        settings.data["data"]["limit"] = None
    mistakes = apply_flags(settings, EvalSettings, flags)
    if not mistakes and not settings.get(("data", "path")):
        raise ConfigError("no rows to measure on were named.", fix="pass --data FILE")
    settings.put(("data", "validation"), 0)
    config, found = validate_settings(EvalSettings, settings)
    if config is None or mistakes or found:
        raise_mistakes(mistakes + found, settings)
    return config.data
