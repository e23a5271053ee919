"""The peak memory of a training step, from the sizes of the base and the tokens of a micro-batch.

    weights       in their dtype; of a quantised base, codes and scales, and one unpacked layer
    adapter       float32: trained tensors, their gradients, their start, and frozen tensors
    optimizer     AdamW: two float32 moments for each trained element; SGD: none
    activations   what the backward pass needs of each block, per token; with gradient checkpointing
                  the input of each block, and one block whole
    logits        of one chunk of label positions, with their gradient
    runtime       Python and torch on a CPU; the context of CUDA on a card

What a block keeps per token follows from the code of transformers' decoders and of the adapters; it
is written out in `kept_per_token`. The rest are the constants below, fitted to measured runs by
benchmarks/plan (docs/planning).

    h  hidden   q  heads x head size   i  intermediate   r  rank   I, O  features of a layer
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from lorica.plan.devices import Device
from lorica.plan.families import SiteShape
from lorica.plan.parameters import Parameters, count_parameters
from lorica.plan.selection import adapted_sites, rank_at, scaled_at_input
from lorica.plan.shapes import DTYPE_BYTES, Shapes
from lorica.plan.tokens import MicroBatch, TokenCounts
from lorica.training.settings import TrainSettings

MIB = 2**20
RUNTIME = {"cpu": 480 * MIB, "cuda": 600 * MIB}
"""Python, torch and transformers in memory; the context of CUDA and its libraries on a card."""
OVERHEAD = {"cpu": 1.10, "cuda": 1.05}
"""Memory that the allocator holds beside what is in use: freed blocks of other sizes."""
TRANSIENT = 2.0
"""Tensors as wide as the widest layer that a backward pass holds for a moment, per token."""
LOGITS_CHUNK = 1 << 24
"""Logits that are in memory at a time; lorica.kernels.loss.CHUNK."""
LOGITS_COPIES = 3.0
"""Tensors of a chunk's size, in float32: the logits, their softmax, and the gradient."""
MAX_LABEL_SHARE = 0.8
"""Share of label positions up to which the last block computes them alone; see objective.py."""
WITHOUT_INPUTS = ("lora_fa", "vera", "ia3", "bottleneck", "llama_adapter")
"""Methods that do not keep the input of the layers they act on."""
VIRTUAL = ("prompt_tuning", "prefix_tuning")


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
    """The memory of the run's largest micro-batch. method: its name and all its settings."""
    counts = count_parameters(
        shapes, method, settings, conditions=tokens.conditions, classes=tokens.classes
    )
    size, overhead = DTYPE_BYTES[settings.dtype], OVERHEAD[device.kind]
    batch = tokens.largest
    kept = _kept(shapes, method, settings, batch)
    transient = TRANSIENT * batch.tokens * _widest(shapes)
    return Memory(
        weights=_weights(shapes, settings),
        adapter=_adapter(counts, method, size, device),
        optimizer=_moments(settings) * 4 * counts.trained,
        activations=int(overhead * size * (kept + transient)),
        logits=_logits(shapes, tokens, batch),
        runtime=RUNTIME[device.kind],
    )


def _weights(shapes: Shapes, settings: TrainSettings) -> int:
    kind, size = settings.quantisation or shapes.quantised, DTYPE_BYTES[settings.dtype]
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


def _kept(
    shapes: Shapes, method: Mapping[str, Any], settings: TrainSettings, batch: MicroBatch
) -> float:
    """Elements that are kept for the backward pass of a micro-batch."""
    blocks = kept_per_token(shapes, method, settings)
    tokens = batch.tokens
    if method["name"] == "prompt_tuning":
        tokens += method["num_virtual_tokens"]
    few = batch.labels <= MAX_LABEL_SHARE * batch.tokens and method["name"] != "hyperlora"
    last = tokens * blocks[-1]
    if few:  # keys and values need all tokens, the rest of the last block its label positions
        attention = 3 * shapes.kv_heads * shapes.head_size + 2 * shapes.hidden
        last = tokens * attention + batch.labels * max(blocks[-1] - attention, 0)
    if settings.gradient_checkpointing:
        return tokens * shapes.hidden * shapes.layers + max(tokens * max(blocks[:-1] or [0]), last)
    return tokens * sum(blocks[:-1]) + last


