"""lorica check: what a training would be given, before anything is trained."""

from functools import partial
from pathlib import Path

from cyclopts import App

from lorica.cli.help import SettingsHelp
from lorica.cli.options import Bank, Words, one, print_json, split
from lorica.training.config import TrainConfig, read

app = App(
    name="check",
    usage="Usage: lorica check [RECIPE] [--SETTING VALUE]... [OPTIONS]",
    help_formatter=SettingsHelp(TrainConfig, method=True),
)

BAD_DATA = 3  # the exit status of a DataError


@app.default
def check(*words: Words, json: Bank = False) -> None:
    """Show what would be trained on: lengths, truncation, duplicates, the loss mask.

    The settings are those of lorica train. What would stop a training is listed as a problem,
    and makes the exit status 3.

    Parameters
    ----------
    json
        Print one JSON object.
    """
    plain, flags = split(words)
    recipe = one(plain, "recipe")
    config = read(Path(recipe) if recipe else None, flags)

    from rich.console import Console

    from lorica.base.added_tokens import with_tokens
    from lorica.base.context_length import check_tokens
    from lorica.base.load import context_length, load_tokenizer
    from lorica.base.load import vocabulary as embedded
    from lorica.data.check import check, show
    from lorica.training.prepare import check_base_named

    check_base_named(config)
    tokenizer = with_tokens(load_tokenizer(config.base), config.data.add_tokens)
    rows = None if config.data.add_tokens else embedded(config.base)
    report = check(
        config.data,
        tokenizer,
        seed=config.seed,
        max_length=context_length(config.base),
        usable=partial(check_tokens, tokenizer=tokenizer, rows=rows),
    )
    if json:
        print_json(report.as_dict())
    else:
        show(report, Console(highlight=False))
    if report.problems:
        raise SystemExit(BAD_DATA)
