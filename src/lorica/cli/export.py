"""lorica export: an adapter for another runtime, with the measured difference."""

from pathlib import Path
from typing import Literal

from cyclopts import App

from lorica.cli.options import AllowBase, BaseLocation, Json, OutputFolder, Texts, print_json
from lorica.errors import ConfigError

app = App(name="export")


@app.default
def export(
    path: Path,
    /,
    *,
    output: OutputFolder,
    to: Literal["lora", "peft", "vllm", "sglang", "llamacpp", "ray"] = "lora",
    condition: str | None = None,
    rank: int | None = None,
    base: BaseLocation = None,
    probe: Texts = None,
    allow_base: AllowBase = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    quantise: Literal["f32", "f16", "bf16", "q8_0"] | None = None,
    cloud: str | None = None,
    json: Json = False,
) -> None:
    """Write an adapter for another runtime: a plain LoRA, or merged where it is none.

    Parameters
    ----------
    path
        A run or an adapter, or a folder of several. With --to llamacpp also a base.
    to
        Runtime. lora: a LoRA in PEFT's layout, alone, each layer with its own rank. The others: one
        rank for all layers, with recorded answers for lorica verify, and a script that starts it.
    condition
        Condition to export, of an adapter that is made from one (en-fr). By default all that it was
        trained on, each as an adapter of its own; lora: one.
    rank
        Truncate the update of every layer to this rank. Without it, the LoRA is exact, or the model
        is merged (lora: refused).
    probe
        Text to measure the difference on, besides the built-in ones; may be given several times.
    dtype
        Data type of a merged model. By default that of the base's files.
    quantise
        Format of a model as GGUF. By default f16.
    cloud
        With --to ray: where Ray reads the adapters (s3://BUCKET/adapters).
    """
    options = {"condition": condition, "rank": rank, "base": base, "probe": probe}
    if to == "lora":
        from lorica.formats.export import export_lora

        for name, value in (("dtype", dtype), ("quantise", quantise), ("cloud", cloud)):
            if value is not None:
                raise ConfigError(
                    f"--{name} is for other runtimes.", fix="leave it out, or set --to"
                )
        report = export_lora(path, output, allow_base=allow_base, **options)
        last = f"the LoRA is in {output}"
    else:
        from lorica.handover.export import hand_over

        report = hand_over(
            path,
            output,
            to=to,
            allow_base=allow_base,
            dtype=dtype,
            quantise=quantise,
            cloud=cloud,
            **options,
        )
        last = report.summary
    if json:
        print_json(report.as_dict())
        return
    print(*report.notices, last, sep="\n")
