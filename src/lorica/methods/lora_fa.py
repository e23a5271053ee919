"""LoRA-FA: y = W x + s B A x with a frozen random A; only B is trained.

Zhang et al., "LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language Models Fine-tuning",
2023, arXiv:2308.03303. As A has no gradient, the backward pass keeps A x (R numbers a token)
and not x (I numbers). The first SGD step is LoRA's, whose A has no gradient there either.

`precondition` is in version 2 of the paper (2026), which derives it, and in PEFT's LoRA-FA
optimizer, after whose code ours is written: the gradient of B is multiplied by
(A A^T + delta)^-1 / s^2 before the optimizer sees it, which makes the step in s B A the nearest
one to the gradient of W. It acts on the clipped gradient. The paper's result tables are unverified
here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from lorica.core.adapter import Adapter, Rates
from lorica.core.bounds import Bounds
from lorica.core.schedule import Schedule
from lorica.core.site import Site
from lorica.methods.lora import Lora, LoraAdapter


@dataclass(frozen=True, kw_only=True)
class LoraFa(Lora, name="lora_fa"):
    kinds: ClassVar[tuple[str, ...]] = ("linear",)  # the A of an embedding is zero: nothing learns
    paper: ClassVar[str] = "Zhang et al. 2023, arXiv:2308.03303"
    count: ClassVar[str] = "r * O"
    rates: ClassVar[Rates] = (0.01, 0.0002, 1.0)
    rate_source: ClassVar[str] = "as lora"
    precondition: bool = False
    """Multiply the gradient of B by (A A^T + delta)^-1 / s^2. Needs a smaller learning rate."""
    delta: Annotated[float, Bounds(gt=0)] = 1e-8
    """What is added to the diagonal of A A^T, where precondition is on."""

    def build(self, site: Site, shared: Any) -> "LoraFaAdapter":
        return LoraFaAdapter(site, self)

    def schedule(self, adapters: Mapping[str, Adapter], total: int, epoch: int) -> Schedule | None:
        return Preconditioned(adapters, self.delta) if self.precondition else None


class LoraFaAdapter(LoraAdapter):
    def __init__(self, site: Site, method: LoraFa):
        super().__init__(site, method)
        a = self.a.detach()
        del self.a
        self.register_buffer("a", a)


class Preconditioned(Schedule):
    """The gradients of B, multiplied by (A A^T + delta)^-1 / s^2 of their site."""

    def __init__(self, adapters: Mapping[str, Adapter], delta: float):
        self.delta = delta
        self.sites = [a for a in adapters.values() if isinstance(a, LoraFaAdapter)]
        self.factors: list[Tensor] = []

    def before_step(self, t: int) -> None:
        if not self.factors:  # not before the run has its A: a resumed one takes it from a file
            self.factors = [factor(a.a, a.scale, self.delta) for a in self.sites]
        for adapter, one in zip(self.sites, self.factors, strict=True):
            if adapter.b.grad is not None:
                adapter.b.grad = adapter.b.grad @ one


@torch.no_grad()
def factor(a: Tensor, scale: float, delta: float) -> Tensor:
    """(A A^T + delta)^-1 / s^2, (R, R) float32; found in float64, as A may be close to singular."""
    gram = a.double() @ a.double().T
    gram.diagonal().add_(delta)
    return (torch.linalg.inv(gram) / scale**2).float()
