"""Several processes, each of which holds a part of every weight (torch's FSDP2).

A block of the decoder is whole only while it computes; so is everything outside of the blocks. The
order is load -> quantise -> adapt -> checkpointing -> compile -> shard, and whatever reads weights
(fingerprints, starts, trials of batching) comes before the last of them.

Adapters stay whole in every process: their gradients are summed in one bucket, and files,
checkpoints and schedules are those of one process. The copies that full fine-tuning trains are
sharded too, with the state of their optimizer; `Parts` has them.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from lorica.base.batching import padding_of
from lorica.base.describe import quantised_as
from lorica.base.fingerprint import fingerprint
from lorica.base.load import LoadedModel
from lorica.base.mapped_memory import mapped_weights, release_pages
from lorica.base.offload import end_offload
from lorica.base.quantise import QuantisedLinear
from lorica.core.attach import use
from lorica.core.bank import spec_of
from lorica.core.site import ADAPTERS, blocks_of
from lorica.errors import BaseError, listed
from lorica.training.base_model import absolute_if_local, load_base
from lorica.training.config import TrainConfig
from lorica.training.placement.parts import Parts
from lorica.training.placement.replicated import Replicated

OBJECTIVE = "lorica_objective"
"""The attribute of the model through which the loss is computed, with all hooks of its root."""


class Sharded(Replicated):
    """The placement of a run with `shard`."""

    in_lockstep = True  # every forward pass gathers weights from all processes
    base_path = ""
    parts: Parts

    def load(self, config: TrainConfig, labels: list[str] | None) -> LoadedModel:
        self.base_path = absolute_if_local(config.base)
        return load_base(config, labels, self.offload_until_sharded(config))

    def offload_until_sharded(self, config: TrainConfig) -> str | None:
        """Blocks wait in their files until they are sharded: a card need not hold them all.

        On a CPU weights are mapped anyway, and packed ones are in memory.
        """
        on_card = self.device.type != "cpu" and not quantised_as(config.base)
        return "disk" if on_card and config.quantisation in (None, "none") else None

    def replicate(self, objective: nn.Module) -> nn.Module:
        return _ThroughRoot(objective)

    def no_sync(self, objective: nn.Module) -> AbstractContextManager[Any]:
        return nullcontext()  # whole gradients of every pass would take the memory that this saves

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def shard(
        self,
        model: nn.Module,
        name: str,
        tensors: Mapping[str, nn.Parameter],
        initial: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
    ) -> tuple[dict[str, nn.Parameter], dict[str, Tensor]]:
        is_full = spec_of(model, name).method.name == "full"
        self._broadcast(tensors)
        _remember_fingerprints(model, self.base_path, spec_of(model, name).targets.modules_to_save)
        with use(model):
            padding_of(model)  # a trial, whose result is kept
        end_offload(model)
        mesh = init_device_mesh(self.device.type, (self.processes,))
        shard_model(model, mesh, with_adapters=is_full)
        self.parts = Parts(model, name, tensors, self.accelerator.process_index, self.processes)
        return self.parts.adopt(tensors, initial, optimizer)

    def _broadcast(self, tensors: Mapping[str, nn.Parameter]) -> None:
        """Give every process the tensors of the first: other processors round starts otherwise."""
        with torch.no_grad():
            for tensor in tensors.values():
                torch.distributed.broadcast(tensor.data, src=0)

    def clip_gradients(self, tensors: Mapping[str, nn.Parameter], max_norm: float) -> float:
        whole = {n: t for n, t in tensors.items() if n not in self.parts.sharded}
        _average_gradients(list(whole.values()), self.processes)
        if not self.parts.sharded:
            return super().clip_gradients(tensors, max_norm)
        self.parts.take_gradients()
        squares = torch.zeros((), dtype=torch.float64, device=self.device)
        for name in self.parts.sharded:
            if (grad := tensors[name].grad) is not None:
                squares += grad.double().square().sum()
        squares = self.reduce(squares)
        for tensor in whole.values():
            if tensor.grad is not None:
                squares += tensor.grad.double().square().sum()
        norm = float(squares.sqrt())
        for tensor in tensors.values():
            if tensor.grad is not None:
                tensor.grad *= min(1.0, max_norm / (norm + 1e-6))
        return norm

    def any_process(self, flags: Sequence[bool]) -> list[bool]:
        return (self.reduce(torch.tensor(flags, dtype=torch.int32)) > 0).tolist()

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.parts.gather(tensors, keep=self.is_writer)

    def settle(self) -> list[str]:
        self.parts.restore(keep=self.is_writer)
        return super().settle()


class _ThroughRoot(nn.Module):
    """Calls the objective inside the hooks of the model's root, which it does not call itself."""

    def __init__(self, objective: nn.Module):
        super().__init__()
        self.objective = objective

        def loss(*inputs: Any) -> Tensor:
            return objective.forward(*inputs).clone()  # FSDP2 puts a hook on it: no view, therefore

        setattr(objective.model, OBJECTIVE, loss)

    def forward(self, *inputs: Any) -> Tensor:
        model: Any = self.objective.model
        return getattr(model, OBJECTIVE)(*inputs)


