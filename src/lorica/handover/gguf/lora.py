"""Write a plain LoRA as GGUF, which llama.cpp applies beside its base.

llama.cpp scales B A by the request's scale times alpha / r, and by the request's scale alone where
adapter.lora.alpha is 0. So every scale (alpha / r, alpha / sqrt(r), patterns) is multiplied into B
here, and alpha is 0: ranks may then differ from layer to layer.

    <tensor>.weight.lora_a (R, I)    <tensor>.weight.lora_b (O, R)
    token_embd.weight.lora_a (V, R)  token_embd.weight.lora_b (I, R)

    I  in_features   O  out_features   R  the rank of the layer   V  tokens
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from lorica.base.describe import read_config
from lorica.core.patterns import check_pattern
from lorica.core.site_names import first
from lorica.errors import BaseError, FileError, MergeError, counted, listed
from lorica.formats.adapter_file import AdapterFile, read
from lorica.formats.peft.layout import Layout
from lorica.formats.peft.lora import REMADE
from lorica.formats.vocabulary import TEMPLATE, own_template
from lorica.handover.gguf.architectures import (
    EMBEDDING,
    HEAD,
    Architecture,
    architecture_of,
    interleaved,
)
from lorica.handover.gguf.model import load_tokenizer
from lorica.handover.gguf.tensors import stored_tensors
from lorica.handover.gguf.writer import Fields, PlannedTensor, write
from lorica.methods.lora import Lora

PAIRS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_embedding_A": "a",
    ".lora_embedding_B": "b",
}
MERGE = "merge it (lorica merge), and write the merged model as GGUF"


@dataclass(frozen=True)
class Factors:
    """The update of one layer, b a, as the folder holds it; the scale is in neither.

    a (R, I), b (O, R); of an embedding, a lookup: a (R, V), b (I, R).
    """

    a: Tensor
    b: Tensor
    lookup: bool


def write_lora(adapter: Path, base: str, output: Path) -> list[str]:
    """Write the plain LoRA in folder `adapter` as the GGUF file `output`, whole or not at all.

    base: folder, hub id or "bundled". Returns: notices.
    Raises: MergeError if llama.cpp has no place for a part of the adapter; BaseError if the base
        is of an architecture that is not written; FileError if the folder is damaged;
        ResourceError if `output` exists or cannot be written.
    """
    file, config = read(adapter), read_config(base)
    architecture = architecture_of(config, base)
    _check_plain(file)
    layers = _factors(file)
    _check_places(layers, architecture, config, base)
    _check_shapes(layers, architecture, base)
    tensors: list[PlannedTensor] = []
    for layer, scale in _scales(file, layers).items():
        tensors += _planned(layer, layers[layer], scale, architecture, config)
    fields: Fields = {
        "general.type": "adapter",
        "general.name": output.stem,
        "adapter.type": "lora",
        "adapter.lora.alpha": 0.0,
    }
    write(output, architecture.name, fields, tensors)
    ranks = [len(factors.a) for factors in layers.values()]
    written = (
        f"{counted(len(layers), 'layer')} as GGUF, rank {min(ranks)} to {max(ranks)}, float32; "
        "the scale is in B, so llama.cpp's scale 1 is the adapter as it was trained"
    )
    return [written, *_template_notices(file, base)]


def _template_notices(file: AdapterFile, base: str) -> list[str]:
    template = own_template(file.folder)
    if template is None or template == load_tokenizer(base).chat_template:
        return []
    option = f"--jinja --chat-template-file {TEMPLATE}"
    return [f"a LoRA file holds no chat template: start llama-server with {option}"]


def _check_plain(file: AdapterFile) -> None:
    """Raises: MergeError if the folder holds anything but a LoRA without a start of its own."""
    kind = "DoRA" if file.config.get("use_dora") else file.spec.method.name
    layout: Layout | None = file.layout
    fix = f"write it as a plain LoRA first (lorica export), or {MERGE}"
    if layout is None or layout.kind != "LORA" or file.config.get("use_dora"):
        raise MergeError(f"{file.folder} is a {kind} adapter, not a plain LoRA.", fix=fix)
    start = file.config.get("init_lora_weights")
    if start in REMADE:
        raise MergeError(
            f"{file.folder} began with {start}, which changed the base's weights.", fix=fix
        )
    if foreign := [key for key in file.tensors if not key.endswith(tuple(PAIRS))]:
        raise MergeError(
            f"{file.folder} has tensors for which llama.cpp's adapters have no place.",
            tensors=listed(foreign),
            fix=MERGE,
        )


def _factors(file: AdapterFile) -> dict[str, Factors]:
    """The factors of each layer. Raises: FileError if one of a pair is missing or does not fit."""
    pairs: dict[str, dict[str, Tensor]] = {}
    lookups: set[str] = set()
    for key, tensor in file.tensors.items():
        ending = next(ending for ending in PAIRS if key.endswith(ending))
        layer = key.removeprefix(Layout.prefix).removesuffix(ending)
        pairs.setdefault(layer, {})[PAIRS[ending]] = tensor.float()
        if "embedding" in ending:
            lookups.add(layer)
    wrong = [
        layer
        for layer, pair in pairs.items()
        if pair.keys() != {"a", "b"}
        or pair["a"].ndim != 2
        or pair["b"].ndim != 2
        or len(pair["a"]) != pair["b"].shape[1]
    ]
    if wrong or not pairs:
        raise FileError(
            f"{file.folder} has no layer of a LoRA."
            if not pairs
            else f"{file.folder} lacks A or B of a layer, or they do not fit one another.",
            layers=listed(wrong),
            fix="copy the folder anew, or save the adapter again",
        )
    return {layer: Factors(pair["a"], pair["b"], layer in lookups) for layer, pair in pairs.items()}


def _check_places(
    layers: Mapping[str, Factors], architecture: Architecture, config: Any, base: str
) -> None:
    """Raises: MergeError that names the layers which llama.cpp cannot adapt."""
    tensors = {layer: architecture.tensor_of(layer) for layer in layers}
    weights = architecture.weights(config.num_hidden_layers, tied=False)
    matrices = {EMBEDDING: True, HEAD: False}  # of those outside blocks: whether it is a lookup
    unknown = [
        layer
        for layer, name in tensors.items()
        if name is None
        or f"{layer}.weight" not in weights
        or name.endswith("norm")
        or layers[layer].lookup != matrices.get(name, False)
        or (not name.startswith("blk.") and name not in matrices)
    ]
    if unknown:
        raise MergeError(
            f"llama.cpp has no place for an adapter on these layers of {base}.",
            layers=listed(unknown),
            fix=MERGE,
        )
    tied = [layer for layer, name in tensors.items() if name in matrices]
    if tied and config.tie_word_embeddings:
        raise MergeError(
            f"the adapter changes {listed(tied)}, and {base} uses one matrix as embedding and "
            "head: llama.cpp would apply the adapter to both.",
            fix=MERGE,
        )


def _check_shapes(layers: Mapping[str, Factors], architecture: Architecture, base: str) -> None:
    """Raises: BaseError if the adapter is of a base with other sizes."""
    stored = stored_tensors(base, architecture)
    for layer, factors in layers.items():
        own = stored.get(f"{layer}.weight")
        sizes = (len(factors.b), factors.a.shape[1])
        if own is not None and own.shape != (sizes[::-1] if factors.lookup else sizes):
            raise BaseError(
                f"the adapter is of another base than {base}: {layer} differs.",
                adapter=f"{sizes[0]} x {sizes[1]}",
                base=" x ".join(map(str, own.shape)),
                fix="name the base that it was trained on",
            )


def _scales(file: AdapterFile, layers: Mapping[str, Factors]) -> dict[str, float]:
    """By layer, the factor of b a: alpha / r, or alpha / sqrt(r), by its patterns."""
    assert file.layout is not None, "_check_plain() comes first"
    # Of the tensors in the file: the manifest's may be of other ranks (a start taken out again).
    spec = file.layout.spec(file.config, file.tensors, str(file.folder))
    method, alphas = spec.method, spec.targets.alpha_pattern
    assert isinstance(method, Lora)
    for pattern in alphas:
        check_pattern("alpha_pattern", pattern, list(layers))
    scales = {}
    for layer, factors in layers.items():
        own = first(alphas, layer)
        alpha = method.numerator if own is None else own
        scales[layer] = alpha / method.divisor(len(factors.a))
    return scales


def _planned(
    layer: str, factors: Factors, scale: float, architecture: Architecture, config: Any
) -> Iterator[PlannedTensor]:
    """The two tensors of a layer, as llama.cpp reads them."""
    name = f"{architecture.tensor_of(layer)}.weight"
    a = factors.a.T if factors.lookup else factors.a
    heads = architecture.heads_of(layer, config)
    b = factors.b * scale
    b = b if heads is None else interleaved(b, heads)
    for ending, tensor in (("a", a), ("b", b)):
        yield PlannedTensor(
            f"{name}.lora_{ending}", tuple(tensor.shape), "f32", partial(_same, tensor)
        )


def _same(tensor: Tensor) -> Tensor:
    return tensor
