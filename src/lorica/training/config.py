"""The settings of a run. One language: this class = a YAML recipe = `--flags` = config.yaml.

`read` puts them together (flags over recipe over defaults) and reports every mistake at once.
The method stays plain data until `build_method`, because methods import torch and
`lorica train --help` must not.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from lorica.data.config import DataConfig
from lorica.recipe.flags import apply_flags, resolve_paths
from lorica.recipe.settings import Mistake, Settings, raise_mistakes
from lorica.recipe.validate import member_as_dict, validate_member, validate_settings
from lorica.recipe.versions import versions
from lorica.recipe.yaml_file import read_yaml, to_yaml
from lorica.registry import Named
from lorica.training.clashes import clashes

if TYPE_CHECKING:
    from lorica.core.adapter import Method

EXCLUSIVE = [("max_steps", "epochs"), ("warmup_steps", "warmup_ratio")]
"""Pairs of which one is given: a flag for one takes the place of the recipe's other."""

Count = Annotated[int, Field(ge=1)]


def setting(group: str, default: Any, meaning: str, **limits: Any) -> Any:
    """A field with its line of help and the group that it stands in.

    default: a value, or a function of the settings above it.
    """
    key = "default_factory" if callable(default) else "default"
    limits[key] = default
    return Field(description=meaning, json_schema_extra={"group": group}, **limits)


def _steps_or_epochs(given: dict[str, Any]) -> float | None:
    return None if given.get("max_steps") else 3.0


def _warmup(given: dict[str, Any]) -> float:
    return 0.0 if given.get("warmup_steps") else 0.03


def _output(given: dict[str, Any]) -> str:
    return f"runs/{given['method']['name']}-{Path(given['data'].path).stem}"


