"""The peak memory of a run, from the sizes of the base and the tokens of its largest micro-batch.

    weights       in their dtype; of a quantised base, codes and scales, and one unpacked layer;
                  of an offloaded base, a layer (CPU) or two blocks
    adapter       float32: trained tensors, their gradients, their start, and frozen tensors
    optimizer     AdamW: two float32 moments for each trained element; SGD: none
    activations   what the backward pass needs; see lorica.plan.activations
    logits        of one chunk of label positions, with their gradient
    runtime       Python and torch on a CPU, with what a run does at its end; the context of CUDA

Activations and logits come and go with every micro-batch, so a heap holds more than them: OVERHEAD.
The constants have their reasons beside them; benchmarks/plan compares the sum with real runs
(docs/planning).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from lorica.plan.activations import kept
from lorica.plan.devices import Device
from lorica.plan.evaluation import largest_evaluation
from lorica.plan.parameters import Parameters, count_parameters
from lorica.plan.shapes import DTYPE_BYTES, Shapes
from lorica.plan.tokens import MicroBatch, TokenCounts
from lorica.training.settings import TrainSettings

MIB = 2**20
RUNTIME = {"cpu": 400 * MIB, "cuda": 600 * MIB}
"""Python, torch and transformers in memory: 120 MiB of code, 280 MiB of its objects; the context of
CUDA and its libraries on a card."""
BITSANDBYTES = {"cpu": 65 * MIB, "cuda": 0}
"""What importing it adds, on the first quantised layer."""
PLOTS = {"cpu": 20 * MIB, "cuda": 0}
"""matplotlib, at the end of a run."""
DIGEST_CHUNK, DIGEST_BYTES, DIGEST_THREADS = 1 << 22, 6, 8
"""At its end a run hashes the base, in threads: numbers of a part, and bytes that a thread's heap
keeps for each of them (two bytes in bfloat16, three of them since parts differ in size)."""
OVERHEAD = {"cpu": 1.5, "cuda": 1.1}
"""Heap that a step takes, as a multiple of what is in use at its peak. glibc cannot give a tensor
the hole that one of another size left, and the tensors of every micro-batch have another size: in
measured runs the heap was 1.3 to 1.55 times what was in use, also in repetitions of one run. Most
are below 1.5, so that a prediction errs above. CUDA's allocator splits large blocks less."""
HOLES = {"cpu": 2.8, "cuda": 0.0}
"""With gradient checkpointing every block leaves a hole in glibc's heap: its gate, its activation
and up are freed below its output, which stays. Tensors as wide as the MLP, per token and block."""
LOGITS_CHUNK = 1 << 24
"""Logits that are in memory at a time; lorica.kernels.loss.CHUNK."""


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a step, by what they hold."""

    weights: int
    adapter: int
    optimizer: int
    activations: int
    logits: int
    runtime: int

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


def peak_memory(
    shapes: Shapes,
    method: Mapping[str, Any],
    settings: TrainSettings,
    tokens: TokenCounts,
    device: Device,
) -> Memory:
    """The memory of the run's largest micro-batch, or of its evaluation if that needs more.

    method: its name and all its settings.
    """
    counts = count_parameters(
        shapes, method, settings, conditions=tokens.conditions, classes=tokens.classes
    )
    size, batch, overhead = DTYPE_BYTES[settings.dtype], tokens.largest, OVERHEAD[device.kind]
    elements = kept(shapes, method, settings, batch, len(tokens.conditions))
    if settings.gradient_checkpointing:
        wide = HOLES[device.kind] * shapes.intermediate * batch.tokens * shapes.layers
        elements += wide / overhead  # the holes are there once
    trains_head = method["name"] == "full" and settings.target_modules in (None, "all")
    activations = int(overhead * size * elements)
    logits = int(overhead * _logits(shapes, tokens, batch))
    logits += trains_head * 4 * shapes.vocab * shapes.hidden
    evaluated = largest_evaluation(shapes, settings, tokens)
    if method["name"] == "alora":  # between steps, whose holes in the heap are of other sizes
        activations += int(overhead * evaluated.activations)
        logits += int(overhead * evaluated.logits)
    elif evaluated.total > activations + logits:
        activations, logits = evaluated.activations, evaluated.logits
    return Memory(
        weights=_weights(shapes, settings, device),
        adapter=_adapter(counts, method, size, device),
        optimizer=_moments(settings) * 4 * counts.trained,
        activations=activations,
        logits=logits,
        runtime=_runtime(shapes, settings, device),
    )


def _runtime(shapes: Shapes, settings: TrainSettings, device: Device) -> int:
    quantised = (settings.quantisation or shapes.quantised) is not None
    largest = max((site.parameters for site in shapes.sites), default=0)
    threads = min(DIGEST_THREADS, device.processors)
    digest = threads * DIGEST_BYTES * min(largest, DIGEST_CHUNK) if device.kind == "cpu" else 0
    libraries = RUNTIME[device.kind] + quantised * BITSANDBYTES[device.kind]
    return libraries + digest + PLOTS[device.kind]


def _weights(shapes: Shapes, settings: TrainSettings, device: Device) -> int:
    kind, size = settings.quantisation or shapes.quantised, DTYPE_BYTES[settings.dtype]
    if settings.offload and device.kind == "cpu":  # one layer's weights at a time
        return size * max(site.parameters for site in shapes.sites)
    if settings.offload:  # two blocks, and the weights outside of the blocks
        inside = sum(site.inputs * site.outputs for site in shapes.quantisable)
        waiting = inside * max(shapes.layers - 2, 0) // max(shapes.layers, 1)
        return shapes.bytes_of(settings.dtype) - size * waiting
    if kind not in ("nf4", "fp4", "int8"):
        return shapes.bytes_of(settings.dtype)
    packed = shapes.bytes_of(settings.dtype, kind, settings.double_quantisation)
    largest = max(site.inputs * site.outputs for site in shapes.quantisable)
    unpacked = min(
        settings.unpacked_gib * 2**30,
        size * sum(site.inputs * site.outputs for site in shapes.quantisable),
    )
    return packed + size * largest + int(unpacked)


def _adapter(counts: Parameters, method: Mapping[str, Any], size: int, device: Device) -> int:
    """Tensors and gradients. A run keeps a copy of their start as well, in the memory of the CPU.

    Full fine-tuning in another dtype than float32 casts every trained tensor for the pass.
    """
    copies = 3 if device.kind == "cpu" else 2
    cast = size * counts.trained if method["name"] == "full" and size < 4 else 0
    return copies * 4 * counts.trained + 4 * counts.frozen + cast


def _moments(settings: TrainSettings) -> int:
    return 0 if settings.optimizer == "sgd" else 2


def _logits(shapes: Shapes, tokens: TokenCounts, batch: MicroBatch) -> float:
    """Bytes of a chunk of logits and of their gradient, in float32; see lorica.kernels.loss.

    While a second chunk is computed, the gradient of the first is still there. Of a classifier:
    one logit a class.
    """
    if tokens.classes is not None:
        return 4 * 2 * batch.rows * tokens.classes
    chunks = max(math.ceil(batch.labels * shapes.vocab / LOGITS_CHUNK), 1)
    return 4 * (2 if chunks == 1 else 3) * batch.labels * shapes.vocab / chunks
