"""lorica info: what a run, an adapter or a base on disk is."""

import re
from collections.abc import Mapping
from typing import Any

from cyclopts import App

from lorica.cli.describe import describe
from lorica.cli.options import Json, print_json
from lorica.errors import listed
from lorica.recipe.catalogue import method, methods

app = App(name="info")
SHOWN = ("name", "r", "alpha")
"""Settings of a method that are printed, also where they are the defaults."""

FIGURES = ("train_loss", "held_out_loss", "held_out_accuracy", "seconds", "tokens_per_second")
FIGURES += ("peak_memory_bytes", "rows", "parameters", "evaluation", "lines")
"""Results of a run that are printed; --json has all of them."""
EVALUATION = ("data", "rows", "lines")
WEIGHTS = ("files", "tensors", "values", "dtypes", "bytes")
MAX_LINE = 100


@app.default
def show(path: str, /, *, json: Json = False) -> None:
    """Describe a folder on disk: a run, an adapter, or a base. --json prints every detail.

    Parameters
    ----------
    path
        A run folder, an adapter folder, the folder of a base, or `bundled`.
    """
    description = describe(path)
    if json:
        print_json(description)
    else:
        print("\n".join(_lines(_brief(description))))


def _brief(description: Mapping[str, Any]) -> dict[str, Any]:
    """Without defaults, digests and what stands in the description twice."""
    brief = dict(description)
    brief["versions"] = _versions(description.get("versions"))
    if description["what"] == "run":
        brief["settings"] = _changed_settings(description["settings"])
        brief["figures"] = _chosen(description["figures"], FIGURES)
        if "evaluation" in brief["figures"]:
            brief["figures"]["evaluation"] = _chosen(brief["figures"]["evaluation"], EVALUATION)
        brief["adapter"] = _chosen(description.get("adapter"), WEIGHTS)
    if description["what"] == "adapter":
        brief["base"] = _chosen(description.get("base"), ("path", "architecture", "parameters"))
        brief["method"] = _changed_method(description.get("method"))
    return brief


def _chosen(table: Any, keys: tuple[str, ...]) -> dict[str, Any]:
    match table:
        case dict():
            return {key: table[key] for key in keys if key in table}
    return {}


def _versions(versions: Any) -> str:
    chosen = _chosen(versions, ("lorica", "torch", "transformers"))
    return ", ".join(f"{name} {version}" for name, version in chosen.items())


def _changed_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that are not the defaults, and its base."""
    from lorica.cli.help import setting_entries
    from lorica.recipe.values import format_value
    from lorica.training.config import TrainConfig

    defaults = {e.positive_names[0][2:]: e.default for _, e in setting_entries(TrainConfig)}
    data = settings.get("data")
    flat = {**settings, **{f"data.{key}": value for key, value in (data or {}).items()}}
    changed = {
        key: value
        for key, value in flat.items()
        if key not in ("data", "method")
        and (key == "base" or format_value(value).strip('"') != defaults.get(key))
    }
    return {"method": _changed_method(settings.get("method")), **changed}


def _changed_method(settings: Any) -> dict[str, Any]:
    """The name of a method, its rank and scale, and its settings that are not the defaults."""
    from lorica.recipe.values import format_value

    known = _chosen(settings, ("name",)).get("name")
    defaults = {o.name: o.default for o in method(known).options} if known in methods() else {}
    match settings:
        case dict():
            return {
                key: value
                for key, value in settings.items()
                if key in SHOWN or format_value(value).strip('"') != defaults.get(key)
            }
    return {}


def _lines(table: Mapping[str, Any], depth: int = 0) -> list[str]:
    width, lines = max(map(len, table), default=0), []
    indent = "  " * depth
    for key, value in table.items():
        if value in (None, [], "", {}):
            continue
        match value:
            case dict():
                if inner := _lines(value, depth + 1):
                    lines += [f"{indent}{key}", *inner]
                continue
            case list() if len(str(value)) >= MAX_LINE:
                text = f"\n{indent}  ".join(["", *map(str, value)])
            case list():
                text = listed(value, 8)
            case _:
                text = _text(value)
        lines.append(f"{indent}{key:<{width}}  {text}".rstrip(" "))
    return lines


def _text(value: Any) -> str:
    """A value for a reader: thousands separated, few digits, short digests."""
    match value:
        case bool():
            return str(value).lower()
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.5g}" if abs(value) < 1e5 else f"{value:,.0f}"
    return f"{value[:12]}..." if re.fullmatch("[0-9a-f]{64}", str(value)) else str(value)
