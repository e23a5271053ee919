"""lorica merge: base and adapter as one plain transformers model, with the measured error."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from lorica.cli.options import Bank, Grade, Quantisation, print_json

app = App(name="merge")


@app.default
def merge(
    path: Path,
    /,
    *,
    output: Path,
    base: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    limit: float = 0.05,
    probe: Annotated[list[str] | None, Parameter(negative=())] = None,
    allow_base: Grade | None = None,
    quantisation: Quantisation | None = None,
    target: Literal["dequant", "original", "requant"] | None = None,
    condition: str | None = None,
    json: Bank = False,
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
    dtype
        Data type of the written weights; by default that of the base's files. The merge is
        computed in float32.
    limit
        Largest share of the adapter's effect that merging may lose; above it nothing is written.
    probe
        A text to measure on beside the built-in ones; may be given several times.
    allow_base
        Accept a base that is not the one of training.
    quantisation
        Pack the base's linear layers, or not; by default as in training.
    target
        What a quantised base is merged into: the floats that its codes stand for (dequant, the
        default), the floats that it was made from (original), or codes again (requant).
    condition
        Which condition is merged, of an adapter that is made from one (en-fr).
    json
        Print one JSON object.
    """
    from lorica.formats.merge import merge_to

    report = merge_to(
        path,
        output,
        base=base,
        dtype=dtype,
        allow_base=allow_base,
        limit=limit,
        probe=probe,
        quantisation=quantisation,
        target=target,
        condition=condition,
    )
    if json:
        print_json(report.as_dict())
        return
    print(*report.notices, f"the merged model is in {output}", sep="\n")
