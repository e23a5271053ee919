"""Read and write the tensors of an adapter: {"<site>.<parameter>": tensor}, without its name.

A tensor that two sites share (tied layers that are trained whole) is there once, under its first
site.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lorica.core.bank import adapted_layers
from lorica.errors import FileError, listed


def adapter_state(model: nn.Module, name: str = "default") -> dict[str, Tensor]:
    """The tensors of adapter `name` themselves (no copies), in model order."""
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for site, _, adapters in adapted_layers(model):
        if name not in adapters:
            continue
        for key, tensor in adapters[name].state_dict(keep_vars=True).items():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                state[f"{site}.{key}"] = tensor
    return state


@torch.no_grad()
def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors with a NaN or an infinity in them, sorted."""
    return sorted(name for name, tensor in tensors.items() if not tensor.isfinite().all())


@torch.no_grad()
def load_adapter_state(
    model: nn.Module, state: dict[str, Tensor], name: str = "default", *, source: str = "the file"
) -> None:
    """Copy `state` into adapter `name`. In place.

    Raises: FileError, before anything is copied, unless names and shapes agree exactly and
        every number is finite.
    """
    own = adapter_state(model, name)
    both = sorted(own.keys() & state.keys())
    reshaped = [key for key in both if own[key].shape != state[key].shape]
    shapes = [f"{key} {tuple(state[key].shape)} -> {tuple(own[key].shape)}" for key in reshaped]
    dtypes = [f"{key} {state[key].dtype}" for key in both if not _same_kind(own[key], state[key])]
    broken = [] if dtypes else not_finite(state)
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or extra or shapes or dtypes or broken:
        raise FileError(
            f"{source} does not fit adapter {name!r} ({len(own)} tensors).",
            missing=listed(missing),
            extra=listed(extra),
            shapes=listed(shapes),
            not_finite=listed(broken),
            **({"of_another_type": listed(dtypes)} if dtypes else {}),
            fix="use the folder as it was saved, on the model that it was saved from",
        )
    for key, tensor in own.items():
        tensor.copy_(state[key])


def _same_kind(own: Tensor, given: Tensor) -> bool:
    """Whether both are floats of at least 16 bits, or of the same dtype."""
    wide = given.dtype.is_floating_point and given.element_size() > 1
    return wide if own.dtype.is_floating_point else own.dtype == given.dtype
