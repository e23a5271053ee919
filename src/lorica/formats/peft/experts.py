"""LoRA on fused experts in PEFT's layout (target_parameters), read off peft 0.21.2.

    lora_A.weight (E R, I)   rows of one expert after another
    lora_B.weight (O, R E)   columns of one component after another, an expert each

PEFT wraps a module once for each of its parameters, in the module's own order. The last parameter
is outermost and has the plain name; the one before it stands below `base_layer`.

    E  experts   I  in_features   O  out_features   R  r
"""

from collections.abc import Iterable

from torch import Tensor

from lorica.core.site import Site
from lorica.methods.lora.experts import ExpertLora

A, B = "lora_A.weight", "lora_B.weight"
WRAPPED = "base_layer."


def peft_tensors(adapter: ExpertLora) -> dict[str, Tensor]:
    a, b = adapter.a.detach(), adapter.b.detach()
    return {A: a.flatten(0, 1).clone(), B: b.permute(1, 2, 0).flatten(1).contiguous()}


def own_tensors(adapter: ExpertLora, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The stacks a and b; a tensor of another shape as it is, for the strict loader to name.

    Known tensors are popped from `tensors`.
    """
    experts, r, inputs = adapter.a.shape
    outputs = adapter.b.shape[1]
    state: dict[str, Tensor] = {}
    if (a := tensors.pop(A, None)) is not None:
        fits = a.shape == (experts * r, inputs)
        state["a"] = a.view(experts, r, inputs) if fits else a
    if (b := tensors.pop(B, None)) is not None:
        fits = b.shape == (outputs, r * experts)
        state["b"] = b.view(outputs, r, experts).permute(2, 0, 1) if fits else b
    return state


def names_in_peft(prefix: str, sites: Iterable[Site]) -> dict[str, str]:
    """Our name of each tensor of experts -> PEFT's. sites: every site of an adapter, in model
    order."""
    parameters: dict[str, list[str]] = {}
    for site in sites:
        if site.kind == "expert":
            parameters.setdefault(site.name.rpartition(".")[0], []).append(site.name)
    return {
        f"{prefix}{name}.{key}": f"{prefix}{module}.{WRAPPED * (len(names) - 1 - i)}{key}"
        for module, names in parameters.items()
        for i, name in enumerate(names)
        for key in (A, B)
    }
