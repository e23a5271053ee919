"""Decoding on the device: a batch whose rows have an adapter each, over one merged model.

The model is that of benchmarks.serve.decode, and so are the sides and the decoder. The time is that
of the clock, since the device works on its own.
"""

import time
from typing import Any

import torch

from benchmarks.serve import decode
from benchmarks.serve.decode import Case, Side


def measure(device: str, *, shape: str, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """Speed over that of the merged model, by case and side."""
    ratios = {}
    for case in (Case(1, 1), Case(8, 8), Case(32, 8)):
        built = decode.sides(case, shape, dtype, rounds, device)
        best = {side.name: _best(side, case, rounds, device) for side in built}
        ratios[f"{case.rows} rows, {case.adapters} adapters"] = best["merged"] / best["bank"]
    return {"bank_over_merged": ratios, "shape": shape, "dtype": str(dtype).removeprefix("torch.")}


def _best(side: Side, case: Case, rounds: int, device: str) -> float:
    """Seconds of the fastest round."""
    side.start(case)
    seconds = []
    for _ in range(rounds):
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        side.run()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
