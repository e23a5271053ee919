"""The recipe of a choice, as YAML with a reason behind every setting."""

import json
import textwrap
from collections.abc import Iterator
from typing import Any

from lorica.plan.choose.choice import Choice
from lorica.plan.choose.reason import Reason
from lorica.recipe.catalogue import method
from lorica.recipe.method_settings import with_defaults
from lorica.training.config import TrainConfig

ORDER = (
    "base",
    "dtype",
    "quantisation",
    "data",
    "method",
    "target_modules",
    "learning_rate",
    "warmup_ratio",
    "epochs",
    "micro_batch_size",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "eval_steps",
    "early_stopping_patience",
    "output",
)


def recipe_settings(choice: Choice, given: dict[str, Any]) -> dict[str, Any]:
    """All settings of the recipe. given: base, data, output and what the user set."""
    settings = {**choice.settings, **given}
    return {name: settings[name] for name in ORDER if name in settings} | {
        name: value for name, value in settings.items() if name not in ORDER
    }


def training_of(choice: Choice, config: TrainConfig) -> TrainConfig:
    """The training of a choice. config: with the user's base, rows and seed."""
    own = choice.settings["method"]
    update = {**choice.settings, "method": with_defaults(method(own["name"]), own)}
    return config.model_copy(update=update)


def recipe_yaml(choice: Choice, given: dict[str, Any], about_data: str, command: str) -> str:
    """The recipe, with comments that say why.

    about_data: why a setting of the rows was changed, or "". command: that wrote it.
    """
    lines = [f"# Written by: {command}", f"# The question that decided: {choice.edge.question}"]
    if choice.each:
        lines += textwrap.wrap(
            "One run for each condition: write the rows of each condition to a file of its own, "
            "without the column condition, and change data and output.",
            96,
            initial_indent="# ",
            subsequent_indent="# ",
        )
    reasons = {reason.what: reason for reason in choice.reasons}
    if about_data:
        reasons["data"] = Reason("data", None, about_data)
    for name, value in recipe_settings(choice, given).items():
        lines += _comment(reasons, name)
        lines += _setting(name, value)
    return "\n".join(lines) + "\n"


def _comment(reasons: dict[str, Reason], name: str) -> list[str]:
    names = {"method": ("method", "r", "band", "method.r", "condition", "alpha")}.get(name, (name,))
    texts = [
        f"{n}: {reasons[n].why}" if len(names) > 1 else reasons[n].why
        for n in names
        if n in reasons
    ]
    return [
        line
        for text in texts
        for line in textwrap.wrap(text, 96, initial_indent="# ", subsequent_indent="#   ")
    ]


def _setting(name: str, value: Any) -> Iterator[str]:
    """The YAML of one setting. JSON is YAML, and has no surprises."""
    if name in ("method", "data") and isinstance(value, dict):
        yield f"{name}:"
        yield from (f"  {key}: {_scalar(inner)}" for key, inner in value.items())
    else:
        yield f"{name}: {_scalar(value)}"


def _scalar(value: Any) -> str:
    plain = isinstance(value, str) and value.replace("_", "").replace("-", "").isalnum()
    words = ("null", "true", "false", "yes", "no", "on", "off")
    if plain and value[0].isalpha() and value.lower() not in words:
        return value
    return json.dumps(value, ensure_ascii=False)
