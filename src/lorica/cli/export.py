"""lorica export: an adapter in another form, with the measured difference."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from lorica.cli.options import Bank, Grade, print_json

app = App(name="export")


@app.default
def export(
    path: Path,
    /,
    *,
    output: Path,
    to: Literal["lora"] = "lora",
    condition: str | None = None,
    rank: int | None = None,
    base: str | None = None,
    probe: Annotated[list[str] | None, Parameter(negative=())] = None,
    allow_base: Grade | None = None,
    json: Bank = False,
) -> None:
    """Write an adapter as a plain LoRA, which PEFT and the serving engines read.

    Parameters
    ----------
    path
        A run or an adapter.
    output
        The folder that is written; it must not hold anything yet.
    to
        The form: lora, a LoRA in PEFT's layout, with the scale 1.
    condition
        Which one is exported, of an adapter that is made from a condition (en-fr).
    rank
        Cut every layer's update to this rank; without it, the LoRA is exact or refused.
    base
        Another place of the base: folder, hub id, or bundled.
    probe
        A text to measure on beside the built-in ones; may be given several times.
    allow_base
        Accept a base that is not the one of training.
    json
        Print one JSON object.
    """
    from lorica.formats.export import export_lora

    report = export_lora(
        path, output, condition=condition, rank=rank, base=base, allow_base=allow_base, probe=probe
    )
    if json:
        print_json(report.as_dict())
        return
    print(*report.notices, f"the LoRA is in {output}", sep="\n")
