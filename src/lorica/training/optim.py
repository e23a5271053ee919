"""The optimizer over adapter tensors, and its state as plain tensors for a checkpoint."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lorica.core.adapter import Method
from lorica.errors import FileError


def make_optimizer(
    tensors: Mapping[str, nn.Parameter], method: Method, *, kind: str, rate: float, decay: float
) -> torch.optim.Optimizer:
    """AdamW or SGD; one parameter group for each learning rate and kind of decay.

    tensors: trained tensors by name. Weight decay acts on matrices, not on vectors (biases,
    norms, magnitudes). Each group keeps its peak rate as group["peak"].
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, tensor in tensors.items():
        peak = method.learning_rate(name.rpartition(".")[2], rate)
        groups.setdefault((peak, decay if tensor.ndim > 1 else 0.0), []).append(tensor)
    settings = [
        {"params": params, "lr": peak, "peak": peak, "weight_decay": wd}
        for (peak, wd), params in groups.items()
    ]
    if kind == "sgd":
        return torch.optim.SGD(settings)
    return torch.optim.AdamW(settings, fused=True)


def optimizer_state(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """{"<tensor>/<moment>": tensor}."""
    return {
        f"{name}/{key}": value
        for name, tensor in tensors.items()
        for key, value in optimizer.state.get(tensor, {}).items()
    }


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, nn.Parameter], state: dict[str, Tensor]
) -> None:
    """Put a saved state back. In place. Raises: FileError if it is of other tensors."""
    wrong = {key.partition("/")[0] for key in state} - tensors.keys()
    if wrong:
        raise FileError(f"the optimizer state is of other tensors: {sorted(wrong)[:3]}.")
    for key, value in state.items():
        name, _, moment = key.rpartition("/")
        tensor = tensors[name]
        place = value if moment == "step" else value.to(tensor.device)
        optimizer.state[tensor][moment] = place
