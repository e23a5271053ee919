"""lorica choose: a recipe for these rows on this machine, with the reason of every setting."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from lorica.cli.durations import seconds_of
from lorica.cli.help import SettingsHelp
from lorica.cli.options import Json, Words, check_new_file, parse_words, print_json, single_word
from lorica.errors import ConfigError, writing
from lorica.recipe.method_settings import method_from_source
from lorica.recipe.validate import setting_names
from lorica.training.config import TrainConfig, read

if TYPE_CHECKING:
    from lorica.plan.choose.choice import Choice
    from lorica.plan.devices import Device
    from lorica.plan.estimate import Estimate

SETTINGS = [
    name
    for name in setting_names(TrainConfig)
    if name in ("base", "seed") or name.partition(".")[0] == "data"
]
BAD_DATA = 3  # the exit status of a DataError

app = App(
    name="choose",
    usage="Usage: lorica choose --base BASE --data ROWS [OPTIONS]",
    help_formatter=SettingsHelp(TrainConfig, only=SETTINGS),
)


@app.default
def choose(
    *words: Words,
    memory: str | None = None,
    goal: Literal["quality", "forget-less", "small", "fast"] = "quality",
    serve: Literal["lorica", "vllm", "llamacpp"] = "lorica",
    try_: Annotated[str | None, Parameter(name="--try")] = None,
    output: Path | None = None,
    json: Json = False,
) -> None:
    """Choose method, rank and rate for your rows and your machine, and say why.

    The base is not loaded, and nothing is trained. Every reason cites its evidence: a
    measurement of this project, a paper, or a rule with its source.

    Parameters
    ----------
    memory
        Memory that the training may take (24GiB), or a device (h100, cpu). By default what lorica
        train would use here.
    goal
        What counts most.
    serve
        Who reads the adapter afterwards.
    try_
        Train briefly (10min) at the chosen rank, half and twice of it, at three rates each, with
        one seed, and take the best. The base is loaded then.
    output
        File to write the recipe to; it must be new. Without it, the recipe is printed.
    """
    positional, flags = parse_words(words)
    if single_word(positional, "recipe"):
        raise ConfigError(
            "choose writes a recipe, and reads none.", fix="--base BASE --data ROWS --output RECIPE"
        )
    check_new_file(output)
    if unknown := sorted(set(flags) - set(SETTINGS) - {"data"}):
        raise ConfigError(
            f"--{unknown[0]} is not a setting of base or data.",
            fix="change it in the recipe that is written",
        )
    if "base" not in flags:
        raise ConfigError("no base was named.", fix="--base with a folder, a hub id, or bundled")
    config = read(None, flags, check_method=method_from_source)

    from lorica.plan.choose.choice import choose as decide
    from lorica.plan.choose.gather import gather
    from lorica.plan.choose.recipe import recipe_yaml
    from lorica.plan.current_device import current_device
    from lorica.plan.devices import device_named

    device = current_device() if memory is None else device_named(memory)
    gathered = gather(config, device, goal, serve)
    choice = decide(gathered.situation)
    has_errors = any(finding.level == "error" for finding in choice.findings)
    if try_ is not None and not has_errors:
        from lorica.cli.tried import tried_choice

        choice = tried_choice(choice, config, gathered, seconds_of(try_, "--try"))
    planned = None if has_errors else _planned(choice, config, gathered.data, device)
    given = _given(config, gathered.data)
    recipe = recipe_yaml(choice, given, gathered.why, " ".join(["lorica", *sys.argv[1:]]))
    from lorica.cli.chosen import as_dict, lines

    if output is not None and not has_errors:
        with writing(output):
            output.write_text(recipe, encoding="utf-8")
    if json:
        print_json(as_dict(choice, gathered, recipe, planned))
    else:
        print("\n".join(lines(choice, gathered, planned)))
    if has_errors:
        raise SystemExit(BAD_DATA)
    if json:
        return
    if output is None:
        print(f"\n{recipe}", end="")
    else:
        print(f"\n{output} is written. What it costs: lorica plan {output}")
        print(f"Train it: lorica train {output}")


def _planned(
    choice: "Choice", config: TrainConfig, data: dict[str, Any], device: "Device"
) -> "Estimate":
    """What the training of a choice will cost. data: settings of the rows that it changes."""
    from lorica.plan.choose.recipe import training_of
    from lorica.plan.estimate import estimate

    rows = config.data.model_copy(update=data)
    return estimate(training_of(choice, config.model_copy(update={"data": rows})), device)


def _given(config: TrainConfig, data: dict[str, Any]) -> dict[str, Any]:
    """The settings that the user gave, with those of the rows that the choice changes."""
    given = config.model_dump(mode="json", exclude_unset=True)
    del given["method"]
    rows = {**given["data"], **data}
    return {**given, "data": rows if len(rows) > 1 else rows["path"]}
