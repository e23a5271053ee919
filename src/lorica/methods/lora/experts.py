"""LoRA on fused experts: W'_e = W_e + s B_e A_e for each expert e of a stack (E, O, I).

The factors are those of PEFT's target_parameters. Where the module declares what it computes, the
update is never added to the weights (lorica.kernels.experts). Elsewhere (several adapters at once,
experts that are spread over devices) the module computes with an adapted copy of its stacks, which
is right for every implementation, and costs a copy of them and the dense gradient of the copy.

    E  experts   I  in_features   O  out_features   R  r
"""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lorica.core.adapter import Adapter
from lorica.core.initialization import Initialization
from lorica.core.site import Site
from lorica.core.tensor_cache import TensorCache
from lorica.errors import TargetError
from lorica.kernels.experts import ExpertUpdate, experts_forward, is_supported

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

    @classmethod
    def run_experts(
        cls, module: nn.Module, adapters: Mapping[str, Any], inputs: tuple[Any, ...]
    ) -> Tensor | None:
        if len(inputs) != 3 or not is_supported(module, inputs[0]):
            return None
        updates = {key: adapter.update(module) for key, adapter in adapters.items()}
        return experts_forward(module, *inputs, updates)

    def update(self, module: nn.Module) -> ExpertUpdate:
        return ExpertUpdate(self.a, self.b, self.scale)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.adapted(weight), bias


class ExpertDora(ExpertLora):
    """DoRA of each expert: the rows of its adapted matrix have trained norms.

    m: (E O,), those of one expert after another: a vector, which weight decay leaves alone.
    """

    square: Tensor

    def __init__(self, site: Site, method: LoraSettings, *, detach_norm: bool):
        super().__init__(site, method)
        self.detached = detach_norm
        self.kept: TensorCache[Tensor] = TensorCache()
        with torch.no_grad():
            weight, _ = site.dense()
            self.register_buffer("square", weight.square().sum(-1), persistent=False)  # (E, O)
            self.m = nn.Parameter(super().adapted(weight).norm(dim=-1).flatten())

    def update(self, module: nn.Module) -> ExpertUpdate:
        stack = getattr(module, self.parameter)
        norm = self.kept((self.a, self.b), stack.dtype, lambda: self.norm(stack))
        return ExpertUpdate(self.a, self.b, self.scale, self.m.view_as(norm) / norm)

    def norm(self, stack: Tensor) -> Tensor:
        """The row norms of W + s B A, (E, O), without the sum itself.

        ||w + s bA||^2 = ||w||^2 + 2 s <w, bA> + s^2 ||bA||^2
        """
        stack = stack.mT if self.transposed else stack
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detached):
            cross = torch.bmm(stack, self.a.to(stack.dtype).mT).float()  # (E, O, R)
            square = self.square + 2 * self.scale * (cross * self.b).sum(-1)
            square = square + self.scale**2 * ((self.b @ (self.a @ self.a.mT)) * self.b).sum(-1)
            return square.clamp_min(TINY**2).sqrt()

    def adapted(self, stack: Tensor) -> Tensor:
        stack = super().adapted(stack)
        norm = torch.linalg.vector_norm(
            stack.detach() if self.detached else stack, dim=-1, dtype=torch.float32
        )
        size = self.m.view_as(norm) / norm.clamp_min(TINY)
        return stack * size.to(stack.dtype).unsqueeze(-1)
