"""lorica eval: an adapter beside its base on held-out rows, with confidence intervals."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from lorica import plain_files
from lorica.cli.help import SettingsHelp
from lorica.cli.measured_rows import EVAL_SETTINGS, EvalSettings, rows_of
from lorica.cli.options import (
    AS_IN_TRAINING,
    Json,
    ModelOptions,
    Words,
    check_new_file,
    parse_words,
    print_json,
    single_word,
)
from lorica.errors import ResourceError

Tasks = Annotated[list[str] | None, Parameter(negative=(), consume_multiple=False)]

app = App(
    name="eval",
    usage="Usage: lorica eval RUN|ADAPTER|BASE --data FILE [OPTIONS]",
    help_formatter=SettingsHelp(EvalSettings, only=EVAL_SETTINGS),
)


@app.default
def evaluate(
    *words: Words,
    exact_match: Annotated[bool, Parameter(show_default=False)] = True,
    task: Tasks = None,
    before: str | None = None,
    max_new_tokens: int | None = None,
    model: ModelOptions = AS_IN_TRAINING,
    predictions: Path | None = None,
    json: Json = False,
) -> None:
    """Measure an adapter beside its base on held-out rows; or a base alone.

    For a run, the settings of the rows are those of its training; flags override them. The
    results of a run are added to its results.json, and those of every row to predictions.jsonl.

    Parameters
    ----------
    exact_match
        Let the model answer every prompt, and count the answers that equal the reference.
    task
        Scores of the answers, separated by commas: accuracy, bleu, character_accuracy, chrf, f1,
        json, json_valid, numeric, rouge_l; or a benchmark of lm-eval: lm_eval:NAME.
    before
        Rows that the base knew before training, to see what the adapter forgot: a file, or "own"
        for the domain of the bundled base.
    max_new_tokens
        Maximum number of new tokens of an answer. By default what the longest reference needs.
    predictions
        New file for the result of every row, as JSON lines.
    """
    positional, flags = parse_words(words)
    path = Path(str(single_word(positional, "run, adapter or base", required=True)))
    data = rows_of(path, flags)
    check_new_file(predictions)

    from rich.console import Console

    from lorica.evaluation.evaluate import evaluate, record
    from lorica.evaluation.predictions import write
    from lorica.evaluation.tables import show_report

    report = evaluate(
        path,
        data=data,
        exact_match=exact_match,
        tasks=task or (),
        before=before,
        max_new_tokens=max_new_tokens,
        **model.as_dict(),
    )
    if plain_files.is_file(path / "results.json"):
        try:
            record(report, path)
        except ResourceError as error:  # a run of someone else, or on a read-only disk
            report.notices.append(f"these results are not added to the run: {error.what}")
    if predictions is not None:
        write(predictions, report.predictions)
    if json:
        print_json(report.as_dict())
    else:
        show_report(report, Console(highlight=False))
