"""How large the check is, where it runs, and what it measures with."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.speed import work
from benchmarks.speed.work import Row, Shape

SEVEN_B = Shape(layers=32, width=4096, mlp=11_008, heads=32, vocabulary=32_000)
TINY = Shape(layers=2, width=64, mlp=128, heads=4, vocabulary=512)
MICRO = 4
"""Rows of a micro-batch: of the article's recipe."""
Step = Callable[[list[Row]], None]
"""An optimizer step over its rows, in micro-batches of MICRO rows."""


@dataclass(frozen=True)
class Size:
    """shape: of the model. micro_batches: of a step. steps: that are measured, after one that is
    not. dtype: of the base."""

    shape: Shape
    micro_batches: int
    steps: int
    device: str
    dtype: torch.dtype = torch.bfloat16


def size_for(*, smoke: bool) -> Size:
    """A 7B model on the card; smoke: a tiny one, on the CPU where there is no card."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if smoke:
        return Size(TINY, 2, 1, device, torch.float32)
    return Size(SEVEN_B, 32, 2, device)


def random_base(size: Size) -> Any:
    """A Llama with random weights, made on the device in its dtype."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(size.dtype)
    try:
        with torch.device(size.device):
            model = LlamaForCausalLM(size.shape.config())
    finally:
        torch.set_default_dtype(torch.float32)
    return model.train().requires_grad_(False)


def timed(step: Step, size: Size) -> dict[str, float]:
    """Seconds of a micro-batch (median), real tokens a second, and peak gigabytes of the card."""
    rows_of_step = MICRO * size.micro_batches
    rows = work.rows(rows_of_step * (size.steps + 1), vocabulary=size.shape.vocabulary)
    seconds, tokens = [], 0
    for i in range(size.steps + 1):
        own = rows[i * rows_of_step : (i + 1) * rows_of_step]
        began = time.perf_counter()
        step(own)
        if size.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        tokens += work.tokens(own) if i else 0
    gigabytes = torch.cuda.max_memory_allocated() / 1e9 if size.device == "cuda" else 0.0
    return {
        "seconds": statistics.median(seconds[1:]) / size.micro_batches,
        "tokens_per_second": tokens / sum(seconds[1:]),
        "gigabytes": gigabytes,
    }