class TrainConfig(BaseModel):
    """What to train, on which rows, how, and where the run is kept."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    base: str = setting(
        "run", "bundled", "folder or hub id of the base; `bundled` is in this package", min_length=1
    )
    dtype: Literal["float32", "bfloat16"] = setting(
        "run", "float32", "numbers the base is held in; adapters are float32 always"
    )
    quantisation: Literal["nf4", "fp4", "int8"] | None = setting(
        "run", None, "pack the base's linear layers into 4 or 8 bits a weight; null: as it is"
    )
    double_quantisation: bool = setting(
        "run", True, "pack the scales of 4-bit blocks as well: 4.13 bits a weight, not 4.5"
    )
    unpacked_gib: float = setting(
        "run", 0.0, "GiB for weights of a quantised base that are kept unpacked, to save time", ge=0
    )
    init_from: str | None = setting(
        "run",
        None,
        "run or adapter whose trained tensors the new adapter starts from",
        min_length=1,
    )
    data: DataConfig = Field(
        description="short for data.path",
        json_schema_extra={"group": "data"},
    )
    method: dict[str, Any] = setting(
        "method", {"name": "lora"}, "name of the method; its own settings as method.NAME"
    )

    target_modules: list[str] | str | None = setting(
        "sites",
        None,
        "layers to adapt: name suffixes, one regex, all-linear (all but the output head), or all; "
        "null: what the method asks for",
        min_length=1,
    )
    exclude_modules: list[str] | str | None = setting(
        "sites", None, "suffixes or a regex of layers to leave out of target_modules"
    )
    layers_to_transform: list[Annotated[int, Field(ge=0)]] | None = setting(
        "sites", None, "indices of the blocks to adapt, from 0; null: all"
    )
    rank_pattern: dict[str, Count] = setting(
        "sites", {}, "suffix or regex of a layer -> its r, instead of method.r"
    )
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = setting(
        "sites", {}, "suffix or regex of a layer -> its alpha, instead of method.alpha"
    )
    modules_to_save: list[str] = setting(
        "sites", [], "suffixes of modules to train whole and keep with the adapter"
    )
    trainable_token_indices: list[Annotated[int, Field(ge=0)]] = setting(
        "sites", [], "token ids whose embedding rows are trained"
    )

    optimizer: Literal["adamw", "paged_adamw", "sgd"] = setting(
        "optimisation",
        "adamw",
        "AdamW (betas 0.9, 0.999), the same with its state paged (CUDA), or SGD without momentum",
    )
    learning_rate: Annotated[float, Field(gt=0)] | None = setting(
        "optimisation",
        None,
        "peak learning rate per optimizer step; null: the method's own, for the base's hidden size",
    )
    weight_decay: float = setting(
        "optimisation",
        0.0,
        "decay of matrices, times the learning rate, per step (vectors do not decay)",
        ge=0,
    )
    schedule: Literal["cosine", "linear", "constant"] = setting(
        "optimisation", "cosine", "fall of the learning rate to 0 after the warm-up, or none"
    )
    warmup_steps: int = setting(
        "optimisation", 0, "optimizer steps in which the learning rate rises from 0", ge=0
    )
    warmup_ratio: float = setting(
        "optimisation",
        _warmup,
        "warm-up as a share of all steps (0.03 without warmup_steps)",
        ge=0,
        lt=1,
    )
    max_grad_norm: float = setting(
        "optimisation", 1.0, "gradients of a step are scaled down to this norm", gt=0
    )
    micro_batch_size: int = setting(
        "optimisation", 8, "rows that go through the model at a time, per process", ge=1
    )
    gradient_accumulation_steps: int = setting(
        "optimisation", 1, "micro-batches of one optimizer step", ge=1
    )
    max_steps: Count | None = setting(
        "optimisation", None, "optimizer steps of the run, instead of epochs"
    )
    epochs: Annotated[float, Field(gt=0)] | None = setting(
        "optimisation", _steps_or_epochs, "passes over the rows (3 without max_steps)"
    )
    gradient_checkpointing: bool = setting(
        "optimisation", False, "compute activations again in the backward pass, to save memory"
    )
    seed: int = setting(
        "run",
        0,
        "every random choice follows from it, the adapter's start included",
        ge=0,
        lt=2**32,
    )

    split: Literal["cloud", "device"] | None = setting(
        "split", None, "this process holds the base (cloud), or the rest of the run (device)"
    )
    peer: str | None = setting("split", None, "HOST:PORT on which the cloud is met")
    active_share: float = setting(
        "split", 1.0, "share of the sites that take part; the others rest for a time", gt=0, le=1
    )
    active_steps: int = setting(
        "split", 100, "optimizer steps between choices of the sites that take part", ge=1
    )

    eval_steps: Count | None = setting(
        "watching", None, "optimizer steps between evaluations; null: at begin and end only"
    )
    save_steps: Count | None = setting(
        "watching",
        None,
        "optimizer steps between checkpoints; null: eval_steps, or a tenth of the run",
    )
    keep_checkpoints: int = setting("watching", 2, "newest checkpoints kept", ge=1)
    early_stopping_patience: Count | None = setting(
        "watching", None, "stop after this many evaluations without a lower loss; null: never"
    )
    loss_limit: Annotated[float, Field(gt=0)] | None = setting(
        "watching", None, "stop this far (nats) above the lowest smoothed loss; null: never"
    )
    report_to: list[Literal["tensorboard", "wandb"]] = setting(
        "watching", [], "exporters that follow the run's event log"
    )
    output: str = setting(
        "run", _output, "folder of the run (runs/<recipe> or runs/<method>-<data>)", min_length=1
    )

    @field_validator("data", mode="before")
    @classmethod
    def _short_data(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @field_validator("method", mode="before")
    @classmethod
    def _plain_method(cls, value: Any) -> Any:
        return plain_method(value)

    @model_validator(mode="after")
    def _between(self) -> Self:
        found = list(clashes(self))
        if found:
            details = [
                InitErrorDetails(
                    type=PydanticCustomError("cross", "{what}", {"what": what}),
                    loc=(key,),
                    input=getattr(self, key),
                )
                for key, what in found
            ]
            raise ValidationError.from_exception_data("TrainConfig", details)
        return self

    def build_method(self) -> "Method":
        """The method with its settings. Imports torch.

        Raises: ConfigError with everything that is wrong in `method`.
        """
        settings = Settings({"method": dict(self.method)})
        method, mistakes = _judged_method(settings)
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


def read(path: Path | None, flags: Mapping[str, Any] | None = None) -> TrainConfig:
    """The settings of a run: flags over the recipe at `path` over the defaults.

    flags: dotted name -> text from the command line (or a list of them), or a Python value.
    A path in a recipe may stand relative to the working directory or to the recipe's folder.

    Raises: ConfigError that names everything that is wrong, each with file and line, or flag.
    """
    settings = read_yaml(path) if path else Settings()
    settings.data.pop("versions", None)  # of a run's config.yaml
    if path:
        resolve_paths(settings, path.parent, [("base",), ("data", "path"), ("data", "validation")])
        settings.data.setdefault("output", f"runs/{path.stem}")
    mistakes = settings.mistakes + apply_flags(settings, TrainConfig, flags or {})
    given = {flag.replace("-", "_") for flag in flags or {}}
    for one, other in EXCLUSIVE:
        if (one in given) != (other in given):
            settings.data.pop(other if one in given else one, None)
    config, found = validate_settings(TrainConfig, settings)
    mistakes += found
    method = settings.data["method"] = plain_method(settings.data.get("method", {}))
    if not isinstance(method, dict) or (mistakes and len(method) == 1):
        raise_mistakes(mistakes, settings)  # nothing more to find there: torch need not be imported
    method, found = _judged_method(settings)
    if mistakes := mistakes + found:
        raise_mistakes(mistakes, settings)
    assert config and method  # no mistakes
    return config.model_copy(update={"method": plain_method(method)})


def _judged_method(settings: Settings) -> "tuple[Method | None, list[Mistake]]":
    from lorica.core.adapter import Method

    return validate_member(Method, settings, "method")


def resolved(config: TrainConfig) -> str:
    """All settings as YAML, with the versions that run them; `read` gives the same config."""
    return to_yaml({**plain_settings(config), "versions": versions()})


def plain_settings(config: TrainConfig) -> dict[str, Any]:
    """All settings as JSON keeps them, the method's own defaults among them."""
    settings = config.model_dump(mode="json") | {"method": plain_method(config.build_method())}
    return json.loads(json.dumps(settings))  # tuples are lists there
