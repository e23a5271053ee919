"""VeRA: y = W x + v * (B (d * (A x))); d and v are trained, A and B random and shared by all sites.

Kopiczko et al., "VeRA: Vector-based Random Matrix Adaptation", 2023, arXiv:2310.11454. A and B are
frozen, drawn once per adapter in the size of the largest layer from the bounds of PEFT's code,
U(-sqrt(6/I), sqrt(6/I)) and U(-sqrt(6/R), sqrt(6/R)); a site of I inputs and O outputs reads the
first I columns of A and the first O rows of B, and the first r rows of A where it has its own r.
d begins at d_initial and v at zero; there is no scale. The learning rate is about ten times
LoRA's. The paper's result tables are unverified here.

On disk A and B stand once, under the first site, as projections.a and projections.b: they are
PEFT's base_model.vera_A and base_model.vera_B, whole. Without them (save_projection false) they
are drawn again from the adapter's seed, as PEFT draws them from its projection_prng_key; another
processor may draw them a rounding apart, and another version of torch may draw others.

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
    """Rows of A and columns of B. Parameters per layer: r + O; far more than LoRA's r is usual."""
    d_initial: float = 0.1
    """Where every number of d begins; not zero, or nothing would learn."""
    dropout: Annotated[float, Bounds(ge=0, lt=1)] = 0.0
    """Probability of dropping an input coordinate of A, in [0, 1)."""
    save_projection: bool = True
    """Write A and B into the file; false: draw them again from the seed, which is smaller."""

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
    """A (R, largest I) and B (largest O, R): one module, a child of every adapter.

    One module and not one tensor, so that moving or casting the model keeps it one.
    """

    a: Tensor
    b: Tensor

    def __init__(self, r: int, inputs: int, outputs: int, *, saved: bool):
        super().__init__()
        for name, shape, fan in (("a", (r, inputs), inputs), ("b", (outputs, r), r)):
            bound = math.sqrt(6 / fan)
            drawn = torch.empty(shape).uniform_(-bound, bound)
            self.register_buffer(name, drawn, persistent=saved)


class VeraAdapter(Adapter):
    def __init__(self, site: Site, method: Vera, projections: Projections):
        super().__init__()
        have = len(projections.a)
        if method.r > have:
            raise ConfigError(
                f"{site.name} asks for r={method.r}, and the shared projections have r={have}.",
                fix="make vera.r the largest; rank_pattern can only lower it",
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
        """What this site reads of the projections: A (R, I), B (O, R)."""
        r, shared = len(self.d), self.projections
        return shared.a[:r, : self.inputs], shared.b[: self.outputs, :r]

    def factors(self) -> tuple[Tensor, Tensor]:
        a, b = self.sliced()
        return self.d.unsqueeze(1) * a.to(self.d), self.v.unsqueeze(1) * b.to(self.v)
