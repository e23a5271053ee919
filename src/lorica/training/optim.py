"""The optimizer over adapter tensors, and its state as plain tensors for a checkpoint."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lorica.core.drive import Driver
from lorica.errors import ConfigError, FileError, MissingError, listed

ADAMW = ("step", "exp_avg", "exp_avg_sq")
"""What torch's AdamW keeps of each tensor."""


@dataclass(frozen=True)
class Updater:
    """The optimizer and the schedule of the method, which act together at every update."""

    optimizer: torch.optim.Optimizer
    driver: Driver

    def step(self, tensors: Mapping[str, nn.Parameter], lr_factor: float) -> None:
        """Update `tensors` with their gradients, which are cleared. In place.

        lr_factor: of each group's peak learning rate.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * lr_factor
        schedule = self.driver.schedule
        self.driver.before_step()
        decay_live(self.optimizer, tensors, schedule.live())
        self.optimizer.step()
        self.driver.after_step()
        forget(self.optimizer, tensors, schedule.fresh())
        self.optimizer.zero_grad(set_to_none=True)


def make_optimizer(
    tensors: Mapping[str, nn.Parameter],
    rates: Mapping[str, float],
    *,
    kind: str,
    decay: float,
    masked: Collection[str] = (),
) -> torch.optim.Optimizer:
    """AdamW or SGD; one parameter group for each learning rate and kind of decay.

    tensors: trained tensors by name. rates: their peak learning rates. Weight decay acts on
    matrices, not on vectors (biases, norms, magnitudes). masked: tensors with elements that may
    be out of use; they decay in `decay_live` instead. group["peak"]: the peak rate of a group.

    Raises: ConfigError, MissingError if paged_adamw is not available here.
    """
    groups: dict[tuple[float, float, float], list[nn.Parameter]] = {}
    for name, tensor in tensors.items():
        peak = rates[name]
        wd = decay if tensor.ndim > 1 else 0.0
        key = (peak, 0.0, wd) if name in masked else (peak, wd, 0.0)
        groups.setdefault(key, []).append(tensor)
    settings = [
        {"params": params, "lr": peak, "peak": peak, "weight_decay": wd, "live_decay": live}
        for (peak, wd, live), params in groups.items()
    ]
    if kind == "sgd":
        return torch.optim.SGD(settings)
    if kind == "paged_adamw":
        return _paged(settings)
    return torch.optim.AdamW(settings, fused=True)


def _paged(settings: list[dict]) -> torch.optim.Optimizer:
    """AdamW whose moments are in memory that CUDA moves to the host when the GPU is full.

    Dettmers et al., "QLoRA", 2023, arXiv:2305.14314, section 3. The numbers are those of AdamW.
    """
    if not torch.cuda.is_available():
        raise ConfigError("optimizer paged_adamw needs a CUDA GPU.", fix="use adamw")
    try:
        from bitsandbytes.optim.adamw import PagedAdamW32bit
    except ImportError:
        raise MissingError(
            "optimizer paged_adamw needs bitsandbytes.", fix='pip install "lorica[quantisation]"'
        ) from None
    return PagedAdamW32bit(settings)


@torch.no_grad()
def decay_live(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, nn.Parameter],
    live: Mapping[str, Tensor],
) -> None:
    """AdamW's decay, w <- (1 - lr decay) w, where `live` is True. Before the step. In place.

    Elements that are not in use, and tensors without a gradient (frozen ones), do not decay.
    """
    if not live:
        return
    names = {id(tensor): name for name, tensor in tensors.items()}
    for group in optimizer.param_groups:
        for tensor in group["params"]:
            name = names[id(tensor)]
            if group["live_decay"] and name in live and tensor.grad is not None:
                tensor.mul_(1 - group["lr"] * group["live_decay"] * live[name].to(tensor))


@torch.no_grad()
def persistence(optimizer: torch.optim.Optimizer) -> float | None:
    """How much the gradients of the last steps agree: sum m^2 / sum v of AdamW's moments.

    About 0.05 for pure noise, as when nothing is left to learn; 1 for a constant gradient. None:
    the optimizer keeps no moments.
    """
    mean = square = 0.0
    for group in optimizer.param_groups:
        for tensor in group["params"]:
            state = optimizer.state.get(tensor, {})
            if "exp_avg" in state and "exp_avg_sq" in state:
                (slow, fast), t = group["betas"], float(state["step"])
                mean += state["exp_avg"].square().sum().item() / (1 - slow**t) ** 2
                square += state["exp_avg_sq"].sum().item() / (1 - fast**t)
    return mean / square if square else None


def forget(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, nn.Parameter],
    names: Collection[str],
) -> None:
    """Reset the moments of these tensors: they start anew at the next step. In place."""
    for name in names:
        optimizer.state.pop(tensors[name], None)


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
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, nn.Parameter],
    state: dict[str, Tensor],
    *,
    step: int,
    complete: bool,
) -> None:
    """Load a saved state into the optimizer. In place.

    step: optimizer steps done. complete: every trained tensor must have its moments, because the
        method neither froze tensors nor reset them.

    Raises: FileError, before anything is loaded, unless names, shapes and dtypes are those of this
        optimizer, and every number is finite. A misshapen moment would be read past its end.
    """
    if wrong := list(_unfit(optimizer, tensors, state, step, complete)):
        raise FileError(
            "the checkpoint's optimizer state does not fit the run.",
            wrong=listed(wrong),
            fix="delete the checkpoint to resume from the one before it",
        )
    for key, value in state.items():
        name, _, moment = key.rpartition("/")
        tensor = tensors[name]
        optimizer.state[tensor][moment] = value if moment == "step" else value.to(tensor.device)


def _unfit(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, nn.Parameter],
    state: Mapping[str, Tensor],
    step: int,
    complete: bool,
) -> Iterator[str]:
    """Everything that is wrong with a saved state."""
    moments = {torch.optim.AdamW: ADAMW, torch.optim.SGD: ()}.get(type(optimizer))  # None: paged
    for key, value in state.items():
        name, _, moment = key.rpartition("/")
        if name not in tensors:
            yield f"{key}: the run trains no such tensor"
        elif moments is not None and moment not in moments:
            yield f"{key}: the optimizer keeps no such moment"
        elif moment == "step":
            if value.shape != () or value.dtype != torch.float32 or not 1 <= value.item() <= step:
                yield f"{key}: not a number of steps up to {step}"
        elif value.shape != tensors[name].shape or value.dtype != tensors[name].dtype:
            yield f"{key}: {value.dtype} {tuple(value.shape)}, not {tuple(tensors[name].shape)}"
        elif not value.isfinite().all() or (moment == "exp_avg_sq" and (value < 0).any()):
            yield f"{key}: numbers that are not finite, or squares below 0"
    for name, tensor in tensors.items():
        have = [moment for moment in moments or () if f"{name}/{moment}" in state]
        needed = complete and step > 0 and tensor.requires_grad
        if len(have) != len(moments or ()) and (have or needed):
            yield f"{name}: has {listed(have)} of {listed(moments or ())}"
