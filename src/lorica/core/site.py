"""Sites: the layers of a model that a method may act on, seen through their action only.

    kind        what it is                                          I             O
    linear      any layer that declares in_features, out_features   in_features   out_features
                and transformers' Conv1D, whose weight lies (I, O)
    embedding   any layer that declares num_embeddings              tokens        features
    expert      a parameter (E, O, I) or (E, I, O) of a module      I             O
                of E experts, as transformers fuses them
    other       any other layer that owns parameters (norms)        0             0
    attention   what calls the attention function (self_attn)       0             0
    decoder     the model without its head                          0             0

This is the one file of core that asks the modules of other libraries what they are.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lorica.errors import MergeError

Kind = Literal["linear", "embedding", "expert", "other", "attention", "decoder"]
ADAPTERS = "adapters"
HEADS = ("lm_head", "score", "classifier", "qa_outputs")


class PackedLayer(nn.Module):
    """A linear layer of ours that keeps its weight in a few bits; implemented in lorica.base.

    original_weight: reads the weight that was packed, (O, I); None: it is not known.
    """

    original_weight: Callable[[], Tensor] | None = None

    def unpacked(self) -> tuple[Tensor, Tensor | None]:
        """float32 (weight (O, I), bias (O,) or None)."""
        raise NotImplementedError

    def requantised(self, weight: Tensor) -> "PackedLayer":
        """Another weight (O, I), packed as this one is."""
        raise NotImplementedError


@dataclass(frozen=True)
class Site:
    """One layer, dense or packed: a module that maps (..., I) to (..., O), or ids to (..., O).

    The site of an expert is one parameter of its module, and has its whole name.
    """

    name: str
    module: nn.Module
    kind: Kind
    in_features: int
    out_features: int
    transposed: bool = False
    """The weight is (I, O) instead of (O, I): Conv1D, and every embedding."""
    is_head: bool = False
    """The layer is the output head."""
    parameter: str = "weight"
    """The parameter of the module that is the weight."""
    experts: int = 0
    """E of an expert's site: the weight is a stack of E matrices."""

    @property
    def weight(self) -> nn.Parameter | None:
        return self.module._parameters.get(self.parameter)

    @property
    def like(self) -> Tensor:
        """A float tensor with the layer's device and compute dtype."""
        deep = self.kind in ("attention", "decoder")  # they own nothing themselves
        own = [*self.module.parameters(recurse=deep), *self.module.buffers(recurse=deep)]
        floats = [t for t in own if t.is_floating_point() and t.dtype.itemsize > 1]
        if floats:
            return floats[0]
        dtype = getattr(self.module, "compute_dtype", None)  # of bitsandbytes' 4-bit layers
        return torch.empty(0, dtype=dtype, device=own[0].device if own else None)

    @property
    def is_dense(self) -> bool:
        """Whether the layer keeps its weight as one plain float tensor of the declared shape."""
        weight, shape = self.weight, (self.out_features, self.in_features)
        stack = (self.experts,) if self.experts else ()
        return (
            type(weight) is nn.Parameter
            and weight.is_floating_point()
            and weight.shape == (*stack, *(shape[::-1] if self.transposed else shape))
        )

    @property
    def has_bias(self) -> bool:
        return getattr(self.module, "bias", None) is not None

    @property
    def gain(self) -> float:
        """The factor of an embedding's rows: not 1 in Gemma and BART."""
        return float(getattr(self.module, "embed_scale", 1)) if self.kind == "embedding" else 1.0

    @property
    def padding_idx(self) -> int | None:
        """The token whose embedding is never updated, as torch.nn.Embedding declares it."""
        return getattr(self.module, "padding_idx", None) if self.kind == "embedding" else None

    @torch.no_grad()
    def dense(self) -> tuple[Tensor, Tensor | None]:
        """The layer as float32 (weight (O, I), bias (O,) or None); of experts weight (E, O, I).

        The weight of a packed layer is its action on the identity, so every quantisation format
        works. A `PackedLayer` unpacks its weight itself, which is faster, and loses no bits beside
        a large bias.
        """
        if self.is_dense:
            weight = self.weight
            bias = None if self.experts else self.module._parameters.get("bias")
            assert weight is not None
            weight = weight.detach().mT if self.transposed else weight.detach()
            return weight.float(), None if bias is None else bias.detach().float()
        if self.kind != "linear":
            raise MergeError(f"{self.name} keeps no plain weight, and is no linear layer.")
        if isinstance(self.module, PackedLayer):
            return self.module.unpacked()
        weight, shift = action(self.module.forward, self.in_features, self.like)
        return weight, shift if shift.any() else None

    @torch.no_grad()
    def original(self) -> Tensor | None:
        """The weight that a quantised layer was made from, float32 (O, I); None: not known."""
        read = self.module.original_weight if isinstance(self.module, PackedLayer) else None
        return None if read is None else read().to(self.like.device, torch.float32)

    @torch.no_grad()
    def requantised(self, weight: Tensor) -> Tensor:
        """`weight` (O, I) after it was packed as this layer's is, and unpacked, float32."""
        assert isinstance(self.module, PackedLayer)
        return self.module.requantised(weight).unpacked()[0]

    @torch.no_grad()
    def write(self, weight: Tensor, bias: Tensor | None) -> None:
        """Put float32 `weight` and `bias`, as of `dense`, into the dense layer, in its own layout.
        In place.

        The tensors are new parameters: what was tied to the old ones keeps its values.
        """
        like = self.like
        own = weight.mT.contiguous() if self.transposed else weight
        self.module._parameters[self.parameter] = nn.Parameter(own.to(like), requires_grad=False)
        if bias is not None:
            self.module._parameters["bias"] = nn.Parameter(bias.to(like), requires_grad=False)


