"""The layers of a model from the names and shapes of its weights: of an architecture that is not
known, or of one with more parts than its language model."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from lorica.base.untrusted_files import header_of, weight_files
from lorica.errors import FileError, listed
from lorica.plan.expert_headers import expert_sites, stacked
from lorica.plan.families import SiteShape

BUFFERS = re.compile(r"(attn\.(masked_)?bias|inv_freq)$")
"""Masks and frequencies that old checkpoints hold: they are no parameters."""
EMBEDDING = re.compile(r"(^|[._])(embed\w*|wte|wpe|word_embeddings|tok_embeddings)([._]|$)")
HEADS = ("lm_head", "score", "classifier", "output", "embed_out")
ROUTERS = ("gate", "router")
"""What chooses the experts beside it: no linear layer in transformers."""
QUERIES = {"q_proj", "query", "c_attn", "qkv_proj", "query_key_value", "Wqkv", "wq", "q_lin"}

Tensors = Mapping[str, tuple[int, ...]]
"""Tensor name -> shape."""


def weight_tensors(folder: Path) -> dict[str, tuple[int, ...]]:
    """Every tensor of a base, by its headers. Raises: FileError if a file is damaged or empty."""
    files = weight_files(folder)
    tensors = {
        name: tuple(entry["shape"])
        for file in files
        for name, entry in header_of(file).items()
        if name != "__metadata__" and not BUFFERS.search(name)
    }
    if not tensors:
        raise FileError(
            f"the weights of {folder} are not complete: no tensor is in {listed(files)}.",
            fix="download the model again",
        )
    return tensors


def elements(tensors: Tensors, *, heads: bool = True) -> int:
    """Elements of all tensors. heads: those of output heads too."""
    return sum(
        math.prod(shape)
        for name, shape in tensors.items()
        if heads or name.split(".")[-2:][0] not in HEADS
    )


def sites_in(tensors: Tensors) -> list[SiteShape]:
    """The sites of a model with these weights, in the order of their names.

    A matrix is taken as (outputs, inputs), as in torch.nn.Linear.
    """
    modules: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in stacked(tensors).items():
        module, _, leaf = name.rpartition(".")
        modules.setdefault(module, {})[leaf] = shape
    decoder = _common_parent([name for name in modules if _block_of(name) is not None])
    sites = [SiteShape(decoder, "decoder")]
    attentions: set[str] = set()
    for name, own in sorted(modules.items(), key=lambda item: _order(item[0])):
        parent, _, leaf = name.rpartition(".")
        if leaf in QUERIES and parent not in attentions:
            attentions.add(parent)
            sites.append(SiteShape(parent, "attention", layer=_block_of(name)))
        if leaf in ROUTERS and f"{parent}.experts" in modules:
            sites.append(SiteShape(name, "other", 0, 0, _block_of(name), elements(own)))
            continue
        sites += [_site(name, leaf, own), *expert_sites(name, own, _block_of(name))]
    return sites


def _site(name: str, leaf: str, tensors: Tensors) -> SiteShape:
    size = elements(tensors)
    weight, layer = tensors.get("weight", ()), _block_of(name)
    if len(weight) != 2:
        return SiteShape(name, "other", 0, 0, layer, size)
    rows, columns = weight
    if EMBEDDING.search(name) and leaf not in HEADS:
        return SiteShape(name, "embedding", rows, columns, layer, size)
    is_head = leaf in HEADS and layer is None
    return SiteShape(name, "linear", columns, rows, layer, size, is_head)


def _block_of(name: str) -> int | None:
    return next((int(word) for word in name.split(".") if word.isdigit()), None)


def _common_parent(names: Sequence[str]) -> str:
    """What the names of all blocks begin with: "model" for model.layers.0 and so on."""
    words = [re.split(r"\.\d+", name)[0] for name in names]
    return words[0].rpartition(".")[0] if words else ""


def _order(name: str) -> list[tuple[int, str]]:
    """Names in natural order: block 10 comes after block 9."""
    return [(int(w), "") if w.isdigit() else (-1, w) for w in name.split(".")]
