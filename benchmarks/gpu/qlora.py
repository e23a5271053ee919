"""QLoRA in the shape of LLaMA-7B: rank 16 on all linear layers over 4-bit weights.

Both sides quantise the same random weights with NF4 and double quantisation. PEFT's are
bitsandbytes' own layers, in a plain loop.
"""

from typing import Any

import torch
from torch import nn

from benchmarks.gpu.recipe import ours, peft
from benchmarks.gpu.size import Size, random_base, timed

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SIDES = ("QLoRA", "PEFT QLoRA")


def measure(side: str, size: Size) -> dict[str, float]:
    import lorica

    if side == "QLoRA":
        model = packed_base(size, _ours_packed)
        step = ours(size, lorica.Lora(r=16, alpha=32), LINEAR, model)
    else:
        step = peft(size, LINEAR, 16, 32, packed_base(size, _bitsandbytes_packed))
    if size.device == "cuda":
        torch.cuda.reset_peak_memory_stats()  # of the step, not of the float weights before it
    return timed(step, size)


def packed_base(size: Size, packed: Any) -> Any:
    """The random base with each linear layer of its blocks replaced by `packed(layer)`."""
    model = random_base(size)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            model.set_submodule(name, packed(module, size))
    return model


def _ours_packed(layer: nn.Linear, size: Size) -> nn.Module:
    from lorica.base.quantise import quantise

    packed = quantise(layer, "nf4", double=True)
    packed.like = packed.like.to(size.dtype)
    return packed.to(size.device)


def _bitsandbytes_packed(layer: nn.Linear, size: Size) -> nn.Module:
    import bitsandbytes as bnb

    packed = bnb.nn.Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=False,
        compute_dtype=size.dtype,
        compress_statistics=True,
        quant_type="nf4",
    )
    packed.weight = bnb.nn.Params4bit(
        layer.weight.detach().cpu(),
        requires_grad=False,
        quant_type="nf4",
        compress_statistics=True,
        module=packed,
    )
    return packed.to(size.device)
