"""lorica export: an adapter in another format, with the measured difference."""

from pathlib import Path
from typing import Literal

from cyclopts import App

from lorica.cli.options import AllowBase, BaseLocation, Json, OutputFolder, Texts, print_json

app = App(name="export")


@app.default
def export(
    path: Path,
    /,
    *,
    output: OutputFolder,
    to: Literal["lora"] = "lora",
    condition: str | None = None,
    rank: int | None = None,
    base: BaseLocation = None,
    probe: Texts = None,
    allow_base: AllowBase = None,
    json: Json = False,
) -> None:
    """Write an adapter as a plain LoRA that PEFT and the serving engines read.

    Parameters
    ----------
    path
        A run or an adapter.
    to
        Format: lora, a LoRA in PEFT's layout, with the scale 1.
    condition
        Condition to export, of an adapter that is made from one (en-fr).
    rank
        Truncate the update of every layer to this rank. Without it, the LoRA is exact or refused.
    probe
        Text to measure the difference on, besides the built-in ones; may be given several times.
    """
    from lorica.formats.export import export_lora

    report = export_lora(
        path, output, condition=condition, rank=rank, base=base, allow_base=allow_base, probe=probe
    )
    if json:
        print_json(report.as_dict())
        return
    print(*report.notices, f"the LoRA is in {output}", sep="\n")
