"""Sites: the layers of a model that a method may act on, seen through their action only.

    kind        what it is                                          I             O
    linear      any layer that declares in_features, out_features   in_features   out_features
                and transformers' Conv1D, whose weight lies (I, O)
    embedding   any layer that declares num_embeddings              tokens        features
    other       any other layer that owns parameters (norms)        0             0
    attention   what calls the attention function (self_attn)       0             0
    decoder     the model without its head                          0             0

This is the one file that asks foreign modules what they are.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from lorica.errors import MergeError

Kind = Literal["linear", "embedding", "other", "attention", "decoder"]
ADAPTERS = "adapters"
HEADS = ("lm_head", "score", "classifier", "qa_outputs")


@dataclass(frozen=True)
class Site:
    """One layer, dense or packed: a module that maps (..., I) to (..., O), or ids to (..., O)."""

    name: str
    module: nn.Module
    kind: Kind
    in_features: int
    out_features: int
    transposed: bool = False
    """The weight lies (I, O) instead of (O, I): Conv1D, and every embedding."""
    is_head: bool = False
    """It is the output head."""

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
        """The layer keeps its weight as one plain float tensor of the declared shape."""
        weight = self.module._parameters.get("weight")
        shape = (self.out_features, self.in_features)
        return (
            type(weight) is nn.Parameter
            and weight.is_floating_point()
            and weight.shape == (shape[::-1] if self.transposed else shape)
        )

    @property
    def gain(self) -> float:
        """What an embedding multiplies its rows by: not 1 in Gemma and BART."""
        return float(getattr(self.module, "embed_scale", 1)) if self.kind == "embedding" else 1.0

    @property
    def padding_idx(self) -> int | None:
        """The token whose embedding is never updated, as torch.nn.Embedding declares it."""
        return getattr(self.module, "padding_idx", None) if self.kind == "embedding" else None

    @torch.no_grad()
    def dense(self) -> tuple[Tensor, Tensor | None]:
        """The layer as float32 (weight (O, I), bias (O,) or None).

        A packed layer is not unpacked: it is asked. Its weight is its action on the
        identity, so every quantisation format works, today's and tomorrow's. A layer that
        knows its weight says it: that is faster, and a large bias drowns no bits of it.
        """
        if self.is_dense:
            weight = self.module._parameters["weight"]
            bias = self.module._parameters.get("bias")
            assert weight is not None
            weight = weight.detach().T if self.transposed else weight.detach()
            return weight.float(), None if bias is None else bias.detach().float()
        if self.kind != "linear":
            raise MergeError(f"{self.name} keeps no plain weight, and is no linear layer.")
        if (unpacked := getattr(self.module, "unpacked", None)) is not None:
            return unpacked()
        weight, shift = action(self.module.forward, self.in_features, self.like)
        return weight, shift if shift.any() else None

    @torch.no_grad()
    def original(self) -> Tensor | None:
        """The weight that a quantised layer was made from, float32 (O, I); None: not known."""
        read = getattr(self.module, "original_weight", None)
        return None if read is None else read().to(self.like.device, torch.float32)

    @torch.no_grad()
    def requantised(self, weight: Tensor) -> Tensor:
        """What `weight` (O, I) becomes when it is packed as this quantised layer's is, float32."""
        return self.module.requantised(weight).unpacked()[0]  # type: ignore[operator]

    @torch.no_grad()
    def write(self, weight: Tensor, bias: Tensor | None) -> None:
        """Put (O, I) float32 `weight` and `bias` into the dense layer, in its own layout. In place.

        The tensors are new parameters: whatever was tied to the old ones keeps its values.
        """
        like = self.like
        laid = weight.T.contiguous() if self.transposed else weight
        self.module._parameters["weight"] = nn.Parameter(laid.to(like), requires_grad=False)
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


def hidden_size_of(model: nn.Module) -> int | None:
    """The width that a transformers model's configuration says; None: it says none."""
    config = getattr(model, "config", None)
    text = getattr(config, "get_text_config", None)
    return getattr(text() if callable(text) else config, "hidden_size", None)


def site_of(name: str, module: nn.Module) -> Site | None:
    """`module` as a layer with tensors; None when it has nothing of its own to adapt."""
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return Site(name, module, "linear", int(module.in_features), int(module.out_features))  # type: ignore[arg-type]
    weight = module._parameters.get("weight")
    if hasattr(module, "nf") and hasattr(module, "nx") and weight is not None and weight.ndim == 2:
        return Site(name, module, "linear", weight.shape[0], weight.shape[1], transposed=True)
    if hasattr(module, "num_embeddings") and weight is not None and weight.ndim == 2:
        return Site(name, module, "embedding", weight.shape[0], weight.shape[1], transposed=True)
    if any(p is not None for p in module._parameters.values()):
        return Site(name, module, "other", 0, 0)
    return None


def sites_of(model: nn.Module, kinds: tuple[str, ...] = ("linear",)) -> list[Site]:
    """Every site of the base of one of `kinds`, in model order. Adapters are no sites."""
    head, decoder = output_head(model), decoder_of(model)
    found: list[Site] = []
    for name, module in model.named_modules():
        if ADAPTERS in name.split("."):
            continue
        if "decoder" in kinds and module is decoder and name:
            found.append(Site(name, module, "decoder", 0, 0))
        elif "attention" in kinds and hasattr(module, "is_causal") and hasattr(module, "layer_idx"):
            found.append(Site(name, module, "attention", 0, 0))
        elif (site := site_of(name, module)) is not None and site.kind in kinds:
            found.append(replace(site, is_head=module is head))
    return found


def decoder_of(model: nn.Module) -> nn.Module | None:
    """The part of a model that turns token ids into hidden states, where it says which."""
    ask = getattr(model, "get_decoder", None)
    found = ask() if callable(ask) else None
    return found if isinstance(found, nn.Module) else getattr(model, "base_model", None)


def output_head(model: nn.Module) -> nn.Module | None:
    """The layer that turns features into logits or classes, if the model says which one it is."""
    ask = getattr(model, "get_output_embeddings", None)
    head = ask() if callable(ask) else None
    if isinstance(head, nn.Module):
        return head
    heads = (getattr(model, leaf, None) for leaf in HEADS)
    return next((h for h in heads if isinstance(h, nn.Module)), None)


def tied(model: nn.Module) -> list[list[tuple[str, str]]]:
    """Groups of (module name, parameter name) that are one and the same tensor."""
    groups: dict[int, list[tuple[str, str]]] = {}
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None and ADAPTERS not in name.split("."):
                groups.setdefault(id(parameter), []).append((name, key))
    return [members for members in groups.values() if len(members) > 1]
