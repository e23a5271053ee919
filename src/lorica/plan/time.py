"""Time of a training step on a device, from its floating-point operations and memory traffic.

    forward    2 P T                    P weights of the blocks, T tokens
    backward   2 P T, and 2 P T more where the weights themselves are trained
    head       2 V C N and again        N label positions, V vocabulary, C features
    adapter    6 A T                    A parameters of the adapter's matrices
    recomputed 2 P T                    with gradient checkpointing

So a step costs about 4 P T with a frozen base, and 6 P T in full fine-tuning (Kaplan et al., 2020,
arXiv:2001.08361, section 2.1). Products need the weights from memory once in each pass; what lies
between the products is bound by memory, and so are the optimizer and dequantisation.

A peak from a data sheet is not reached, and how near a step comes depends on kernels that were not
measured here. So the result is a range: see SHARES. On a CPU the peak itself is measured.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from lorica.plan.devices import Device
from lorica.plan.families import SiteShape
from lorica.plan.parameters import count_parameters
from lorica.plan.selection import adapted_sites, rank_at
from lorica.plan.shapes import DTYPE_BYTES, Shapes
from lorica.plan.tokens import MicroBatch, TokenCounts
from lorica.training.settings import TrainSettings

MAX_LABEL_SHARE = 0.8
"""As in training.objective: up to here the last block computes label positions only."""


class Reached(NamedTuple):
    """What a step reaches of a device: shares of the peak rate of products and of the memory's
    bandwidth; and the seconds of Python and dispatch for one tensor operation in eager mode."""

    products: float
    bandwidth: float
    call: float


SHARES = {
    "cuda": (Reached(0.75, 0.9, 8e-6), Reached(0.5, 0.8, 12e-6), Reached(0.2, 0.6, 30e-6)),
    "cpu": (Reached(0.9, 0.9, 18e-6), Reached(0.5, 0.8, 25e-6), Reached(0.25, 0.6, 50e-6)),
}
"""At best, expected, at worst. Products at best: a large one in cuBLAS or MKL; at worst: small
batches. Bandwidth: of a long copy (STREAM on CPUs, copies on GPUs)."""
PASSES = 6
"""How often a saved activation moves: written, read by the next layer and in the backward pass;
its gradient is written, read and added to."""
OPTIMIZER_BYTES = 28
"""Of a parameter in an AdamW update: four float32 numbers are read, three are written."""
CALLS_PER_BLOCK, CALLS_PER_SITE = 60, 14
"""Tensor operations of a block, and more of each adapted layer, forward and backward."""
LEAST_HEAD = 64
"""Attention over smaller heads takes as long as over heads of this size: its products are so thin
that vectors and tiles stay empty."""
UNPACKED_PER_SECOND = 0.6e9
"""Weights that one core of a CPU unpacks from 4 bits (docs/performance: LoRA on NF4)."""


@dataclass(frozen=True)
class Span:
    """Seconds: expected, and the range within which they should lie."""

    low: float
    expected: float
    high: float

    def __mul__(self, factor: float) -> "Span":
        return Span(self.low * factor, self.expected * factor, self.high * factor)

    def __add__(self, other: "Span") -> "Span":
        return Span(self.low + other.low, self.expected + other.expected, self.high + other.high)


@dataclass(frozen=True)
class Work:
    """What one micro-batch asks of a device, and `update_bytes` once for an optimizer step.

    products: floating-point operations. weight_bytes: of weights that the products read.
    other_bytes: traffic of everything between the products. unpacked: weights that are
    dequantised. calls: tensor operations.
    """

    products: float
    weight_bytes: float
    other_bytes: float
    unpacked: float
    calls: float
    update_bytes: float


@dataclass(frozen=True)
class Rates:
    """What a device does in a second at most: operations in the run's dtype, and bytes."""

    products: float
    bandwidth: float


def step_time(
    shapes: Shapes,
    method: Mapping[str, Any],
    settings: TrainSettings,
    tokens: TokenCounts,
    device: Device,
) -> Span | None:
    """Seconds of an optimizer step of the run's mean size; None: the device's speed is unknown.

    method: its name and all its settings.
    """
    rates = rates_of(device, settings.dtype)
    if rates is None:
        return None
    work = work_of(shapes, method, settings, tokens.mean, tokens.conditions)
    rows = settings.micro_batch_size * settings.gradient_accumulation_steps
    micro_batches = rows / tokens.mean.rows
    low, expected, high = (
        seconds(work, rates, device, reached, micro_batches) for reached in SHARES[device.kind]
    )
    return Span(low, expected, high)


def waits_for_launches(
    shapes: Shapes,
    method: Mapping[str, Any],
    settings: TrainSettings,
    tokens: TokenCounts,
    device: Device,
) -> bool:
    """Whether a step takes as long as Python needs to launch its kernels: a faster card is no
    faster then. Arguments as in `step_time`."""
    rates = rates_of(device, settings.dtype)
    if device.kind != "cuda" or rates is None:
        return False
    work, reached = (
        work_of(shapes, method, settings, tokens.mean, tokens.conditions),
        SHARES["cuda"][1],
    )
    return work.calls * reached.call > _computing(work, rates, device, reached)


def seconds(
    work: Work, rates: Rates, device: Device, reached: Reached, micro_batches: float
) -> float:
    """An optimizer step, if a device reaches so much."""
    computing, waiting = _computing(work, rates, device, reached), work.calls * reached.call
    # A GPU works while Python launches what comes next; a CPU does one after the other.
    own = max(computing, waiting) if device.kind == "cuda" else computing + waiting
    return micro_batches * own + work.update_bytes / (rates.bandwidth * reached.bandwidth)


