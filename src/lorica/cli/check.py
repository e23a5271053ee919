"""lorica check: the data of a training, before anything is trained."""

from functools import partial
from pathlib import Path

from cyclopts import App

from lorica.cli.help import SettingsHelp
from lorica.cli.options import Json, Words, parse_words, print_json, single_word
from lorica.recipe.validate import setting_names
from lorica.training.config import TrainConfig, read

SETTINGS = [
    name
    for name in setting_names(TrainConfig)
    if name in ("base", "seed") or name.partition(".")[0] == "data"
]
"""Those with an effect on the data; the others are only validated."""

app = App(
    name="check",
    usage="Usage: lorica check [RECIPE] [--SETTING VALUE]... [OPTIONS]",
    help_formatter=SettingsHelp(TrainConfig, only=SETTINGS),
)

BAD_DATA = 3  # the exit status of a DataError


@app.default
def check(*words: Words, json: Json = False) -> None:
    """Show what would be trained on: lengths, truncation, duplicates, the loss mask.

    The settings are those of lorica train. The ones that are not listed here are validated and
    have no other effect. What would stop a training is a problem: the exit status is then 3.
    """
    positional, flags = parse_words(words)
    recipe = single_word(positional, "recipe")
    config = read(Path(recipe) if recipe else None, flags)

    from rich.console import Console

    from lorica.base.added_tokens import add_tokens
    from lorica.base.context_length import check_tokens
    from lorica.base.describe import row_limit, vocabulary_size
    from lorica.base.load import load_tokenizer
    from lorica.data.check import check, print_report
    from lorica.training.prepare import check_base_named

    check_base_named(config)
    tokenizer = add_tokens(load_tokenizer(config.base), config.data.add_tokens)
    embedding_rows = None if config.data.add_tokens else vocabulary_size(config.base)
    report = check(
        config.data,
        tokenizer,
        seed=config.seed,
        max_length=row_limit(config.base, config.data.max_length),
        check_examples=partial(check_tokens, tokenizer=tokenizer, rows=embedding_rows),
    )
    if json:
        print_json(report.as_dict())
    else:
        print_report(report, Console(highlight=False))
    if report.problems:
        raise SystemExit(BAD_DATA)
