"""lorica predict: the classes of new rows, by a classifier."""

from pathlib import Path
from typing import Literal

from cyclopts import App

from lorica.cli.eval import EvalSettings, check_new, rows_of
from lorica.cli.help import SettingsHelp
from lorica.cli.options import Bank, Grade, Quantisation, Words, one, print_json, split

app = App(
    name="predict",
    usage="Usage: lorica predict RUN|ADAPTER|BASE --data FILE [OPTIONS]",
    help_formatter=SettingsHelp(EvalSettings),
)


@app.default
def predict(
    *words: Words,
    output: Path | None = None,
    base: str | None = None,
    dtype: Literal["float32", "bfloat16"] | None = None,
    allow_base: Grade | None = None,
    quantisation: Quantisation | None = None,
    json: Bank = False,
) -> None:
    """Give the classes of new rows, with probabilities; rows need a text, and no label.

    For a language model there is lorica generate.

    Parameters
    ----------
    output
        A new file for all rows, as JSON lines: label, probability, and that of every class.
    base
        Another place of the base: folder, hub id, or bundled.
    dtype
        Data type of the weights.
    allow_base
        Accept a base that is not the one of training.
    quantisation
        Pack the base's linear layers, or not; by default as in training.
    json
        Print one JSON object.
    """
    plain, flags = split(words)
    path = Path(str(one(plain, "run, adapter or base", needed=True)))
    data = rows_of(path, flags)
    if output is not None:
        check_new(output)

    from rich.console import Console

    from lorica.evaluation.predict import predict, show_predictions
    from lorica.evaluation.predictions import write

    predictions = predict(
        path, data, base=base, dtype=dtype, allow_base=allow_base, quantisation=quantisation
    )
    if output is not None:
        write(output, predictions.rows)
    if json:
        print_json(predictions.as_dict())
    else:
        show_predictions(predictions, Console(highlight=False))
