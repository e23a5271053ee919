"""lorica train: from a recipe, or from flags alone, to a run folder."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import App

from lorica.cli.help import SettingsHelp
from lorica.cli.options import Bank, Words, one, print_json, split
from lorica.errors import ConfigError
from lorica.training.config import TrainConfig, read

if TYPE_CHECKING:
    from lorica.training.run import Result

app = App(
    name="train",
    usage="Usage: lorica train [RECIPE] [--SETTING VALUE]... [OPTIONS]",
    help_formatter=SettingsHelp(TrainConfig, method=True),
)


@app.default
def train(
    *words: Words, resume: Path | None = None, each: Bank = False, json: Bank = False
) -> None:
    """Fine-tune a base on your rows.

    Settings come from flags, then from the recipe, then from the defaults. Nested settings
    have dots: --data.max_length 256, --method dora, --method.r 4. Lists are comma-separated.

    Parameters
    ----------
    resume
        A run folder to go on with, from its newest checkpoint; its settings stay as they are. Only
        --max_steps or --epochs (a longer run), --save_steps, --keep_checkpoints, --report_to,
        --loss_limit and paths to the same content may be given.
    each
        Train several runs at once over one base: name a recipe for each, or a run folder to go on
        with. Flags are settings of them all.
    json
        Print the run's figures as one JSON object.
    """
    plain, flags = split(words)
    if each:
        _train_each(plain, flags, resume, json)
        return
    recipe = one(plain, "recipe")
    if resume and recipe:
        raise ConfigError(
            "a resumed run keeps its settings.",
            given=recipe,
            fix=f"lorica train --resume {resume}",
        )
    config = None if resume else read(Path(recipe) if recipe else None, flags)

    from lorica.training.train import train  # torch, from here on

    result = train(config, resume=resume, show=not json, **(flags if resume else {}))
    if os.environ.get("RANK", "0") != "0":
        return  # one process of several speaks
    if not result.figures:
        print(*result.notices, sep="\n")
        return
    if json:
        print_json(_plain(result))
        return
    print(summary(result.figures))
    print(f"the run is in {result.folder}, its adapter in {result.folder / 'adapter'}")


def _train_each(plain: list[str], flags: dict[str, Any], resume: Path | None, json: bool) -> None:
    if resume:
        raise ConfigError(
            "--each takes the run folders to go on with as they are.",
            fix=f"lorica train --each {resume} ...",
        )
    going = [word for word in plain if Path(word).is_dir()]
    if going and flags:
        raise ConfigError(
            "a resumed run keeps its settings.",
            given=", ".join([*going, *(f"--{flag}" for flag in flags)]),
        )
    runs = [word if word in going else read(Path(word), flags) for word in plain]

    from lorica.training.each import train_each

    results = train_each(runs, show=not json)
    if json:
        print_json({"runs": [_plain(result) for result in results]})
        return
    for result in results:
        print(f"{result.folder}: {summary(result.figures)}")


def _plain(result: "Result") -> dict[str, Any]:
    return {"folder": str(result.folder), **result.figures, "lines": result.notices}


def summary(figures: dict[str, Any]) -> str:
    """What was learned, and what it took, in one line."""
    before, after = figures["held_out_loss"]["before"], figures["held_out_loss"]["after"]
    learned = f"training loss {figures['train_loss']:.4f}"
    if before is not None and after is not None:
        learned = f"held-out loss {before:.4f} -> {after:.4f}"
    return (
        f"{learned} in {figures['steps']} steps, {figures['seconds']:.1f} s "
        f"({figures['tokens_per_second']:,.0f} tokens/s, "
        f"{figures['peak_memory_bytes'] / 2**20:,.0f} MiB)"
    )
