"""The parts of sharded tensors that a process trains, and the whole tensors made from them.

FSDP2 keeps a sharded parameter as a DTensor, split along its first axis. The optimizer, the watches
and the event log see the part of this process alone, as a plain tensor in the same memory. Files
hold whole tensors, which are gathered one at a time.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lorica.core.site import ADAPTERS
from lorica.core.state import adapter_state


class Parts:
    """The trained tensors of a model that are sharded; there are none if adapters are whole.

    tensors: the trained tensors before the model was sharded, by name.
    sharded: the DTensors in their places now.
    """

    def __init__(
        self, model: nn.Module, name: str, tensors: Mapping[str, nn.Parameter], rank: int, size: int
    ):
        self.model, self.rank, self.size = model, rank, size
        state = adapter_state(model, name)
        self.sharded: dict[str, Any] = {
            key: state[key] for key in tensors if isinstance(state[key], DTensor)
        }

    def own(self, whole: Tensor) -> Tensor:
        """The rows of a whole tensor that this process has. A copy."""
        rows = -(-len(whole) // self.size)
        return whole[rows * self.rank : rows * (self.rank + 1)].clone()

    def adopt(
        self,
        tensors: Mapping[str, nn.Parameter],
        initial: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
    ) -> tuple[dict[str, nn.Parameter], dict[str, Tensor]]:
        """(tensors, initial) with the parts of this process in place of whole tensors.

        The optimizer is given the parts, and keeps its state of them. In place.
        """
        parts = {
            name: nn.Parameter(tensor.to_local().detach(), requires_grad=tensor.requires_grad)
            for name, tensor in self.sharded.items()
        }
        by_id = {id(tensors[name]): part for name, part in parts.items()}
        for group in optimizer.param_groups:
            group["params"] = [by_id.get(id(p), p) for p in group["params"]]
        for name, part in parts.items():
            before = tensors[name]
            if (state := optimizer.state.pop(before, None)) is not None:
                optimizer.state[part] = {
                    key: self.own(value) if value.shape == before.shape else value
                    for key, value in state.items()
                }
        self.parts = parts
        own = {n: self.own(t) if n in parts else t for n, t in initial.items()}
        return {**tensors, **parts}, own

    @torch.no_grad()
    def take_gradients(self) -> None:
        """Move the gradients of the sharded tensors to their parts. In place."""
        for name, tensor in self.sharded.items():
            grad, tensor.grad = tensor.grad, None
            self.parts[name].grad = None if grad is None else grad.to_local()

    @torch.no_grad()
    def gather(self, tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
        """Whole tensors on the CPU: of parts by name ("<tensor>" or "<tensor>/<moment>").

        All processes call this. keep: in this process; elsewhere the result is empty.
        """
        whole: dict[str, Tensor] = {}
        for key, tensor in tensors.items():
            spec = self.sharded.get(key.partition("/")[0])
            if spec is not None and (isinstance(tensor, DTensor) or tensor.ndim):
                tensor = self._gathered(tensor, spec)
            if keep:
                whole[key] = tensor.cpu() if spec is not None else tensor
        return whole

    def _gathered(self, tensor: Tensor, spec: Any) -> Tensor:
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()
        return DTensor.from_local(
            local, spec.device_mesh, spec.placements, shape=spec.shape, stride=spec.stride()
        ).full_tensor()

    @torch.no_grad()
    def restore(self, *, keep: bool) -> None:
        """Put whole tensors into the adapter, for its file; the model computes no more. In place.

        keep: in this process; all of them call this.
        """
        whole: dict[int, nn.Parameter] = {}
        for tensor in self.sharded.values():
            value = self._gathered(tensor, tensor)
            if keep:
                whole[id(tensor)] = nn.Parameter(value.cpu(), requires_grad=tensor.requires_grad)
        for name, module in self.model.named_modules():
            if ADAPTERS in name.split("."):
                for key, parameter in module._parameters.items():
                    if id(parameter) in whole:
                        module._parameters[key] = whole[id(parameter)]
