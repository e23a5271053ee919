"""DoRA: y = m * (W + s B A) x / ||W + s B A||, the norm taken over each output row.

Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", 2024, arXiv:2402.09353; the norm n
is held constant in the backward pass (section 4.3). The bias is not scaled. Dropout acts on
the input of A alone; the reference code drops the input of W in the term (m/n - 1) W x as
well, which costs a second product with W and has the same mean.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lorica.core.adapter import Base
from lorica.core.site import Site
from lorica.errors import ConfigError
from lorica.methods.lora import Lora, LoraAdapter

TINY = 1e-12  # a row of zeros has no direction: its norm is taken as this, its output stays 0


@dataclass(frozen=True, kw_only=True)
class Dora(Lora, name="dora"):
    paper: ClassVar[str] = "Liu et al. 2024, arXiv:2402.09353"
    count: ClassVar[str] = "r * (I + O) + O"
    to_lora: ClassVar[Literal["exact", "approximate", "never"]] = "approximate"

    def __post_init__(self):
        super().__post_init__()
        if self.lora_bias:
            raise ConfigError("dora.lora_bias is not defined.", fix="leave it out, or use lora")

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
        self.m = nn.Parameter(self.square.sqrt())

    def after(self, x: Tensor, y: Tensor, base: Base) -> Tensor:
        offset = 0 if self.base_bias is None else self.base_bias.to(y.dtype)
        turned = super().after(x, y - offset, base)
        return turned * (self.m / self.norm(y.dtype, base)).to(y.dtype) + offset

    @torch.no_grad()
    def norm(self, dtype: torch.dtype, base: Base) -> Tensor:
        """Row norms of W + s B A, shape (O,), from R rows of the base instead of W itself.

        ||w + s bA||^2 = ||w||^2 + 2 s <w, bA> + s^2 ||bA||^2, and <w, a> = base(a).
        """
        cross = self.rows(dtype, base)  # (R, O)
        gram = self.a @ self.a.T  # (R, R)
        square = self.square + 2 * self.scale * (cross.T * self.b).sum(1)
        square = square + self.scale**2 * ((self.b @ gram) * self.b).sum(1)
        return square.clamp_min(TINY**2).sqrt()

    def rows(self, dtype: torch.dtype, base: Base) -> Tensor:
        """A W^T: what the base makes of the rows of A, (R, O) float32."""
        if self.lookup:
            ids = torch.arange(self.a.shape[1], device=self.a.device)
            return self.a @ base(ids).to(self.a.dtype) / self.gain
        out = base(self.a.to(dtype)).to(self.a.dtype)
        return out if self.base_bias is None else out - self.base_bias

    def factors(self) -> None:
        return None  # its update depends on W, and is of full rank

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        turned, _ = super().merged(weight, None)
        norm = turned.norm(dim=1).clamp_min(TINY)
        return turned * (self.m / norm).unsqueeze(1), bias
