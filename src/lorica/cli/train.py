"""lorica train: from a recipe, or from flags alone, to a run folder."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import App

from lorica import plain_files, progress, strict_json
from lorica.cli.help import SettingsHelp
from lorica.cli.options import Json, Switch, Words, parse_words, print_json, single_word
from lorica.cli.planned import compared, one_line, prediction
from lorica.errors import ConfigError, LoricaError, counted
from lorica.plan.current_device import current_device
from lorica.plan.estimate import estimate
from lorica.plan.sample import MIXTURE_BYTES, file_size
from lorica.recipe.method_settings import method_from_source
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
    path, began = Path(recipe) if recipe else None, time.perf_counter()
    planned = plan_run(resume / "config.yaml" if resume else path, flags)
    config = None if resume else read(path, flags)
    steps_before = finished_steps(resume) if resume else None

    from lorica.training.train import train  # torch, from here on

    result = train(config, resume=resume, show=not json, **(flags if resume else {}))
    if is_other_process():
        return
    if not result.figures:
        print(*result.notices, sep="\n")
        return
    if planned is not None:
        if resume:  # a part of its time was in another command
            planned["seconds"] = None
        else:
            planned["took_seconds"] = round(time.perf_counter() - began, 3)
        keep_prediction(result, planned)
    if json:
        print_json(_as_json(result))
    else:
        print(summary(result.figures, steps_before))
        if planned is not None:
            print(compared(planned, result.figures))
        print(f"the run is in {result.folder}, its adapter in {result.folder / 'adapter'}")


def plan_run(path: Path | None, flags: dict[str, Any]) -> dict[str, Any] | None:
    """Announce what a run will cost, in one line, before torch is imported.

    Returns: the prediction for results.json; None: the run cannot be planned. What is wrong with
    its settings or its rows stops the training, which says it in its own words.
    """
    try:
        config = read(path, flags, check_method=method_from_source)
        if config.split or "base" not in config.model_fields_set or is_other_process():
            return None
        files = [file.path for file in config.data.mixture] or [config.data.path]
        if not all(Path(file).is_file() for file in files):
            return None  # a data set of the hub: its rows would be read twice
        if len(files) > 1 and sum(map(file_size, files)) > MIXTURE_BYTES:
            return None
        planned = estimate(config, current_device())
    except LoricaError:
        return None
    progress.announce(one_line(planned))
    return prediction(planned)


def keep_prediction(result: "Result", planned: dict[str, Any]) -> None:
    """Add the prediction to the results of a run, as `predicted`. In place."""
    from lorica.formats import commit

    result.figures["predicted"] = planned
    commit.write_json(result.folder / "results.json", result.figures)


def is_other_process() -> bool:
    """Whether this is one of several processes, and not the first, which prints and writes."""
    return os.environ.get("RANK", "0") != "0"


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
