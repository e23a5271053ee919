"""NF4 and FP4 in plain torch, from the paper's description: the truth that bitsandbytes is held to.

Blocks of 64 weights in row-major order, the last one perhaps short. A block keeps its largest
|w|; each weight over it becomes the nearest of 16 values, in a tie the lower one. Two codes make
a byte, the first one in its high half.
"""

import math
from statistics import NormalDist

import torch
from torch import Tensor

BLOCK = 64
NF4 = torch.tensor(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ]
)
FP4 = torch.tensor([0, 1 / 192, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4])
FP4 = torch.cat([FP4, -FP4])  # sign, two bits of exponent, one of mantissa, over the largest, 12
TABLES = {"nf4": NF4, "fp4": FP4}


def generated() -> list[float]:
    """The NF4 codebook from its definition: quantiles of N(0, 1), and an exact zero."""
    off, normal = 0.9677083, NormalDist()

    def quantiles(points: int) -> list[float]:
        """Of `points` probabilities from `off` to 1/2, less the last, which gives 0."""
        step = (off - 0.5) / (points - 1)
        return [normal.inv_cdf(off - i * step) for i in range(points - 1)]

    values = [*quantiles(9), 0.0, *(-q for q in quantiles(8))]
    return [v / max(values) for v in sorted(values)]


def midpoints(table: Tensor) -> Tensor:
    """Where the nearest of a sorted table changes, (15,)."""
    return (table[1:] + table[:-1]) / 2


def blocks(w: Tensor, size: int = BLOCK) -> Tensor:
    """The weights in blocks, (N, size); a short last one is filled with zeros."""
    flat = w.reshape(-1)
    short = -len(flat) % size
    return torch.cat([flat, flat.new_zeros(short)]).view(-1, size)


def quantise(w: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """(codes of every weight (n,), largest |w| of every block)."""
    table, order = TABLES[kind].sort()
    rows = blocks(w.float())
    absmax = rows.abs().amax(1)
    scaled = rows * (1 / absmax.clamp_min(1e-38)).unsqueeze(1)
    nearest = torch.bucketize(scaled, midpoints(table))  # midpoints strictly below the value
    codes = order[nearest].view(-1)[: w.numel()]
    return codes, absmax


def dequantise(codes: Tensor, absmax: Tensor, kind: str) -> Tensor:
    """The weights that codes stand for, (n,)."""
    return (blocks(TABLES[kind][codes]) * absmax.unsqueeze(1)).view(-1)[: codes.numel()]


def packed(codes: Tensor, kind: str) -> Tensor:
    """Two codes a byte, the first in the high half; a last one alone has that of 0 beside it."""
    zero = (TABLES[kind] == 0).nonzero()[0]
    even = torch.cat([codes, zero] if codes.numel() % 2 else [codes]).to(torch.uint8)
    return even[::2] * 16 + even[1::2]


def unpacked(data: Tensor, n: int) -> Tensor:
    """The first n codes of packed bytes."""
    return torch.stack([data >> 4, data & 15], 1).view(-1)[:n].long()


def scales(codes: Tensor, table: Tensor, second: Tensor, offset: Tensor) -> Tensor:
    """What 8-bit codes of scales stand for: blocks of 256, each with one float, plus the mean."""
    return table[codes.long()] * second.repeat_interleave(256)[: len(codes)] + offset


def symmetric(w: Tensor) -> Tensor:
    """INT4 with one constant a block: round(7 w / largest |w|), and back."""
    rows = blocks(w)
    step = rows.abs().amax(1, keepdim=True) / 7
    return ((rows / step).round() * step).view(-1)


def affine(w: Tensor) -> Tensor:
    """INT4 with two constants a block, smallest and largest: 15 even steps between them."""
    rows = blocks(w)
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    step = (high - low) / 15
    return (((rows - low) / step).round() * step + low).view(-1)


def entropy(codes: Tensor) -> float:
    """Bits that a code carries."""
    shares = torch.bincount(codes, minlength=16).double() / codes.numel()
    return -sum(p * math.log2(p) for p in shares.tolist() if p)
