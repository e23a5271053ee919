"""Weights that are zero throughout, as after a download that broke off in a preallocated file."""

import torch
from torch import Tensor, nn

from lorica.base.footprint import quantised_layers
from lorica.base.mapped_memory import mapped_weights, release_pages
from lorica.base.samples import sampled
from lorica.errors import listed


@torch.no_grad()
def zero_weights_notice(path: str, model: nn.Module) -> str | None:
    """A notice that names the weight matrices of the base at `path` without a number but zero.

    It is no error: blocks that are added to a model may begin so.
    """
    ranges, matrices, zero = mapped_weights(), 0, []
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and parameter.numel():
            matrices += 1
            if _is_zero(parameter):
                zero.append(name)
            release_pages(parameter, ranges)
    for name, layer in quantised_layers(model).items():
        matrices += 1
        sample = layer.original_sample
        if sample is not None and not any(sample) and _is_zero(layer.weight_as(torch.float32)):
            zero.append(f"{name}.weight")
    if not zero:
        return None
    return (
        f"{len(zero)} of the {matrices} weight matrices of {path} hold nothing but zeros: "
        f"{listed(zero)}; if the model was not made so, a download broke off: compare the digests "
        "of its files with those of the source"
    )


def _is_zero(weight: Tensor) -> bool:
    return not any(sampled(weight)) and not weight.any()