def action(
    layer: Callable[[Tensor], Tensor], n: int, like: Tensor, chunk: int = 1024
) -> tuple[Tensor, Tensor]:
    """An affine layer of n inputs as float32 (weight (O, n), shift (O,)).

    Its values at the basis vectors and at zero determine it. `chunk` basis vectors are
    tried at a time: chunk * n * 4 bytes are held, not n * n * 4.
    """
    shift = layer(like.new_zeros(1, n)).float().squeeze(0)
    rows = []
    for start in range(0, n, chunk):
        basis = like.new_zeros(min(chunk, n - start), n)
        basis[:, start : start + chunk].fill_diagonal_(1)
        rows.append(layer(basis).float() - shift)
    return torch.cat(rows).T.contiguous(), shift


def site_of(name: str, module: nn.Module) -> Site | None:
    """`module` as a layer with tensors; None if it has nothing of its own to adapt."""
    weight = module._parameters.get("weight")
    shape = weight.shape if weight is not None and weight.ndim == 2 else None
    match module:
        case nn.Module(in_features=inputs, out_features=outputs):
            return Site(name, module, "linear", int(inputs), int(outputs))  # type: ignore[arg-type]
        case nn.Module(nf=_, nx=_) if shape is not None:
            return Site(name, module, "linear", *shape, transposed=True)
        case nn.Module(num_embeddings=_) if shape is not None:
            return Site(name, module, "embedding", *shape, transposed=True)
    if any(p is not None for p in module._parameters.values()):
        return Site(name, module, "other", 0, 0)
    return None


def expert_sites(name: str, module: nn.Module) -> list[Site]:
    """The stacked matrices of a module that declares its experts as transformers does.

    Its attributes num_experts and is_transposed say how the parameters lie.
    """
    match module:
        case nn.Module(num_experts=int(count), is_transposed=bool(transposed)):
            stacks = {
                key: parameter.shape[:0:-1] if not transposed else parameter.shape[1:]
                for key, parameter in module._parameters.items()
                if parameter is not None
                and parameter.ndim == 3
                and len(parameter) == count
                and parameter.is_floating_point()
            }
            return [
                Site(f"{name}.{key}", module, "expert", *size, transposed, False, key, count)
                for key, size in stacks.items()
            ]
    return []


def sites_of(model: nn.Module, kinds: tuple[str, ...] = ("linear",)) -> list[Site]:
    """Every site of the base of one of `kinds`, in model order, without those of adapters."""
    head, decoder = output_head(model), decoder_of(model)
    sites: list[Site] = []
    for name, module in model.named_modules():
        if ADAPTERS in name.split("."):
            continue
        if "expert" in kinds:
            sites += expert_sites(name, module)
        if "decoder" in kinds and module is decoder and name:
            sites.append(Site(name, module, "decoder", 0, 0))
        elif "attention" in kinds and _is_attention(module):
            sites.append(Site(name, module, "attention", 0, 0))
        elif (site := site_of(name, module)) is not None and site.kind in kinds:
            sites.append(replace(site, is_head=module is head))
    return sites


def _is_attention(module: nn.Module) -> bool:
    match module:
        case nn.Module(is_causal=_, layer_idx=_):
            return True
    return False


# -- questions to the model as a whole ---------------------------------------------------------


def _call(model: object, name: str) -> Any:
    """What the method `name` of a foreign object returns; None if it has none."""
    method = getattr(model, name, None)
    return method() if callable(method) else None


def config_of(model: nn.Module) -> Any:
    """The configuration of a transformers model; None: it has none."""
    return getattr(model, "config", None)


def hidden_size_of(model: nn.Module) -> int | None:
    """The width in the configuration of a transformers model; None: there is none."""
    config = config_of(model)
    return getattr(_call(config, "get_text_config") or config, "hidden_size", None)


def decoder_of(model: nn.Module) -> nn.Module | None:
    """The part of a model that turns token ids into hidden states, if the model declares it."""
    decoder = _call(model, "get_decoder")
    is_head = decoder is _call(model, "get_output_embeddings")  # ModernBERT calls its head decoder
    if isinstance(decoder, nn.Module) and not is_head:
        return decoder
    return getattr(model, "base_model", None)


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """The blocks of a decoder, by name: the items of its outermost lists of modules."""
    blocks: dict[str, nn.Module] = {}
    for name, module in (decoder_of(model) or model).named_modules():
        is_inside = any(name.startswith(f"{block}.") for block in blocks)
        if isinstance(module, nn.ModuleList) and ADAPTERS not in name and not is_inside:
            own = {f"{name}.{key}": item for key, item in module.named_children()}
            blocks |= {key: m for key, m in own.items() if any(True for _ in m.parameters())}
    return blocks


def output_head(model: nn.Module) -> nn.Module | None:
    """The layer that turns features into logits or classes, if the model declares it."""
    head = _call(model, "get_output_embeddings")
    if isinstance(head, nn.Module):
        return head
    children = dict(model.named_children())
    return next((children[leaf] for leaf in HEADS if leaf in children), None)


def input_embedding(model: nn.Module) -> nn.Module | None:
    """The layer that turns token ids into features, if the model declares it."""
    return _call(model, "get_input_embeddings")


def tied(model: nn.Module) -> list[list[tuple[str, str]]]:
    """Groups of (module name, parameter name) that are one and the same tensor."""
    groups: dict[int, list[tuple[str, str]]] = {}
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None and ADAPTERS not in name.split("."):
                groups.setdefault(id(parameter), []).append((name, key))
    return [members for members in groups.values() if len(members) > 1]