def kept_per_token(
    shapes: Shapes, method: Mapping[str, Any], settings: TrainSettings
) -> list[float]:
    """Elements that each block keeps for its backward pass, for one token.

    norms         their input, twice                         2 h
    attention     queries, keys and values for every head,   4 q
                  and the output
    MLP, gated    gate, its activation, and up               3 i   (others: 1 i, and the activation)
    adapters      see `_of_adapters`
    """
    heads = shapes.heads * shapes.head_size
    inner = (3 if shapes.gated else 2) * shapes.intermediate
    plain = 2 * shapes.hidden + 4 * heads + inner
    blocks = [float(plain)] * shapes.layers
    sites = adapted_sites(shapes, method, settings)
    for layer, kept in _of_adapters(shapes, method, settings, sites).items():
        blocks[layer] += kept
    first = min((s.layer for s in sites if s.layer is not None), default=0)
    if method["name"] not in ("full", *VIRTUAL):  # no gradient reaches the blocks below
        blocks[:first] = [0.0] * first
    return blocks


def _of_adapters(
    shapes: Shapes,
    method: Mapping[str, Any],
    settings: TrainSettings,
    sites: Sequence[SiteShape],
) -> dict[int, float]:
    """Elements that the adapters of each block keep for one token.

    Sites with the same input (queries, keys and values; gate and up) keep it once.
    """
    kept: dict[int, float] = {}
    inputs: set[tuple[int, str]] = set()
    scaled = scaled_at_input(sites, method) if method["name"] == "ia3" else set()
    for site in sites:
        if site.layer is None:
            continue
        own = _of_adapter(shapes, method, rank_at(site, method, settings), site, scaled)
        source = (site.layer, _source(site))
        if site.kind == "linear" and method["name"] not in WITHOUT_INPUTS and source not in inputs:
            inputs.add(source)
            own += site.inputs
        kept[site.layer] = kept.get(site.layer, 0.0) + own
    return kept


def _source(site: SiteShape) -> str:
    """What a layer reads: layers of one module read the same, except the last one of it."""
    parent, _, leaf = site.name.rpartition(".")
    is_output = leaf in ("o_proj", "down_proj", "c_proj", "out_proj", "fc2", "dense")
    return f"{parent}.{leaf}" if is_output else parent


def _of_adapter(
    shapes: Shapes, method: Mapping[str, Any], r: int, site: SiteShape, scaled: set[str]
) -> float:
    """Elements that one adapter keeps for one token, beside the input of its layer."""
    heads = shapes.heads * shapes.head_size
    match method["name"]:
        case "dora":
            return r + site.outputs
        case "vera":
            return 2 * r + site.outputs
        case "ia3":
            return site.inputs if site.name in scaled else site.outputs
        case "bottleneck":
            return (site.outputs + 2 * r) if site.kind == "linear" else site.parameters
        case "llama_adapter" if site.kind == "attention":
            return 2 * heads
        case "llama_adapter":
            return 2 * site.outputs if site.kind == "linear" else site.parameters
        case "mora" | "full":
            return 0
    return r


def _widest(shapes: Shapes) -> int:
    return max(shapes.intermediate, shapes.heads * shapes.head_size, shapes.hidden)


def _logits(shapes: Shapes, tokens: TokenCounts, batch: MicroBatch) -> int:
    """A chunk of logits in float32; of a classifier, one logit a class."""
    if tokens.classes is not None:
        return int(4 * LOGITS_COPIES * batch.rows * tokens.classes)
    return int(4 * LOGITS_COPIES * min(batch.labels * shapes.vocab, LOGITS_CHUNK))
