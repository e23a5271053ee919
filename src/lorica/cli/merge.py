"""lorica merge: base and adapter as one plain transformers model, with the measured error."""

from pathlib import Path
from typing import Literal

from cyclopts import App

from lorica.cli.options import (
    AllowBase,
    BaseLocation,
    Json,
    OutputFolder,
    Quantisation,
    Texts,
    print_json,
)

app = App(name="merge")


@app.default
def merge(
    path: Path,
    /,
    *,
    output: OutputFolder,
    base: BaseLocation = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    limit: float = 0.05,
    probe: Texts = None,
    allow_base: AllowBase = None,
    quantisation: Quantisation = None,
    target: Literal["dequant", "original", "requant"] | None = None,
    condition: str | None = None,
    json: Json = False,
) -> None:
    """Write base and adapter as one plain transformers model.

    Parameters
    ----------
    path
        A run or an adapter.
    dtype
        Data type of the written weights. By default that of the base's files. The merge is
        computed in float32.
    limit
        Largest share of the adapter's effect that may be lost. Above it nothing is written.
    probe
        Text to measure the effect on, besides the built-in ones; may be given several times.
    target
        What a quantised base is merged into: its dequantised weights (dequant, the default), the
        weights that it was quantised from (original), or weights that are quantised again
        (requant).
    condition
        Condition to merge, of an adapter that is made from one (en-fr).
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
