"""LoRA-FA: y = W x + s B A x with a frozen random A, so that only B is trained.

Zhang et al., "LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language Models
Fine-tuning", 2023, arXiv:2308.03303. As A needs no gradient, the backward pass stores A x (R floats
per token) in place of x (I floats). The first SGD step is that of LoRA, whose A has no gradient
there either.

With `precondition` the gradient of B is multiplied by (A A^T + delta)^-1 / s^2 before the optimizer
step, which makes the step in s B A the nearest one to the gradient of W. It acts on the clipped
gradient. Version 2 of the paper (2026) derives it; ours follows the code of PEFT's LoRA-FA
optimizer. The paper's result tables are unverified here.

    I  in_features   O  out_features   R  r
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from lorica.core.adapter import Rates
from lorica.core.bounds import Bounds
from lorica.core.schedule import Schedule
from lorica.core.site import Site
from lorica.methods.lora import Lora, LoraAdapter


@dataclass(frozen=True, kw_only=True)
class LoraFa(Lora, name="lora_fa"):
    kinds: ClassVar[tuple[str, ...]] = (
        "linear",
    )  # the A of an embedding starts at zero: nothing would learn
    paper: ClassVar[str] = "Zhang et al. 2023, arXiv:2308.03303"
    count: ClassVar[str] = "r * O"
    rates: ClassVar[Rates] = (0.01, 0.0002, 1.0)
    rate_source: ClassVar[str] = "as lora"
    precondition: bool = False
    """Multiply the gradient of B by (A A^T + delta)^-1 / s^2; needs a smaller learning rate."""
    delta: Annotated[float, Bounds(gt=0)] = 1e-8
    """Added to the diagonal of A A^T with `precondition`."""

    def build(self, site: Site, shared: Any) -> "LoraFaAdapter":
        return LoraFaAdapter(site, self)

    def schedule(self, adapters: Mapping[str, Any], total: int, epoch: int) -> Schedule | None:
        return Precondition(adapters, self.delta) if self.precondition else None


class LoraFaAdapter(LoraAdapter):
    def __init__(self, site: Site, method: LoraFa):
        super().__init__(site, method)
        a = self.a.detach()
        del self.a
        self.register_buffer("a", a)


class Precondition(Schedule):
    """Multiplies the gradient of each B by (A A^T + delta)^-1 / s^2."""

    def __init__(self, adapters: Mapping[str, LoraFaAdapter], delta: float):
        self.adapters, self.delta = list(adapters.values()), delta
        self.factors: list[Tensor] = []

    def before_step(self, t: int) -> None:
        if not self.factors:  # at the first step, since a resumed run loads its A from a file
            self.factors = [preconditioner(a.a, a.scale, self.delta) for a in self.adapters]
        for adapter, factor in zip(self.adapters, self.factors, strict=True):
            if adapter.b.grad is not None:
                adapter.b.grad = adapter.b.grad @ factor


@torch.no_grad()
def preconditioner(a: Tensor, scale: float, delta: float) -> Tensor:
    """(A A^T + delta)^-1 / s^2, (R, R) float32; inverted in float64, as A may be close to
    singular."""
    gram = a.double() @ a.double().T
    gram.diagonal().add_(delta)
    return (torch.linalg.inv(gram) / scale**2).float()
