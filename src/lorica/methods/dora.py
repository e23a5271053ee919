"""DoRA: y = m * (W + s B A) x / ||W + s B A||, with the norm of each output row and a trained m.

Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", 2024, arXiv:2402.09353, section 4. m
starts as the norms of the rows of W, so that the adapted model starts as the base. The norm is a
constant in the backward pass (section 4.3) unless detach_norm is false: then the gradient of
V = W + s B A loses its component along V, and that of m is the same. The bias is not scaled.
Dropout acts on the input of A only. The reference code also drops the input of W in the term
(m/n - 1) W x, which costs a second product with W and has the same mean.

    I  in_features   O  out_features   R  r   n  the norms, (O,)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lorica.core.adapter import BaseLayer, Rates
from lorica.core.bounds import setting_error
from lorica.core.row_form import RowForm
from lorica.core.site import Site
from lorica.core.tensor_cache import TensorCache
from lorica.methods.lora import Lora, LoraAdapter
from lorica.methods.lora.experts import ExpertDora

TINY = 1e-12  # smallest norm: a row of zeros has no direction, and its output stays 0


@dataclass(frozen=True, kw_only=True)
class Dora(Lora, name="dora"):
    paper: ClassVar[str] = "Liu et al. 2024, arXiv:2402.09353"
    count: ClassVar[str] = "r * (I + O) + O"
    rates: ClassVar[Rates] = (0.007, 0.0002, 1.0)
    rate_source: ClassVar[str] = "Liu et al. 2024, the authors' scripts for LLaMA-7B"
    to_lora: ClassVar[Literal["exact", "approximate", "never"]] = "approximate"
    detach_norm: bool = True
    """Treat the norm as a constant in the backward pass, as in the paper; false: differentiate
    it."""

    def __post_init__(self):
        super().__post_init__()
        if self.lora_bias:
            raise setting_error(self, "lora_bias", "false: dora has no bias", fix="use lora")
        if self.initialization.requantises:
            raise setting_error(
                self, "init", "one round of loftq", fix="use init=loftq, or method lora"
            )

    def build(self, site: Site, shared: Any) -> "DoraAdapter | ExpertDora":  # type: ignore[override]
        if site.kind == "expert":
            return ExpertDora(site, self, detach_norm=self.detach_norm)
        return DoraAdapter(site, self)


class DoraAdapter(LoraAdapter):
    square: Tensor
    base_bias: Tensor | None

    def __init__(self, site: Site, method: Dora):
        super().__init__(site, method)
        weight, bias = site.dense()
        self.register_buffer("square", weight.square().sum(1), persistent=False)  # (O,)
        self.register_buffer("base_bias", bias, persistent=False)
        self.detached = method.detach_norm
        self.kept: TensorCache[Tensor] = TensorCache()
        start = self.square.sqrt()
        if not method.initialization.starts_as_base:
            # The norms of the initial weight, which is not W.
            start = LoraAdapter.merged(self, weight, None)[0].detach().norm(dim=1)
        self.m = nn.Parameter(start)

    def after(self, x: Tensor, y: Tensor, base: BaseLayer) -> Tensor:
        return self.rescaled(super().after(x, y, base), base)

    @classmethod
    def apply_many(
        cls,
        adapters: Sequence[Any],
        sizes: Sequence[int],
        x: Tensor,
        y: Tensor,
        base: BaseLayer,
    ) -> Tensor | None:
        if cls.after is not DoraAdapter.after:  # that of a subclass
            return None
        adapted = cls.add_low_rank(adapters, sizes, x, y)
        if adapted is None:
            return None
        parts = zip(adapters, adapted.split(list(sizes), dim=1), strict=True)
        return torch.cat([adapter.rescaled(part, base) for adapter, part in parts], dim=1)

    def rescaled(self, adapted: Tensor, base: BaseLayer) -> Tensor:
        """V x with the row norms m. adapted: V x plus the bias, which is not scaled."""
        size = (self.m / self.norm(adapted.dtype, base)).to(adapted.dtype)
        if self.base_bias is None:
            return adapted * size
        return torch.addcmul(self.base_bias.to(adapted.dtype) * (1 - size), adapted, size)

    def norm(self, dtype: torch.dtype, base: BaseLayer) -> Tensor:
        """Row norms of V = W + s B A, (O,), without W itself: from the base's outputs for R rows.

        ||w + s bA||^2 = ||w||^2 + 2 s <w, bA> + s^2 ||bA||^2, and <w, a> = base(a).
        """
        return self.kept((self.a, self.b), dtype, lambda: self.norm_now(dtype, base))

    def norm_now(self, dtype: torch.dtype, base: BaseLayer) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detached):
            a, b = self.pair()
            cross = self.rows(a, dtype, base)  # (R, O)
            square = self.square + 2 * self.scale * (cross.T * b).sum(1)
            square = square + self.scale**2 * ((b @ (a @ a.T)) * b).sum(1)
            return square.clamp_min(TINY**2).sqrt()

    def rows(self, a: Tensor, dtype: torch.dtype, base: BaseLayer) -> Tensor:
        """a W^T, the base's outputs for the rows of `a`: (R, O) float32."""
        if self.lookup:
            ids = torch.arange(a.shape[1], device=a.device)
            return a @ base(ids).to(a.dtype) / self.gain
        out = base(a.to(dtype)).to(a.dtype)
        return out if self.base_bias is None else out - self.base_bias

    def factors(self) -> None:
        return None  # the update depends on W and has full rank

    def row_form(self, base: BaseLayer, dtype: torch.dtype) -> RowForm:
        a, b = self.pair()
        size = self.m / self.norm(dtype, base)
        shift = None if self.base_bias is None else self.base_bias * (1 - size)
        return RowForm(a, self.scale * b, size, shift)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        adapted, _ = super().merged(weight, None)
        norm = adapted.norm(dim=1).clamp_min(TINY)
        return adapted * (self.m / norm).unsqueeze(1), bias
