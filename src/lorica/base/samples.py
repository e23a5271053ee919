"""A few values of a tensor, for fingerprints of earlier versions and of single weights."""

import torch
from torch import Tensor

SAMPLE = 64
"""Values of each tensor."""


def sampled(tensor: Tensor) -> bytes:
    """A few values of a tensor, rounded to bfloat16."""
    flat = tensor.detach().reshape(-1)
    values = flat[places(flat.numel()).to(flat.device)].float().bfloat16()
    return values.view(torch.int16).cpu().numpy().tobytes()


def places(n: int) -> Tensor:
    """Up to SAMPLE of n places, at even distances.

    In integers: float32 would round the last place of a large tensor past its end.
    """
    count = min(SAMPLE, n)
    return torch.arange(count) * (n - 1) // max(count - 1, 1)
