"""LoRA on fused experts: W'_e = W_e + s B_e A_e for each expert e of a stack (E, O, I).

The factors are those of PEFT's target_parameters. The module of experts computes with the adapted
stack in place of its own, so that every implementation of transformers (eager, grouped_mm,
batched_mm) is right. The price is a copy of the adapted stacks of a layer in its forward pass,
and the dense gradient of the copy in its backward pass. Without activation checkpointing the
copies of all layers stay until the backward pass.

    E  experts   I  in_features   O  out_features   R  r
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lorica.core.adapter import Adapter
from lorica.core.initialization import Initialization
from lorica.core.site import Site
from lorica.errors import TargetError

TINY = 1e-12  # smallest norm: a row of zeros has no direction, and stays 0
UNDEFINED = ("dropout", "lora_bias")
"""Settings that an update of the weights cannot have."""


class LoraSettings(Protocol):
    @property
    def r(self) -> int: ...
    @property
    def scale(self) -> float: ...
    @property
    def numerator(self) -> float: ...
    @property
    def initialization(self) -> Initialization: ...


class ExpertLora(Adapter):
    """a: (E, R, I), b: (E, O, R), float32. numerator: alpha.

    Raises: TargetError for a setting that is not defined on experts.
    """

    def __init__(self, site: Site, method: LoraSettings):
        super().__init__()
        if wrong := [key for key in UNDEFINED if getattr(method, key)]:
            raise TargetError(
                f"{site.name} is a weight of experts, for which {wrong[0]} is not defined.",
                fix=f"leave {wrong[0]} out, or leave the experts out of target_parameters",
            )
        self.parameter, self.transposed = site.parameter, site.transposed
        self.r, self.numerator, self.scale = method.r, method.numerator, method.scale
        factors = method.initialization.factors(site, self.r, self.scale)
        self.a, self.b = map(nn.Parameter, factors)

    def weights(self, layer: nn.Module) -> dict[str, Tensor]:
        own: Any = layer._parameters[self.parameter]  # what an adapter before this one put here
        stack = own.mT if self.transposed else own
        adapted = self.adapted(stack)
        return {self.parameter: adapted.mT if self.transposed else adapted}

    def adapted(self, stack: Tensor) -> Tensor:
        """The adapted stack in the dtype of `stack`, (E, O, I)."""
        a, b = self.a.to(stack.dtype), self.b.to(stack.dtype)
        if self.transposed:  # the result lies in memory as the parameter does
            return torch.baddbmm(stack.mT, a.mT, b.mT, alpha=self.scale).mT
        return torch.baddbmm(stack, b, a, alpha=self.scale)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.adapted(weight), bias


class ExpertDora(ExpertLora):
    """DoRA of each expert: the rows of its adapted matrix have the trained norms m (E, O)."""

    def __init__(self, site: Site, method: LoraSettings, *, detach_norm: bool):
        super().__init__(site, method)
        self.detached = detach_norm
        with torch.no_grad():
            self.m = nn.Parameter(super().adapted(site.dense()[0]).norm(dim=-1))

    def adapted(self, stack: Tensor) -> Tensor:
        stack = super().adapted(stack)
        norm = torch.linalg.vector_norm(
            stack.detach() if self.detached else stack, dim=-1, dtype=torch.float32
        )
        return stack * (self.m / norm.clamp_min(TINY)).to(stack.dtype).unsqueeze(-1)
