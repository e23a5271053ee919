"""DoRA: y = m * (W + s B A) x / ||W + s B A||, the norm taken over each output row.

Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", 2024, arXiv:2402.09353; the norm n
is held constant in the backward pass (section 4.3), unless detach_norm is false: then the
gradient of V = W + s B A loses its part along V, and that of m is the same. The bias is not
scaled. Dropout acts on the input of A alone; the reference code drops the input of W in the
term (m/n - 1) W x as well, which costs a second product with W and has the same mean.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lorica.core.adapter import BaseLayer, Rates
from lorica.core.kept import Kept
from lorica.core.site import Site
from lorica.errors import ConfigError
from lorica.methods.lora import Lora, LoraAdapter

TINY = 1e-12  # a row of zeros has no direction: its norm is taken as this, its output stays 0


@dataclass(frozen=True, kw_only=True)
class Dora(Lora, name="dora"):
    paper: ClassVar[str] = "Liu et al. 2024, arXiv:2402.09353"
    count: ClassVar[str] = "r * (I + O) + O"
    rates: ClassVar[Rates] = (0.007, 0.0002, 1.0)
    rate_source: ClassVar[str] = "Liu et al. 2024, the authors' scripts for LLaMA-7B"
    to_lora: ClassVar[Literal["exact", "approximate", "never"]] = "approximate"
    detach_norm: bool = True
    """Hold the norm constant in the backward pass, as the paper does; false: differentiate it."""

    def __post_init__(self):
        super().__post_init__()
        if self.lora_bias:
            raise ConfigError("dora.lora_bias is not defined.", fix="leave it out, or use lora")
        if self.start.repacks:
            raise ConfigError("dora knows one round of loftq.", fix="use init=loftq, or lora")

    def build(self, site: Site, shared: Any) -> "DoraAdapter":
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
        self.kept: Kept[Tensor] = Kept()
        start = self.square.sqrt()
        if not method.start.starts_as_base:  # its first weight is not W, and keeps its own size
            start = LoraAdapter.merged(self, weight, None)[0].detach().norm(dim=1)
        self.m = nn.Parameter(start)

    def after(self, x: Tensor, y: Tensor, base: BaseLayer) -> Tensor:
        size = (self.m / self.norm(y.dtype, base)).to(y.dtype)
        turned = super().after(x, y, base)  # the bias is in it, and is not scaled
        if self.base_bias is None:
            return turned * size
        return torch.addcmul(self.base_bias.to(y.dtype) * (1 - size), turned, size)

    def norm(self, dtype: torch.dtype, base: BaseLayer) -> Tensor:
        """Row norms of V = W + s B A, shape (O,), from R rows of the base instead of W itself.

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
        """a W^T: what the base makes of the rows of `a`, (R, O) float32."""
        if self.lookup:
            ids = torch.arange(a.shape[1], device=a.device)
            return a @ base(ids).to(a.dtype) / self.gain
        out = base(a.to(dtype)).to(a.dtype)
        return out if self.base_bias is None else out - self.base_bias

    def factors(self) -> None:
        return None  # its update depends on W, and is of full rank

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        turned, _ = super().merged(weight, None)
        norm = turned.norm(dim=1).clamp_min(TINY)
        return turned * (self.m / norm).unsqueeze(1), bias
