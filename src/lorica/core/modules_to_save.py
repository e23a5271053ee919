"""Fully trained layers (modules_to_save) and embedding rows (trainable_token_indices), as in PEFT.

During a forward pass both replace a tensor of the layer; the base tensor is not changed. They can
be added to any method. Full fine-tuning uses only these.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lorica.core.adapter import Adapter
from lorica.core.site import Site, input_embedding, output_head, sites_of
from lorica.errors import TargetError


class ModuleCopy(Adapter):
    """A trainable float32 copy of every parameter of a layer, used in place of the originals."""

    def __init__(self, site: Site, own: dict[str, nn.Parameter]):
        super().__init__()
        self.transposed = site.transposed
        for key, parameter in own.items():
            self.register_parameter(key, parameter)

    def weights(self, layer: nn.Module) -> dict[str, Tensor]:
        own = {k: p for k, p in self._parameters.items() if p is not None}
        return {k: p.to(layer._parameters[k].dtype) for k, p in own.items()}  # type: ignore[union-attr]

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        own = self._parameters["weight"]
        assert own is not None
        return (own.detach().T if self.transposed else own.detach()), self._parameters.get("bias")


class ModuleCopies:
    """Builds `ModuleCopy` adapters. Tensors that are tied in the base have one common copy."""

    def __init__(self) -> None:
        self.copies: dict[int, nn.Parameter] = {}

    def build(self, site: Site) -> ModuleCopy:
        """Copy the parameters of a layer. Raises: TargetError if its weight is quantised."""
        own: dict[str, nn.Parameter] = {}
        if site.kind != "other" and not site.is_dense:
            raise TargetError(
                f"{site.name} ({type(site.module).__name__}) has no float weight: quantised "
                "layers cannot be trained in full.",
                fix="load the base without quantisation, or leave this layer out",
            )
        for key, parameter in site.module._parameters.items():
            if parameter is None:
                continue
            copy = nn.Parameter(parameter.detach().float().clone())
            own[key] = self.copies.setdefault(id(parameter), copy)
        return ModuleCopy(site, own)


class TrainableTokens(Adapter):
    """Trainable rows of the input embedding, and of the output head if the two are tied.

    rows: those of the adapter of the tied layer; None: a new copy of the base rows.
    Raises: TargetError if ids repeat or are outside the vocabulary.
    """

    ids: Tensor

    def __init__(self, site: Site, ids: Sequence[int], rows: nn.Parameter | None):
        super().__init__()
        weight = site.module._parameters["weight"]  # (tokens, features), in the head as well
        assert weight is not None
        if min(ids) < 0 or max(ids) >= len(weight) or len(set(ids)) < len(ids):
            raise TargetError(
                "trainable_token_indices must be distinct ids of the vocabulary.",
                vocabulary=f"0 to {len(weight) - 1}",
                given=f"{min(ids)} to {max(ids)}, {len(ids) - len(set(ids))} of them twice",
                fix="resize the embedding first if the tokens are new",
            )
        self.by_token = 1 if site.kind == "embedding" else 0  # the tokens' axis in (O, I)
        self.register_buffer("ids", torch.tensor(ids), persistent=False)
        start = weight.detach()[list(ids)].float()
        self.rows = nn.Parameter(start) if rows is None else rows

    def weights(self, layer: nn.Module) -> dict[str, Tensor]:
        table = layer._parameters["weight"]
        assert table is not None
        return {"weight": table.index_copy(0, self.ids, self.rows.to(table.dtype))}

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        rows = self.rows.detach().T if self.by_token else self.rows.detach()
        return weight.index_copy(self.by_token, self.ids, rows), bias


def token_sites(model: nn.Module) -> list[Site]:
    """The input embedding, and the output head if it is tied to the embedding.

    Raises: TargetError if the model does not report its input embedding.
    """
    module = input_embedding(model)
    sites = sites_of(model, ("embedding", "linear"))
    inputs = [s for s in sites if s.module is module and s.kind == "embedding"]
    if not inputs:
        raise TargetError(
            f"{type(model).__name__} has no input embedding in get_input_embeddings().",
            fix="leave trainable_token_indices out",
        )
    table, head = inputs[0].module._parameters["weight"], output_head(model)
    tied = [s for s in sites if s.module is head and s.module._parameters.get("weight") is table]
    return inputs + tied
