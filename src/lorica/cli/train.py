"""lorica train: from a recipe, or from flags alone, to a run folder."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import App

from lorica import plain_files, strict_json
from lorica.cli.help import SettingsHelp
from lorica.cli.options import Json, Switch, Words, parse_words, print_json, single_word
from lorica.errors import ConfigError, counted
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
    *words: Words, resume: Path | None = None, each: Switch = False, json: Json = False
) -> None:
    """Fine-tune a base on your rows.

    Flags override the recipe, and the recipe overrides the defaults. Nested settings have dots:
    --data.max_length 256, --method dora, --method.r 4. Lists are separated by commas.

    Parameters
    ----------
    resume
        Run folder to continue from its newest checkpoint, with its own settings. Only
        --max_steps or --epochs (a longer run), --save_steps, --keep_checkpoints, --report_to,
        --loss_limit and paths to the same content may be given.
    each
        Train several runs at once on one base: name a recipe for each, or a run folder to
        continue. Flags are settings of all runs.
    """
    positional, flags = parse_words(words)
    if each:
        _train_each(positional, flags, resume, json)
        return
    recipe = single_word(positional, "recipe")
    if resume and recipe:
        raise ConfigError(
            "a resumed run keeps its settings.",
            given=recipe,
            fix=f"lorica train --resume {resume}",
        )
    config = None if resume else read(Path(recipe) if recipe else None, flags)
    steps_before = finished_steps(resume) if resume else None

    from lorica.training.train import train  # torch, from here on

    result = train(config, resume=resume, show=not json, **(flags if resume else {}))
    if os.environ.get("RANK", "0") != "0":
        return  # the first of several processes prints
    if not result.figures:
        print(*result.notices, sep="\n")
    elif json:
        print_json(_as_json(result))
    else:
        print(summary(result.figures, steps_before))
        print(f"the run is in {result.folder}, its adapter in {result.folder / 'adapter'}")


def _train_each(
    positional: list[str], flags: dict[str, Any], resume: Path | None, json: bool
) -> None:
    if resume:
        raise ConfigError(
            "--each takes the folders of the runs to continue without --resume.",
            fix=f"lorica train --each {resume} ...",
        )
    folders = [word for word in positional if Path(word).is_dir()]
    if folders and flags:
        raise ConfigError(
            "a resumed run keeps its settings.",
            given=", ".join([*folders, *(f"--{flag}" for flag in flags)]),
        )
    runs = [word if word in folders else read(Path(word), flags) for word in positional]
    steps_before = {Path(folder): finished_steps(Path(folder)) for folder in folders}

    from lorica.training.each import train_each

    results = train_each(runs, show=not json)
    if json:
        print_json({"runs": [_as_json(result) for result in results]})
        return
    for result in results:
        before = steps_before.get(result.folder)
        print(f"{result.folder}: {summary(result.figures, before)}")


def _as_json(result: "Result") -> dict[str, Any]:
    return {"folder": str(result.folder), **result.figures, "lines": result.notices}


def finished_steps(run: Path) -> int | None:
    """The steps of a run that has ended; None if it has not."""
    results = run / "results.json"
    return strict_json.read(results).get("steps") if plain_files.is_file(results) else None


def summary(figures: dict[str, Any], steps_before: int | None = None) -> str:
    """The loss and the cost of a run, in one line.

    steps_before: steps of a resumed run that had ended already.
    """
    before, after = figures["held_out_loss"]["before"], figures["held_out_loss"]["after"]
    loss = f"training loss {figures['train_loss']:.4f}"
    if before is not None and after is not None:
        loss = f"held-out loss {before:.4f} -> {after:.4f}"
    steps = counted(figures["steps"], "step")
    if steps_before == figures["steps"]:
        return f"this run has ended after {steps}; nothing was trained ({loss})"
    memory = figures["peak_memory_bytes"]
    return (
        f"{loss} in {steps}, {figures['seconds']:.1f} s "
        f"({figures['tokens_per_second']:,.0f} tokens/s"
        + (f", {memory / 2**20:,.0f} MiB)" if memory else ")")
    )
