"""The settings of a run. One language: this class = a YAML recipe = `--flags` = config.yaml.

`read` puts them together (flags over recipe over defaults) and reports every mistake at once.
The method stays plain data until `build_method`, because methods import torch and
`lorica train --help` must not.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from lorica.errors import ConfigError
from lorica.recipe.flags import apply_flags, resolve_paths
from lorica.recipe.settings import Mistake, Settings, raise_mistakes
from lorica.recipe.validate import member_as_dict, validate_member, validate_settings
from lorica.recipe.versions import versions
from lorica.recipe.yaml_file import read_yaml, to_yaml
from lorica.registry import Named
from lorica.training.conflicts import conflicts
from lorica.training.settings import TrainSettings

if TYPE_CHECKING:
    from lorica.core.adapter import Method

EXCLUSIVE = [("max_steps", "epochs"), ("warmup_steps", "warmup_ratio")]
"""Pairs of which one may be given: a flag for one replaces the other one of the recipe."""


class TrainConfig(TrainSettings):
    """What to train, on which rows, how, and where the run is kept."""

    @field_validator("data", mode="before")
    @classmethod
    def _short_data(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str | list) else value

    @field_validator("method", mode="before")
    @classmethod
    def _plain_method(cls, value: Any) -> Any:
        return plain_method(value)

    @model_validator(mode="after")
    def _check_conflicts(self) -> Self:
        values = dict(self)
        details = [
            InitErrorDetails(
                type=PydanticCustomError("cross", "{what}", {"what": what}),
                loc=(key,),
                input=values[key],
            )
            for key, what in conflicts(self)
        ]
        if details:
            raise ValidationError.from_exception_data("TrainConfig", details)
        return self

    def build_method(self) -> "Method":
        """The method with its settings. Imports torch.

        Raises: ConfigError with everything that is wrong in `method`.
        """
        settings = Settings({"method": dict(self.method)})
        method, mistakes = _validate_method(settings)
        if method is None or mistakes:
            raise_mistakes(mistakes, settings)
        return method


def plain_method(value: Any) -> Any:
    """A method as plain data: from a name, a mapping, or its own dataclass."""
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, Named):
        return member_as_dict(value)
    return {"name": "lora", **value} if isinstance(value, dict) else value


CheckMethod = Callable[[Settings], tuple[Any, list[Mistake]]]
"""settings -> (the method, or its settings as plain data; mistakes)."""


def read(
    path: Path | None,
    flags: Mapping[str, Any] | None = None,
    *,
    check_method: CheckMethod | None = None,
) -> TrainConfig:
    """The settings of a run: flags over the recipe at `path` over the defaults.

    flags: dotted name -> text from the command line (or a list of them), or a Python value.
    A path in a recipe may stand relative to the working directory or to the recipe's folder.
    check_method: None: the method itself checks its settings, which imports torch.

    Raises: ConfigError that names everything that is wrong, each with file and line, or flag.
    """
    settings = read_yaml(path) if path else Settings()
    if "sides" in settings.data:
        raise ConfigError(
            f"{path} is a study, which compares several runs, and not the recipe of one.",
            fix=f"lorica compare {path}",
        )
    settings.data.pop("versions", None)  # of a run's config.yaml
    if path:
        resolve_paths(settings, path.parent, [("base",), ("data", "path"), ("data", "validation")])
        settings.data.setdefault("output", f"runs/{path.stem}")
    mistakes = settings.mistakes + apply_flags(settings, TrainConfig, flags or {})
    given = {flag.replace("-", "_") for flag in flags or {}}
    _move_mixture(settings, given)
    for first, second in EXCLUSIVE:
        if (first in given) != (second in given):
            settings.data.pop(second if first in given else first, None)
    config, config_mistakes = validate_settings(TrainConfig, settings)
    mistakes += config_mistakes
    method = settings.data["method"] = plain_method(settings.data.get("method", {}))
    if not isinstance(method, dict) or (mistakes and len(method) == 1):
        raise_mistakes(mistakes, settings)  # the method has no settings to check: no torch needed
    method, method_mistakes = (check_method or _validate_method)(settings)
    if mistakes := mistakes + method_mistakes:
        raise_mistakes(mistakes, settings)
    assert config and method  # no mistakes
    return config.model_copy(update={"method": plain_method(method)})


def _move_mixture(settings: Settings, given: set[str]) -> None:
    """Move a path that is a list to data.mixture; a flag for one file replaces a mixture."""
    match settings.data.get("data"):
        case {"path": [_, *_] as files} as data:
            settings.put(("data", "mixture"), files, settings.place(("data", "path")))
            data["path"] = "several files"  # their names follow from the mixture
        case dict() as data if given & {"data", "data.path"} and "data.mixture" not in given:
            data.pop("mixture", None)
        case {"mixture": [_, *_]} as data:
            data.setdefault("path", "several files")


def _validate_method(settings: Settings) -> "tuple[Method | None, list[Mistake]]":
    from lorica.core.adapter import Method

    return validate_member(Method, settings, "method")


def resolved(config: TrainConfig) -> str:
    """All settings as YAML, with the versions that run them; `read` gives the same config."""
    return to_yaml({**plain_settings(config), "versions": versions()})


def plain_settings(config: TrainConfig) -> dict[str, Any]:
    """All settings as JSON types, with the defaults of the method."""
    settings = config.model_dump(mode="json") | {"method": plain_method(config.build_method())}
    return json.loads(json.dumps(settings))  # tuples are lists there
