"""Check and measure Lorica on one CUDA card, in under ten minutes.

    make gpu-check
    python -m benchmarks.gpu --smoke      tiny models, also without a card: the script works

Sections: the laws in float32 and bfloat16, a killed and resumed run, a published recipe in the
shape of LLaMA-7B beside PEFT and full fine-tuning, QLoRA on the same shape, and decoding with
several adapters. Each side has the card to itself, in a process of its own. Results go to
docs/performance/gpu.json and gpu.md, after every section; those of a smoke run go nowhere.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import laws, page, qlora, recipe, resume, serving
from benchmarks.gpu.size import Size, size_for

DOCS = Path(__file__).parents[2] / "docs/performance"
Section = tuple[str, str, Callable[[], dict[str, Any]]]
"""(name, side, what measures it)."""


def sections(size: Size, *, smoke: bool) -> Iterator[Section]:
    yield "laws", "", partial(laws.measure, size.device)
    yield "resume", "", resume.measure
    for side in recipe.SIDES:
        yield "recipe", side, partial(recipe.measure, side, size)
    for side in qlora.SIDES:
        yield "qlora", side, partial(qlora.measure, side, size)
    shape, rounds = ("T", 1) if smoke else ("M", 5)
    yield (
        "serving",
        "",
        partial(serving.measure, size.device, shape=shape, dtype=size.dtype, rounds=rounds),
    )


def measured(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The figures of a section, from a process of its own; {"error": why} if it failed."""
    began = time.monotonic()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            figures = pool.submit(measure).result()
        except Exception as error:  # also of a card that is too small: it belongs to the result
            figures = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
    return {**figures, "took": round(time.monotonic() - began, 1)}


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA card"
    names = ("torch", "transformers", "peft", "bitsandbytes", "lorica")
    return {"card": card, "python": platform.python_version(), **{n: version(n) for n in names}}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--smoke", action="store_true", help="figures that mean nothing")
    parser.add_argument("--only", nargs="*", help="names of sections")
    words = parser.parse_args()
    if not torch.cuda.is_available() and not words.smoke:
        print("this needs a CUDA card, and there is none; --smoke runs without", file=sys.stderr)
        sys.exit(2)
    size = size_for(smoke=words.smoke)
    results: dict[str, Any] = {"machine": machine()}
    failed = []
    for name, side, measure in sections(size, smoke=words.smoke):
        if words.only and name not in words.only:
            continue
        figures = measured(measure)
        results.setdefault(name, {})[side] = figures
        print(f"{name} {side}".strip(), json.dumps(figures), flush=True)
        if figures.get("broken") or ("error" in figures and side != "full fine-tuning"):
            failed.append(f"{name} {side}".strip())
        if not words.smoke:
            (DOCS / "gpu.json").write_text(json.dumps(results, indent=1) + "\n")
            (DOCS / "gpu.md").write_text(page.text(results))
    if words.smoke:
        page.text(results)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
