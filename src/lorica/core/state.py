"""Adapter tensors in and out: {"<site>.<parameter>": tensor}, no adapter name in the keys.

A tensor that two sites share (tied layers trained whole) stands once, under its first site.
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
    have = adapter_state(model, name)
    wrong = sorted(k for k in have.keys() & state.keys() if have[k].shape != state[k].shape)
    shapes = [f"{k} {tuple(state[k].shape)} -> {tuple(have[k].shape)}" for k in wrong]
    odd = sorted(k for k in have.keys() & state.keys() if not _same_kind(have[k], state[k]))
    broken = [] if odd else not_finite(state)
    missing, extra = sorted(have.keys() - state.keys()), sorted(state.keys() - have.keys())
    if missing or extra or shapes or odd or broken:
        raise FileError(
            f"{source} does not fit adapter {name!r} ({len(have)} tensors).",
            missing=listed(missing),
            extra=listed(extra),
            shapes=listed(shapes),
            not_finite=listed(broken),
            **({"of_another_type": listed(f"{k} {state[k].dtype}" for k in odd)} if odd else {}),
            fix="use the folder as it was saved, on the model that it was saved from",
        )
    for key, tensor in have.items():
        tensor.copy_(state[key])


def _same_kind(ours: Tensor, theirs: Tensor) -> bool:
    """Whether both are floats of at least 16 bits, or of the same dtype."""
    wide = theirs.dtype.is_floating_point and theirs.element_size() > 1
    return wide if ours.dtype.is_floating_point else ours.dtype == theirs.dtype