def _computing(work: Work, rates: Rates, device: Device, reached: Reached) -> float:
    """Seconds in which a micro-batch is computed."""
    bandwidth = rates.bandwidth * reached.bandwidth
    products = work.products / (rates.products * reached.products)
    computing = max(products, work.weight_bytes / bandwidth) + work.other_bytes / bandwidth
    if device.kind == "cpu":
        computing += work.unpacked / (UNPACKED_PER_SECOND * device.threads)
    return computing


def work_of(
    shapes: Shapes,
    method: Mapping[str, Any],
    settings: TrainSettings,
    batch: MicroBatch,
    conditions: Sequence[str] = (),
) -> Work:
    """The work of one micro-batch."""
    sites = adapted_sites(shapes, method, settings)
    trained = count_parameters(shapes, method, settings, conditions=conditions).trained
    is_full = method["name"] == "full"
    size, tokens, labels = DTYPE_BYTES[settings.dtype], batch.tokens, batch.labels
    again = settings.gradient_checkpointing
    blocks = _block_products(shapes, tokens, labels) + _attention(shapes, batch)
    head = 2.0 * shapes.vocab * shapes.hidden * labels
    own = sum(_matrix_elements(site, method, settings, trained, sites) for site in sites)
    passes = 2 + again
    products = blocks * (passes + is_full) + head * (2 + is_full) + 6 * own * tokens
    weights = sum(site.inputs * site.outputs for site in shapes.quantisable)
    quantised = settings.quantisation is not None
    unpacked = weights * passes if quantised else 0
    activations = shapes.layers * tokens * (8 * shapes.hidden + 4 * shapes.intermediate)
    return Work(
        products=products,
        weight_bytes=passes * shapes.parameters * size,
        other_bytes=PASSES * activations * size * (1.5 if again else 1)
        + 5 * labels * shapes.vocab * 4
        + unpacked * (size + 0.5)
        + is_full * 3 * trained * size,
        unpacked=unpacked,
        calls=(passes * CALLS_PER_BLOCK * shapes.layers + CALLS_PER_SITE * len(sites)),
        update_bytes=OPTIMIZER_BYTES * trained,
    )


def _block_products(shapes: Shapes, tokens: float, labels: float) -> float:
    """Operations of the linear layers of all blocks in a forward pass. The last block computes
    label positions only, except for keys and values."""
    every = sum(2.0 * site.inputs * site.outputs for site in shapes.quantisable)
    if not shapes.packs or labels > MAX_LABEL_SHARE * tokens:
        return every * tokens
    last = sum(
        2.0 * site.inputs * site.outputs
        for site in shapes.quantisable
        if site.layer == shapes.layers - 1 and not site.name.endswith(("k_proj", "v_proj"))
    )
    return every * tokens - last * (tokens - labels)


def _attention(shapes: Shapes, batch: MicroBatch) -> float:
    """Operations of the scores and of the weighted values, causal, in a forward pass."""
    length, size = batch.attended / batch.rows, max(shapes.head_size, LEAST_HEAD)
    return 2.0 * shapes.layers * shapes.heads * size * batch.rows * length**2


def _matrix_elements(
    site: SiteShape,
    method: Mapping[str, Any],
    settings: TrainSettings,
    trained: int,
    sites: Sequence[SiteShape],
) -> float:
    """Elements of the matrices by which a site's adapter multiplies every token."""
    match method["name"]:
        case "full" | "prompt_tuning" | "prefix_tuning" | "ia3" | "llama_adapter":
            return 0.0
        case "mora" | "bottleneck":
            return trained / len(sites)
    return rank_at(site, method, settings) * (site.inputs + site.outputs)


def rates_of(device: Device, dtype: str) -> Rates | None:
    """What a device does in a second; None: unknown. A GPU without units for `dtype` computes it
    in those of float32. A CPU without bfloat16 instructions is many times slower: not predicted."""
    if device.kind == "cpu":
        slow = dtype == "float16" or (dtype == "bfloat16" and not cpu_has_bfloat16())
        return None if slow else cpu_rates()
    if device.bandwidth is None or not device.flops:
        return None
    return Rates(device.flops.get(dtype, device.flops["float32"]), device.bandwidth)


@cache
def cpu_rates() -> Rates:
    """Measured here and now, in about 0.1 s: a product as in a small model, and a copy."""
    import numpy as np

    rows, inputs, outputs, copied = 256, 512, 1376, 1 << 23
    x, w = (np.full(size, 0.5, np.float32) for size in ((rows, inputs), (inputs, outputs)))
    y, a, b = np.empty((rows, outputs), np.float32), *(np.zeros(copied, np.float32) for _ in "ab")
    product = _shortest(lambda: np.matmul(x, w, out=y))
    copy = _shortest(lambda: np.copyto(b, a))
    return Rates(2 * rows * inputs * outputs / product, 2 * 4 * copied / copy)


def _shortest(act: Any, times: int = 6) -> float:
    """Seconds of the shortest of several calls; the first is slower. Those of this thread: what
    other processes take from it is not counted."""
    spent = []
    for _ in range(times):
        began = time.thread_time()
        act()
        spent.append(max(time.thread_time() - began, 1e-7))  # coarse clocks may stand still
    return min(spent)


def cpu_has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 numbers itself (Linux; elsewhere: no)."""
    path = "/proc/cpuinfo"
    if not os.path.exists(path):
        return False
    with open(path, encoding="utf-8", errors="replace") as file:
        flags = next((line.split() for line in file if line.startswith(("flags", "Features"))), [])
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags)
