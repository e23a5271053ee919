"""What a forward pass keeps for the backward pass, counted tensor by tensor.

It follows from the code of transformers' decoders and of the adapters. A test compares it with the
tensors that torch really saves, for every method.

    h  hidden   q  heads x head size   i  intermediate   r  rank   I, O  features of a layer
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lorica.plan.families import SiteShape
from lorica.plan.selection import adapted_sites, rank_at, scaled_at_input
from lorica.plan.shapes import DTYPE_BYTES, Shapes
from lorica.plan.tokens import MicroBatch
from lorica.training.settings import TrainSettings

MAX_LABEL_SHARE = 0.8
"""Share of label positions up to which the last block computes them alone; see objective.py."""
WITHOUT_INPUTS = ("lora_fa", "vera", "ia3", "bottleneck", "llama_adapter", "mora")
"""Methods that do not keep the input of the layers they act on."""
VIRTUAL = ("prompt_tuning", "prefix_tuning")


def kept(
    shapes: Shapes,
    method: Mapping[str, Any],
    settings: TrainSettings,
    batch: MicroBatch,
    conditions: int = 0,
) -> float:
    """Elements that are kept for the backward pass of a micro-batch.

    conditions: distinct ones of the rows; HyperLoRA keeps the matrices that it generates for each.
    """
    sites = adapted_sites(shapes, method, settings)
    tokens, norms = batch.tokens, _norms(shapes, method, settings)
    if method["name"] == "prompt_tuning":
        tokens += method["num_virtual_tokens"]
    attention = _attended(shapes, method, batch)
    blocks = [
        tokens * block + (attention if block else 0.0)
        for block in kept_per_token(shapes, method, settings, sites)
    ]
    if batch.labels <= MAX_LABEL_SHARE * batch.tokens and method["name"] != "hyperlora":
        # Only what the norms keep and what keys and values read is there for all tokens.
        whole = norms + shapes.hidden
        rest = max((blocks[-1] - attention) / tokens - whole, 0.0)
        blocks[-1] = tokens * whole + batch.labels * rest + attention
    first = _first_block(method, sites)
    if first is not None and not any(s.layer == first and _reads_block(s) for s in sites):
        # Its gradient ends at the output of attention.
        blocks[first] = max(blocks[first] - attention - tokens * shapes.hidden, 0.0)
    generated = min(conditions, batch.rows) * _generated(method, settings, sites)
    ends = _ends(shapes, batch) + tokens * norms / 2
    if settings.gradient_checkpointing:
        inputs = tokens * shapes.hidden * shapes.layers
        return inputs + ends + max(blocks) + generated
    return sum(blocks) + ends + generated


def _ends(shapes: Shapes, batch: MicroBatch) -> float:
    """Elements beside the blocks: tables of the rotary positions, and at label positions what the
    last queries read, what the head reads, and its gradient."""
    return 2 * shapes.head_size * batch.tokens + 3 * shapes.hidden * batch.labels


def _norms(shapes: Shapes, method: Mapping[str, Any], settings: TrainSettings) -> int:
    """Elements that the two norms of a block keep for a token: their inputs, which they convert to
    float32, and where they are trained what they multiply."""
    wide = 4 // DTYPE_BYTES[settings.dtype]
    return 2 * shapes.hidden * (wide + (method["name"] == "full"))


def _first_block(method: Mapping[str, Any], sites: Sequence[SiteShape]) -> int | None:
    """The first block that a gradient reaches; None: it reaches the embeddings."""
    if method["name"] in ("full", *VIRTUAL) or any(s.kind == "embedding" for s in sites):
        return None
    return min((site.layer for site in sites if site.layer is not None), default=None)


def _reads_block(site: SiteShape) -> bool:
    """Whether a layer makes queries, keys or values: a gradient goes on through attention."""
    parent, _, leaf = site.name.rpartition(".")
    reads = leaf.startswith(("q_", "k_", "v_", "qkv", "c_attn", "query", "key", "value"))
    return site.kind == "linear" and reads and "mlp" not in parent


def _generated(
    method: Mapping[str, Any], settings: TrainSettings, sites: Sequence[SiteShape]
) -> float:
    """Elements that HyperLoRA generates for a condition: A and B of every layer."""
    if method["name"] != "hyperlora":
        return 0.0
    return sum(
        float(rank_at(site, method, settings) * (site.inputs + site.outputs)) for site in sites
    )


def _attended(shapes: Shapes, method: Mapping[str, Any], batch: MicroBatch) -> float:
    """Elements that attention keeps in a block: queries, keys, values and outputs of every row with
    its prefix, 4 q for a token, and a sum for every head. Behind virtual tokens, keys and values
    are copied with them, and there is a mask of every row: about its length squared."""
    heads = shapes.heads * shapes.head_size
    tensors = (4 * heads + shapes.heads) * batch.attended
    if method["name"] not in VIRTUAL:
        return tensors
    mask = batch.attended * (batch.longest + batch.attended / batch.rows) / 2
    copies = 2 * heads * method["num_virtual_tokens"] * batch.rows
    return tensors + copies + mask


def kept_per_token(
    shapes: Shapes,
    method: Mapping[str, Any],
    settings: TrainSettings,
    sites: Sequence[SiteShape],
) -> list[float]:
    """Elements that each block keeps for its backward pass, for one token, without attention.

    norms         their input, in float32                    2 h    (in bfloat16: 4 h)
                  where they are trained, its norm too       2 h
    MLP, gated    gate, its activation, and up               3 i   (others: 1 i, and the activation)
    adapters      see `_of_adapters`
    """
    inner = (3 if shapes.gated else 2) * shapes.intermediate
    blocks = [float(_norms(shapes, method, settings) + inner)] * shapes.layers
    for layer, elements in _of_adapters(shapes, method, settings, sites).items():
        blocks[layer] += elements
    if (first := _first_block(method, sites)) is not None:  # no gradient reaches those below
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
            return r + site.outputs
        case "double_lora" | "alora":
            return 2 * r
        case "blora":  # three pieces: the products with A, quantised, and pruned
            return 4 * r
        case "ia3":
            return site.inputs if site.name in scaled else site.outputs
        case "bottleneck":
            return (site.outputs + 2 * r) if site.kind == "linear" else site.parameters
        case "llama_adapter" if site.kind == "attention":
            return heads
        case "llama_adapter":
            return 2 * site.outputs if site.kind == "linear" else site.parameters
        case "mora":  # x cut into groups as long as the square matrix has rows
            size = max(int(math.sqrt((site.inputs + site.outputs) * r)) // 2 * 2, 2)
            return math.ceil(site.inputs / size) * size
        case "full":
            return 0
    return r