def shard_model(model: nn.Module, mesh: Any, *, with_adapters: bool) -> None:
    """Shard every block of the decoder, and the root. In place.

    with_adapters: the trained tensors as well; otherwise they stay whole.
    Raises: BaseError if the model has no blocks, or they share weights.
    """
    _codes_as_parameters(model)
    blocks = blocks_of(model)
    if not blocks:
        raise BaseError(
            f"{type(model).__name__} has no list of blocks that could be sharded.",
            fix="leave out --shard; every process then holds the whole base",
        )
    _check_unshared(model, blocks)
    whole = {
        p
        for name, p in model.named_parameters()
        if p.ndim == 0 or (ADAPTERS in name.split(".") and not with_adapters)
    }
    ranges = mapped_weights()
    for module in [*blocks.values(), model]:
        weights = [p.data for p in module.parameters() if not _is_sharded(p)]
        fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
        for weight in weights:
            release_pages(weight, ranges)
        del weights
    if hasattr(model, OBJECTIVE):
        register_fsdp_forward_method(model, OBJECTIVE)


def local_bytes(model: nn.Module) -> int:
    """Bytes of the parameters that this process holds, adapters included."""
    held = {id(p): getattr(p, "_local_tensor", p) for p in model.parameters()}
    return sum(tensor.numel() * tensor.element_size() for tensor in held.values())


def _is_sharded(parameter: Tensor) -> bool:
    return hasattr(parameter, "_local_tensor")


def _codes_as_parameters(model: nn.Module) -> None:
    """Make codes and scales of quantised layers frozen parameters: buffers are not sharded.

    In place. They stay integers, which model.to(dtype) does not round.
    """
    for module in model.modules():
        if isinstance(module, QuantisedLinear):
            for name in ("codes", "scales", "second"):
                if (part := module._buffers.get(name)) is not None:
                    del module._buffers[name]
                    module.register_parameter(name, nn.Parameter(part, requires_grad=False))


def _check_unshared(model: nn.Module, blocks: Mapping[str, nn.Module]) -> None:
    owners: dict[int, str] = {}
    shared: list[str] = []
    for name, block in blocks.items():
        for key, parameter in block.named_parameters():
            owner = owners.setdefault(id(parameter), name)
            if owner != name and ADAPTERS not in key.split("."):
                shared.append(f"{name}.{key}")
    inside = {id(p) for p in model.parameters()} & owners.keys()
    outside = [
        f"{name}.{key}"
        for name, module in model.named_modules()
        for key, p in module._parameters.items()
        if id(p) in inside and not any(module in block.modules() for block in blocks.values())
    ]
    if shared or outside:
        raise BaseError(
            "blocks of this base share weights with one another or with other layers, and FSDP2 "
            "cannot shard them.",
            weights=listed([*shared, *outside]),
            fix="leave out --shard; every process then holds the whole base",
        )


def _remember_fingerprints(model: nn.Module, path: str, whole: Sequence[str]) -> None:
    """Compute what an adapter file records of the base, while its weights are whole. In place."""
    remembered = {"rounded": fingerprint(model, path=path, whole=whole)}
    foreign: Any = model
    foreign.stands_for = remembered


def _average_gradients(tensors: Sequence[nn.Parameter], processes: int) -> None:
    """Replace gradients by their means over all processes, in one bucket. In place.

    A tensor that got a gradient in no process has none afterwards.
    """
    trained = [t for t in tensors if t.requires_grad]
    if not trained:
        return
    flags = torch.tensor([t.grad is not None for t in trained], device=trained[0].device)
    grads = [torch.zeros_like(t) if t.grad is None else t.grad for t in trained]
    bucket = torch.cat([*(g.flatten().float() for g in grads), flags.float()])
    torch.distributed.all_reduce(bucket)
    *sums, counts = bucket.split([*(g.numel() for g in grads), len(trained)])
    for tensor, total, count in zip(trained, sums, counts.tolist(), strict=True):
        tensor.grad = (total / processes).view_as(tensor).to(tensor.dtype) if count else None
