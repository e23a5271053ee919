"""The laws on the device: what holds on the CPU in float32 holds there, in float32 and bfloat16.

For each method, on a small random Llama with an adapter that has moved away from its start:

    forward    logits on the device are those of the CPU in float32
    gradient   gradients of the trained tensors, too
    packed     a packed batch gives each row the loss that it has alone
    merged     the merged model is the adapted one (methods that have a dense equivalent)
    detached   without the adapter, the base's logits are what they were, bit for bit
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.size import TINY

METHODS = ("lora", "dora", "adalora", "mora", "alora", "ia3", "vera", "bottleneck", "llama_adapter")
MERGED = ("lora", "dora", "adalora", "mora", "vera", "ia3")
BOUNDS = {torch.float32: 2e-3, torch.bfloat16: 8e-2}
"""Largest difference as a share of the largest value, by dtype of the device's model."""
LENGTHS = (9, 5, 14)


def measure(device: str) -> dict[str, Any]:
    """The worst difference of each law by dtype, and the cases that break one."""
    worst: dict[str, float] = {}
    broken: list[str] = []
    for dtype, bound in BOUNDS.items():
        for method in METHODS:
            for law, difference in differences(method, device, dtype):
                key = f"{law}, {str(dtype).removeprefix('torch.')}"
                worst[key] = max(worst.get(key, 0.0), difference)
                if not difference <= (0 if law == "detached" else bound):
                    broken.append(f"{method}: {key}: {difference:.2g}")
    return {"worst": worst, "broken": broken, "methods": list(METHODS)}


def differences(method: str, device: str, dtype: torch.dtype) -> Iterator[tuple[str, float]]:
    """(law, largest difference as a share of the largest value)."""
    import lorica
    from lorica.core.merge import merge

    plain = _base()
    adapted = lorica.adapt(plain, lorica.method(method))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
    there: Any = copy.deepcopy(adapted).to(device)
    _base_to(there, dtype)
    rows = [torch.randint(3, 500, (n,), generator=draw) for n in LENGTHS]
    with torch.no_grad():
        before = _base_logits(there, rows[0], device)
        yield "forward", _share(_logits(there, rows[0], device), _logits(adapted, rows[0], "cpu"))
    yield "gradient", _gradient_difference(there, adapted, rows, device)
    yield "packed", _packed_difference(there, rows, device)
    with torch.no_grad():
        yield "detached", float((_base_logits(there, rows[0], device) - before).abs().max())
        if method in MERGED:
            want = _logits(there, rows[0], device)
            merge(there)
            yield "merged", _share(_logits(there, rows[0], device), want)


def _base() -> Any:
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(TINY.config()).eval().requires_grad_(False)


def _base_to(model: Any, dtype: torch.dtype) -> None:
    """The base in `dtype`; adapters stay in float32. In place."""
    from lorica.core.site import ADAPTERS

    for name, parameter in model.named_parameters():
        if ADAPTERS not in name.split("."):
            parameter.data = parameter.data.to(dtype)


def _logits(model: Any, ids: Tensor, device: str) -> Tensor:
    return model(ids.unsqueeze(0).to(device), use_cache=False).logits.float().cpu()


def _base_logits(model: Any, ids: Tensor, device: str) -> Tensor:
    import lorica

    with lorica.use(model):
        return _logits(model, ids, device)


def _share(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def _losses(model: Any, rows: list[Tensor], device: str) -> Tensor:
    """The summed loss of a packed batch of rows."""
    from lorica.base.packing import packed
    from lorica.data.batch import pack
    from lorica.data.example import Example
    from lorica.training.objective import Objective

    examples = [Example(r.tolist(), [False, *[True] * (len(r) - 1)], "row") for r in rows]
    with packed(model):
        return Objective(model, packed=True)(pack(examples).to(torch.device(device)))


def _gradient_difference(there: Any, here: Any, rows: list[Tensor], device: str) -> float:
    """The largest share over the trained tensors."""
    worst = 0.0
    for model, where in ((there, device), (here, "cpu")):
        model.zero_grad()
        _losses(model, rows, where).backward()
    for a, b in zip(there.parameters(), here.parameters(), strict=True):
        if b.grad is not None and b.grad.abs().max() > 0:
            norm = b.grad.norm()
            worst = max(worst, float((a.grad.float().cpu() - b.grad).norm() / norm))
    return worst


@torch.no_grad()
def _packed_difference(model: Any, rows: list[Tensor], device: str) -> float:
    together = _losses(model, rows, device)
    alone = sum(_losses(model, [row], device) for row in rows)
    return float((together - alone).abs() / together.abs())
