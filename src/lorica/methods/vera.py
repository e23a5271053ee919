"""VeRA: y = W x + v * (B (d * (A x))), with trained d and v, and random A and B for all sites.

Kopiczko et al., "VeRA: Vector-based Random Matrix Adaptation", 2023, arXiv:2310.11454. A and B are
frozen. They are drawn once per adapter, in the size of the largest layer, as U(-sqrt(6/I),
sqrt(6/I)) and U(-sqrt(6/R), sqrt(6/R)), the bounds of PEFT's code. A site with I inputs and O
outputs uses the first I columns of A and the first O rows of B; a site with a smaller r of its own
uses the first r rows of A. d starts as d_initial and v as zero, so that the adapted model starts
as the base. There is no scale. Its learning rate is about ten times that of LoRA. The paper's
result tables are unverified here.

In the adapter file A and B are stored once, under the first site, as projections.a and
projections.b: PEFT's base_model.vera_A and base_model.vera_B, whole. With save_projection false
they are drawn again from the adapter's seed, as PEFT draws them from its projection_prng_key.
Another processor may draw them with another rounding, and another version of torch may draw other
values.

    B  batch   T  tokens   I  in_features   O  out_features   R  r
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorica.core.adapter import Adapter, BaseLayer, Method, Rates
from lorica.core.bounds import Bounds, setting_error
from lorica.core.site import Site
from lorica.errors import ConfigError
from lorica.kernels.dropout import dropout


@dataclass(frozen=True, kw_only=True)
class Vera(Method, name="vera"):
    kinds: ClassVar[tuple[str, ...]] = ("linear",)
    paper: ClassVar[str] = "Kopiczko et al. 2023, arXiv:2310.11454"
    count: ClassVar[str] = "r + O"
    rates: ClassVar[Rates] = (0.07, 0.002, 10.0)
    rate_source: ClassVar[str] = "Kopiczko et al. 2023: ten times that of LoRA"
    r: Annotated[int, Bounds(ge=1)] = 256
    """Rank. Parameters per layer: r + O, so that r is usually much larger than in LoRA."""
    d_initial: float = 0.1
    """Initial value of every element of d; not 0, or nothing would learn."""
    dropout: Annotated[float, Bounds(ge=0, lt=1)] = 0.0
    """Probability of dropping an input coordinate of A, in [0, 1)."""
    save_projection: bool = True
    """Store A and B in the adapter file; false: draw them again from the seed when it is loaded."""

    def __post_init__(self):
        super().__post_init__()
        if self.d_initial == 0:
            raise setting_error(self, "d_initial", "a number other than 0", fix="try 0.1")

    def share(self, sites: list[Site]) -> "Projections":
        return Projections(
            self.r,
            max(s.in_features for s in sites),
            max(s.out_features for s in sites),
            saved=self.save_projection,
        )

    def build(self, site: Site, shared: Any) -> "VeraAdapter":
        return VeraAdapter(site, self, shared)


class Projections(nn.Module):
    """A (R, largest I) and B (largest O, R), shared by all adapters as one child module.

    It is a module, and not a tensor, so that it stays shared when the model is moved or cast.
    """

    a: Tensor
    b: Tensor

    def __init__(self, r: int, inputs: int, outputs: int, *, saved: bool):
        super().__init__()
        for name, shape, fan_in in (("a", (r, inputs), inputs), ("b", (outputs, r), r)):
            bound = math.sqrt(6 / fan_in)
            drawn = torch.empty(shape).uniform_(-bound, bound)
            self.register_buffer(name, drawn, persistent=saved)


class VeraAdapter(Adapter):
    def __init__(self, site: Site, method: Vera, projections: Projections):
        super().__init__()
        shared_r = len(projections.a)
        if method.r > shared_r:
            raise ConfigError(
                f"{site.name} has r={method.r}, and the shared projections have r={shared_r}.",
                fix="set vera.r to the largest r; rank_pattern can only lower it",
            )
        self.projections, self.p = projections, method.dropout
        self.inputs, self.outputs = site.in_features, site.out_features
        self.d = nn.Parameter(torch.full((method.r,), float(method.d_initial)))
        self.v = nn.Parameter(torch.zeros(site.out_features))

    def after(self, x: Tensor, y: Tensor, base: BaseLayer) -> Tensor:
        a, b = self.sliced()
        h = F.linear(dropout(x, self.p, self.training), a.to(y)) * self.d.to(y.dtype)  # (B, T, R)
        return y + F.linear(h, b.to(y)) * self.v.to(y.dtype)  # (B, T, O)

    def sliced(self) -> tuple[Tensor, Tensor]:
        """The part of the projections that this site uses: A (R, I), B (O, R)."""
        r, shared = len(self.d), self.projections
        return shared.a[:r, : self.inputs], shared.b[: self.outputs, :r]

    def factors(self) -> tuple[Tensor, Tensor]:
        a, b = self.sliced()
        return self.d.unsqueeze(1) * a.to(self.d), self.v.unsqueeze(1) * b.to(self.v)
