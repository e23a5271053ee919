"""What stands in a PEFT file beside the method's own tensors: whole layers, rows, copies.

Layers of modules_to_save stand under their plain names; where the base ties layers, each gets
its own copy. Copies of base weights that PEFT saves beside embeddings are compared and left out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lorica.core.adapter import Adapter
from lorica.core.bank import attached
from lorica.core.modules_to_save import ModuleCopy, TrainableTokens
from lorica.errors import FileError

ROWS = "token_adapter.trainable_tokens_delta"
BASE = ".base_layer.weight"
WRAPPED, UNTRAINED = ".modules_to_save.", ".original_module."


def peft_tensors(model: nn.Module, name: str, prefix: str) -> dict[str, Tensor]:
    """The whole layers and rows of adapter `name` under PEFT's names; rows stand once."""
    file: dict[str, Tensor] = {}
    seen: set[int] = set()
    for site, adapter in _copied_layers(model, name).items():
        for key, tensor in adapter.named_parameters():
            if isinstance(adapter, ModuleCopy):
                file[f"{prefix}{site}.{key}"] = tensor.detach().clone()  # tied ones: a copy each
            elif id(tensor) not in seen:
                file[f"{prefix}{site}.{ROWS}"] = tensor.detach()
            seen.add(id(tensor))
    return file


def own_tensors(
    model: nn.Module, name: str, prefix: str, file: Mapping[str, Tensor], source: str
) -> dict[str, Tensor]:
    """Whole layers and rows of `file` under our names; other names stay.

    In place: layers that the base ties and that were trained apart are untied in `name`.
    Raises: FileError if a copy of a base weight is not the base's.
    """
    adapters = _copied_layers(model, name)
    names = {
        f"{prefix}{site}.{ROWS if isinstance(adapter, TrainableTokens) else key}": f"{site}.{key}"
        for site, adapter in adapters.items()
        for key, _ in adapter.named_parameters()
    }
    state: dict[str, Tensor] = {}
    for key, tensor in file.items():
        if key.endswith(BASE):
            _same_as_base(model, key.removeprefix(prefix).removesuffix(BASE), tensor, source)
        else:
            state[names.get(key, key)] = tensor
    _untie(adapters, state)
    return state


def unwrapped(file: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`file` without what PEFT's wrapper of a whole layer leaves in it beside resized embeddings.

    The wrapper's own tensors stand there under the plain name as well, and the weights that the
    layer had before training are no part of the adapter.
    """
    plain = {key.replace(WRAPPED, "."): key for key in file if WRAPPED in key}
    own = {key: t for key, t in file.items() if WRAPPED not in key and UNTRAINED not in key}
    return {**{name: file[key] for name, key in plain.items()}, **own}


def _untie(adapters: dict[str, Adapter], state: dict[str, Tensor]) -> None:
    """Drop second copies of tied layers from `state`, or give the layers tensors of their own."""
    first_of: dict[int, str] = {}
    for site, adapter in adapters.items():
        if not isinstance(adapter, ModuleCopy):
            continue
        for parameter, own in list(adapter.named_parameters()):
            key = f"{site}.{parameter}"
            first = first_of.setdefault(id(own), key)
            if first == key or key not in state or first not in state:
                continue
            if torch.equal(state[key], state[first]):
                del state[key]
            else:
                adapter.register_parameter(parameter, nn.Parameter(own.detach().clone()))


def _copied_layers(model: nn.Module, name: str) -> dict[str, Adapter]:
    return dict(attached(model, name).whole)


def _same_as_base(model: nn.Module, layer: str, tensor: Tensor, source: str) -> None:
    own = dict(model.named_parameters(remove_duplicate=False)).get(f"{layer}.weight")
    if (
        own is None
        or own.shape != tensor.shape
        or not torch.allclose(own.detach().float().cpu(), tensor.float(), atol=1e-2, rtol=1e-2)
    ):
        raise FileError(
            f"{source} carries its own {layer}.weight, which is not the base's.",
            file=tuple(tensor.shape),
            base=None if own is None else tuple(own.shape),
            fix="load the base that the adapter was trained on (resize its embedding if it was)",
        )


def saved_whole(keys: Sequence[str], prefix: str, marks: Sequence[str]) -> list[str]:
    """Layers whose tensors stand in the file under their plain names."""
    plain = [k.removeprefix(prefix) for k in keys]
    whole = [k for k in plain if not any(m in k for m in (*marks, "token_adapter.", "base_layer."))]
    return sorted({k.rpartition(".")[0] for k in whole})


def containers(layers: Sequence[str], entries: Sequence[str]) -> list[str]:
    """`layers`, but where an entry names a container of them, the container: as PEFT wraps it."""
    names: dict[str, None] = {}
    for layer in layers:
        parts = layer.split(".")
        above = (".".join(parts[: i + 1]) for i in range(len(parts)))
        hit = (a for a in above if any(f".{a}".endswith(f".{e}") for e in entries))
        names[next(hit, layer)] = None
    return list(names)


def token_ids(value: Any) -> list[int]:
    if isinstance(value, dict):
        if len(value) != 1:
            raise FileError("trainable_token_indices names several embeddings.", given=list(value))
        value = next(iter(value.values()))
    return list(value or [])
