"""Compare GGUF files in llama.cpp with transformers, and write the page.

python -m benchmarks.runtimes.install llamacpp
python -m benchmarks.runtimes.compare_llamacpp                 into benchmarks/results
python -m benchmarks.runtimes.compare_llamacpp --write PAGE    the page of the last run
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import benchmarks.runtimes.compare_llamacpp as package
from benchmarks.runtimes import llamacpp_cases as cases
from benchmarks.runtimes import tiny_models
from benchmarks.runtimes.adapters import ADAPTERS, BASE, MERGED
from benchmarks.runtimes.table import header, nats, pair, table
from lorica.base.load import load as load_base
from lorica.handover.gguf.model import write_model
from lorica.handover.gguf.writer import Dtype

RESULTS = Path(__file__).parents[1] / "results/llamacpp.json"
DTYPES: tuple[Dtype, ...] = ("f32", "f16", "bf16", "q8_0")
SHIPPED, EXACT = "as shipped", "attention in float32"
NOTE = """\
# GGUF in llama.cpp: measured

Written by `python -m benchmarks.runtimes.compare_llamacpp --write
docs/handover/llamacpp-measured.md`; do not edit by hand.

Each figure compares the log-probabilities of the next token, over the whole vocabulary and after
every token of a text: llama.cpp's on the GGUF file against transformers' in float32 on the model
that the file was written from. *Worst* is the largest difference of all, in nats; it mostly stands
at a token of very low probability. *Mean* is over all tokens and positions. *Effect* is the
largest difference that the adapter itself makes.

{machine}; llama.cpp in xllamacpp {version}; gguf {gguf}. Measured on {date}, on one thread.
"""
ADAPTERS_NOTE = """\
## Adapters on the bundled base

Random adapters on all linear layers, exported as plain LoRAs and written as GGUF. All of them are
on one server, and each request asks for one.

*{exact}*: a float32 KV cache and no fused attention, so that what differs comes from the files.
*{shipped}*: llama.cpp's own settings, with a float16 KV cache; how far it is off without an adapter
is in the first row. bf16 and q8_0 round more: llama.cpp rounds what goes into a product as well.
Tests hold adapters within twice the base's own difference, for f16 and q8_0, and the base in q8_0
below 0.15 nats on average and 1.5 at worst."""
MERGED_NOTE = """\
## Merged models

Adapters that are no LoRA, merged into the base by `lorica merge` and written as GGUF."""
TINY_NOTE = """\
## Every architecture

Tiny models with random weights and uneven sizes (the head size is not the width over the heads,
keys have fewer heads than queries), each with a LoRA on its linear layers, in float32 with
attention in float32. llama.cpp reads GELU from a table in float16, which Gemma and GPT-2 show. On
every text of the test llama.cpp's tokens are those of the model's own tokenizer."""


def measure(folder: Path) -> dict[str, Any]:
    """Every comparison. folder: for the files, which take some 200 MB."""
    opened, log = load_base(BASE), folder / "log"
    adapters = {name: cases.write_adapter(name, _new(folder)) for name in ADAPTERS}
    results: dict[str, Any] = {"adapters": {}, "merged": {}, "tiny": {}}
    for dtype in DTYPES:
        model = folder / f"base-{dtype}.gguf"
        write_model(BASE, model, dtype=dtype)
        for setting in (EXACT, SHIPPED) if dtype == "f32" else (SHIPPED,):
            compared = cases.compare_adapters(
                model, adapters, opened, log, as_shipped=setting == SHIPPED
            )
            rows = {name: asdict(result) for name, result in compared.items()}
            results["adapters"][f"{dtype}, {setting}"] = rows
    for name in MERGED:
        for dtype in DTYPES:
            model, want = cases.write_merged(name, _new(folder), dtype)
            result = cases.compare_model(model, want, opened, log, as_shipped=dtype != "f32")
            results["merged"].setdefault(name, {})[dtype] = asdict(result)
    for name in tiny_models.CONFIGS:
        compared = cases.compare_tiny(name, _new(folder))
        results["tiny"][name] = {key: asdict(result) for key, result in compared.items()}
    return results


def _new(folder: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=folder))


def page(record: Mapping[str, Any]) -> str:
    """The page of a record."""
    results = record["results"]
    columns = list(results["adapters"])
    rows = [
        [name, nats(results["adapters"][columns[0]][name]["effect"]) if name != "base" else ""]
        + [pair(results["adapters"][column][name]) for column in columns]
        for name in results["adapters"][columns[0]]
    ]
    merged = [
        [name, *(pair(by_dtype[dtype]) for dtype in DTYPES)]
        for name, by_dtype in results["merged"].items()
    ]
    tiny = [
        [name, pair(row["base"]), pair(row["adapter"]), nats(row["adapter"]["effect"])]
        for name, row in results["tiny"].items()
    ]
    return "\n".join(
        [
            NOTE.format(**record),
            ADAPTERS_NOTE.format(exact=EXACT.capitalize(), shipped=SHIPPED.capitalize()),
            "",
            *table(["worst / mean", "effect", *columns], rows),
            "",
            MERGED_NOTE,
            "",
            *table(["worst / mean", *(f"{d}, {_setting(d)}" for d in DTYPES)], merged),
            "",
            TINY_NOTE,
            "",
            *table(["worst / mean", "base", "with a LoRA", "effect"], tiny),
            "",
        ]
    )


def _setting(dtype: str) -> str:
    return EXACT if dtype == "f32" else SHIPPED


def main() -> None:
    parser = argparse.ArgumentParser(
        description=package.__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--write", type=Path, help="the page, from the last run")
    if (target := parser.parse_args().write) is not None:
        target.write_text(page(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")
        return
    with tempfile.TemporaryDirectory() as folder:
        record = {
            **header("llamacpp", "xllamacpp"),
            "gguf": version("gguf"),
            "results": measure(Path(folder)),
        }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(page(record))


if __name__ == "__main__":
    main()
