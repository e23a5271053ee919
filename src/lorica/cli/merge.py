"""lorica merge: base and adapter as one plain transformers model, with the measured error."""

from pathlib import Path

from cyclopts import App

from lorica.cli.options import Grade, Switch, print_json

app = App(name="merge")


@app.default
def merge(
    path: Path,
    /,
    *,
    output: Path,
    base: str | None = None,
    allow_base: Grade | None = None,
    json: Switch = False,
) -> None:
    """Write base and adapter as one plain transformers model.

    Parameters
    ----------
    path
        A run or an adapter.
    output
        The folder that is written; it must not hold anything yet.
    base
        Another place of the base: folder, hub id, or bundled.
    allow_base
        Accept a base that is not the one of training.
    json
        Print one JSON object.
    """
    from lorica.formats.merged import merge_to

    report = merge_to(path, output, base=base, allow_base=allow_base)
    if json:
        print_json({"folder": str(output), **report.as_dict()})
        return
    print(*report.lines, f"the merged model is in {output}", sep="\n")
