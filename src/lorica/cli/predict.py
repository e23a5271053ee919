"""lorica predict: the classes of new rows, by a classifier."""

from pathlib import Path

from cyclopts import App

from lorica.cli.help import SettingsHelp
from lorica.cli.measured_rows import PREDICT_SETTINGS, EvalSettings, rows_of
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

app = App(
    name="predict",
    usage="Usage: lorica predict RUN|ADAPTER|BASE --data FILE [OPTIONS]",
    help_formatter=SettingsHelp(EvalSettings, only=PREDICT_SETTINGS),
)


@app.default
def predict(
    *words: Words,
    output: Path | None = None,
    model: ModelOptions = AS_IN_TRAINING,
    json: Json = False,
) -> None:
    """Predict the classes of new rows, with probabilities. Rows need a text, but no label.

    For a language model use lorica generate.

    Parameters
    ----------
    output
        New file for all rows, as JSON lines: label, probability, and that of every class.
    """
    positional, flags = parse_words(words)
    path = Path(str(single_word(positional, "run, adapter or base", required=True)))
    data = rows_of(path, flags)
    check_new_file(output)

    from rich.console import Console

    from lorica.evaluation.predict import predict, show_predictions
    from lorica.evaluation.predictions import write

    predictions = predict(path, data, **model.as_dict())
    if output is not None:
        write(output, predictions.rows)
    if json:
        print_json(predictions.as_dict())
    else:
        show_predictions(predictions, Console(highlight=False))
