"""lorica plan: what a run will cost, before it starts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from lorica.cli.help import SettingsHelp
from lorica.cli.options import Json, Switch, Words, parse_words, print_json, single_word
from lorica.errors import ConfigError
from lorica.recipe.method_settings import method_from_source
from lorica.training.config import TrainConfig, read

if TYPE_CHECKING:
    from lorica.plan.devices import Device
    from lorica.plan.estimate import Estimate
    from lorica.plan.fit import Change

DOES_NOT_FIT = 4  # the exit status of a ResourceError

app = App(
    name="plan",
    usage="Usage: lorica plan [RECIPE] [--SETTING VALUE]... [OPTIONS]",
    help_formatter=SettingsHelp(TrainConfig, method=True),
)

DeviceName = Annotated[
    str | None,
    Parameter(
        help="A card (h100, a100-40, rtx4090, ...), the memory of one (24GiB), or cpu. By default "
        "what lorica train would use here."
    ),
]
Measure = Annotated[
    Switch, Parameter(help="Time three steps here, in a process of their own, for a closer time.")
]


@app.default
def plan(
    *words: Words, device: DeviceName = None, measure: Measure = False, json: Json = False
) -> None:
    """Show what a run will cost: parameters, tokens, memory and time.

    The settings are those of lorica train. Nothing is loaded but the rows, and the sizes in the
    base's files: a base of the hub is not downloaded. If the run does not fit into the memory of
    the device, the first single change that makes it fit is shown, with its recipe, and the exit
    status is 4.
    """
    positional, flags = parse_words(words)
    recipe = single_word(positional, "recipe")
    config = read(Path(recipe) if recipe else None, flags, check_method=method_from_source)
    if "base" not in config.model_fields_set:
        raise ConfigError("no base was named.", fix="--base with a folder, a hub id, or bundled")

    from lorica.plan.current_device import current_device
    from lorica.plan.devices import device_named
    from lorica.plan.estimate import estimate
    from lorica.plan.fit import change_that_fits

    here = current_device()
    chosen = here if device is None else device_named(device)
    planned = estimate(config, chosen)
    if measure:
        planned = _measured(config, planned, here)
    change = None if planned.fits else change_that_fits(config, chosen)
    if json:
        print_json(_as_json(planned, config, change))
    else:
        _print(planned, config, change)
    if not planned.fits:
        raise SystemExit(DOES_NOT_FIT)


def _measured(config: TrainConfig, planned: "Estimate", here: "Device") -> "Estimate":
    """The plan with the time of three steps that were made here."""
    from dataclasses import replace

    from lorica.plan.measure import measure

    if planned.device != here:
        raise ConfigError(
            f"--measure times steps on {here.name}, and the plan is for {planned.device.name}.",
            fix=f"--device {here.name} for a time here; for that of the card, run this on the "
            "machine that has it; or leave --measure out",
        )
    if not planned.fits:
        raise ConfigError(
            "--measure would make three steps of a run that does not fit here.",
            fix="leave --measure out: the plan then shows a change by which it fits",
        )
    measured = measure(config)
    return replace(planned, step=measured.step_span, run=measured.run_span)


def _print(planned: "Estimate", config: TrainConfig, change: "Change | None") -> None:
    from lorica.cli.planned import change_lines, no_change_lines, report
    from lorica.plan.fit import all_changes, recipe

    print(*report(planned, config), sep="\n")
    if planned.fits:
        return
    print()
    if change is not None:
        print(*change_lines(change, recipe(change.config, change.settings)), sep="\n")
    else:
        print(*no_change_lines(all_changes(config, planned.device)), sep="\n")


def _as_json(planned: "Estimate", config: TrainConfig, change: "Change | None") -> dict[str, Any]:
    from lorica.plan.fit import recipe

    result = planned.as_dict()
    if not planned.fits:
        result["change"] = change and {
            "settings": dict(change.settings),
            "cost": change.cost,
            "memory_bytes": change.estimate.memory.total,
            "recipe": recipe(change.config, change.settings),
        }
    return result
