"""Double LoRA: y = W x + s1 B1 A1 x + s2 B2 A2 x, two LoRA pairs in parallel.

No paper defines it. It is not more expressive than LoRA: s1 B1 A1 + s2 B2 A2 is the product of
[s1 B1 | s2 B2] and [A1; A2], which is one LoRA of rank r = r1 + r2. With the default settings the
two train alike, element by element (a test holds that). The settings below make a difference: the
scale and the learning rate of the second pair, the step at which it joins, and a penalty
w ||A1 A2^T||^2, summed over the layers, that keeps the pairs apart. s1 is the scale of the equal
LoRA; two pairs of rank r / 2, each with an alpha of its own, would double it silently. Both pairs
see the same dropped input. For an embedding, A is looked up by token id.

    B  batch   T  tokens   I  in_features   O  out_features   R  r1 + r2
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorica.core.adapter import Adapter, BaseLayer
from lorica.core.bounds import Bounds, setting_error
from lorica.core.schedule import Schedule
from lorica.core.site import Kind, Site
from lorica.errors import ConfigError
from lorica.kernels.low_rank import low_rank
from lorica.methods.lora import Lora

STARTS = ("kaiming", "gaussian")


@dataclass(frozen=True, kw_only=True)
class DoubleLora(Lora, name="double_lora"):
    kinds: ClassVar[tuple[str, ...]] = ("linear", "embedding")
    paper: ClassVar[str] = ""
    count: ClassVar[str] = "r * (I + O)"
    rate_source: ClassVar[str] = "as lora"
    second_r: Annotated[int, Bounds(ge=1)] | None = None
    """Rank r2 of the second pair. r = r1 + r2, so that it is below r. None: half of r, rounded
    down."""
    second_scale_ratio: Annotated[float, Bounds(gt=0)] = 1.0
    """Scale of the second pair, divided by that of the first."""
    second_lr_ratio: Annotated[float, Bounds(gt=0)] = 1.0
    """Learning rate of the second pair, divided by that of the first."""
    second_after: Annotated[int, Bounds(ge=0)] = 0
    """Optimizer steps before the second pair joins; until then it neither acts nor trains."""
    orthogonality: Annotated[float, Bounds(ge=0)] = 0.0
    """Weight w of the penalty w ||A1 A2^T||^2 in the loss; 0: no penalty."""

    def __post_init__(self):
        super().__post_init__()
        if self.init not in STARTS:
            raise setting_error(self, "init", " or ".join(STARTS))
        if self.lora_bias:
            raise setting_error(self, "lora_bias", "false: each pair would have a bias of its own")
        if self.r < 2:
            raise setting_error(self, "r", "at least 2, one for each pair")
        if self.second_r is not None and self.second_r >= self.r:
            raise setting_error(self, "second_r", f"less than r, {self.r}")

    @property
    def ranks(self) -> tuple[int, int]:
        """r1 and r2."""
        second = self.second_r or self.r // 2
        return self.r - second, second

    def build(self, site: Site, shared: Any) -> "DoubleLoraAdapter":  # type: ignore[override]
        return DoubleLoraAdapter(site, self)

    def learning_rate(self, parameter: str, base: float, kind: Kind = "linear") -> float:
        rate = super().learning_rate(parameter[0], base, kind)
        return rate * self.second_lr_ratio if parameter.endswith("2") else rate

    def schedule(self, adapters: Mapping[str, Any], total: int, epoch: int) -> Schedule | None:
        if not self.second_after and not self.orthogonality:
            return None
        if self.second_after >= total:
            raise ConfigError(
                f"double_lora.second_after is {self.second_after}, and the run has {total} steps: "
                "the second pair would never join.",
                fix=f"set it to at most {max(total - 1, 0)}",
            )
        return Pairs(adapters, self)


class DoubleLoraAdapter(Adapter):
    on: Tensor | None

    def __init__(self, site: Site, method: DoubleLora):
        super().__init__()
        self.p, self.lookup, self.gain = method.dropout, site.kind == "embedding", site.gain
        self.scale, self.second_scale = method.scale, method.scale * method.second_scale_ratio
        first, second = (method.initialization.factors(site, r, method.scale) for r in method.ranks)
        self.a1, self.b1 = (nn.Parameter(t) for t in first)
        self.a2, self.b2 = (nn.Parameter(t) for t in second)
        # 0 until the second pair joins, so that its gradients are zero and do not affect clipping
        self.register_buffer("on", torch.zeros(()) if method.second_after else None)

    def after(self, x: Tensor, y: Tensor, base: BaseLayer) -> Tensor:
        a, b = self.factors()
        if self.lookup:
            h = F.embedding(x, a.T.to(y.dtype))  # (B, T, R)
            return torch.add(y, F.linear(h, b.to(y.dtype)), alpha=self.gain)  # (B, T, O)
        return low_rank(x, y, a, b, self.gain, self.p if self.training else 0.0)

    def factors(self) -> tuple[Tensor, Tensor]:
        b2 = self.b2 if self.on is None else self.on * self.b2
        b = torch.cat([self.scale * self.b1, self.second_scale * b2], dim=1)
        return torch.cat([self.a1, self.a2]), b

    def overlap(self) -> Tensor:
        """||A1 A2^T||^2, which is zero if the pairs read orthogonal directions of x."""
        return (self.a1 @ self.a2.T).square().sum()


class Pairs(Schedule):
    """Lets the second pair join, and adds the penalty that keeps the pairs apart."""

    def __init__(self, adapters: Mapping[str, Any], method: DoubleLora):
        self.adapters, self.after, self.method = adapters, method.second_after, method

    def penalty(self, t: int) -> Tensor | None:
        weight = self.method.orthogonality
        if not weight or t <= self.after:
            return None
        total = sum(adapter.overlap() for adapter in self.adapters.values())
        return torch.as_tensor(weight * total)

    def before_step(self, t: int) -> None:
        if t <= self.after:
            for adapter in self.adapters.values():
                adapter.a2.grad = adapter.b2.grad = None  # no optimizer state and no decay

    def after_step(self, t: int) -> None:
        if t == self.after:
            for adapter in self.adapters.values():
                adapter.on.fill_(1)

    def ranks(self) -> dict[str, int]:
        """The rank of both pairs, or of the first until the second joins."""
        ranks = {}
        for site, adapter in self.adapters.items():
            joined = adapter.on is None or bool(adapter.on)
            ranks[site] = len(adapter.a1) + (len(adapter.a2) if joined else 0)
        return ranks
