"""Pack weights into 4-bit codes and unpack them, in plain torch. The reference implementation.

The scale of a block of 64 weights, in row-major order, is its largest |w|. Each weight is divided
by the scale and rounded to the nearest of 16 values. A byte holds two codes, the first in the high
half.

    nf4   16 quantiles of the normal distribution; Dettmers et al., arXiv:2305.14314, appendix E
    fp4   a sign, two bits of exponent, one bit of mantissa, divided by the largest value, 12

Unpacking is one table look-up per byte: the table holds the two float32 values of each byte.
Packing divides [-1, 1] into cells. If no midpoint between two values lies in a cell, a table gives
its code. The few weights in the other cells are compared with the midpoints. On one core
(AVX-512, 2048 x 5632 bfloat16 weights, nf4) this takes 50 ms, where bitsandbytes 0.50.2 takes 380.
"""

from functools import cache

import torch
from torch import Tensor

from lorica.errors import BaseError

BLOCK, SECOND_BLOCK = 64, 256
CHUNK = 2**17
"""Bytes of codes per step: the float32 values of one step, 1 MiB, fit the processor's cache."""
CELLS = 4096
_AMBIGUOUS = 255  # marks a cell with more than one code
VALUES = {
    "nf4": (
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
    ),
    "fp4": tuple(sign * x / 12 for sign in (1, -1) for x in (0, 1 / 16, 8, 12, 4, 6, 2, 3)),
}
"""Code -> value."""


@cache
def values(kind: str, device: torch.device) -> Tensor:
    """(16,) float32: the value of each code."""
    return torch.tensor(VALUES[kind], device=device)


@cache
def _pairs(kind: str, device: torch.device) -> Tensor:
    """(256,) int64: the two float32 values of each byte, side by side."""
    table = values(kind, device)
    return (
        torch.stack([table.repeat_interleave(16), table.repeat(16)], 1).view(torch.int64).view(-1)
    )


def unpack(codes: Tensor, scales: Tensor, kind: str, n: int, dtype: torch.dtype) -> Tensor:
    """Unpack n weights from `codes` (n / 2, rounded up) uint8, in `dtype`.

    scales: (blocks,) float32. The product is computed in float32 and rounded once.
    """
    out = torch.empty(2 * len(codes), dtype=dtype, device=codes.device)
    step = CHUNK if codes.device.type == "cpu" else max(len(codes), 1)
    pairs = _pairs(kind, codes.device)
    for start in range(0, len(codes), step):
        part = codes[start : start + step]
        target = out[2 * start : 2 * (start + len(part))]
        if dtype == torch.float32:
            torch.index_select(pairs, 0, part.int(), out=target.view(torch.int64))
            _multiply(target, scales[2 * start // BLOCK :], BLOCK)
        else:
            products = pairs.index_select(0, part.int()).view(torch.float32)
            target.copy_(_multiply(products, scales[2 * start // BLOCK :], BLOCK))
    return out[:n]


def unpack_scales(codes: Tensor, second: Tensor, offset: Tensor, table: Tensor) -> Tensor:
    """(blocks,) float32 scales from their 8-bit codes: table[code] * second + offset.

    second: (blocks / 256, rounded up). offset: the mean of the scales. table: (256,).
    """
    return _multiply(table.index_select(0, codes.int()), second, SECOND_BLOCK).add_(offset)


def _multiply(x: Tensor, scales: Tensor, size: int) -> Tensor:
    """Multiply groups of `size` values of x (n,), the last may be smaller, by scales. In place."""
    full = len(x) // size
    x[: full * size].view(full, size).mul_(scales[:full].unsqueeze(1))
    if len(x) > full * size:
        x[full * size :].mul_(scales[full])
    return x


def pack(weight: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Pack a weight of any shape: (codes (n / 2, rounded up) uint8, scales (blocks,) float32).

    A weight midway between two values gets the lower one.
    Raises: BaseError if a weight is not finite.
    """
    flat, n = weight.reshape(-1), weight.numel()
    codes = torch.empty(-(-n // 2), dtype=torch.uint8, device=weight.device)
    scales = torch.empty(-(-n // BLOCK), device=weight.device)
    step = 2 * CHUNK if weight.device.type == "cpu" else max(n, 1)
    for start in range(0, n, step):
        part = flat[start : start + step].float()
        rows = torch.nn.functional.pad(part, (0, -len(part) % BLOCK)).view(-1, BLOCK)
        scale = scales[start // BLOCK :][: len(rows)]
        scale.copy_(rows.abs().amax(1))
        _check_finite(scale)
        scaled = rows * (1 / scale.clamp_min(1e-38)).unsqueeze(1)
        nearest = _nearest(scaled.view(-1), kind)  # an odd last byte ends with the code of 0
        target = codes[start // 2 : (start + step) // 2]
        target.copy_((nearest[::2] * 16 + nearest[1::2])[: len(target)])
    return codes, scales


def _nearest(x: Tensor, kind: str) -> Tensor:
    """(n,) uint8: the code whose value is nearest to each x in [-1, 1]."""
    midpoints, order, table = _cells(kind, x.device)
    codes = table.index_select(0, _cell(x))
    ambiguous = (codes == _AMBIGUOUS).nonzero().view(-1)
    codes[ambiguous] = order[torch.bucketize(x[ambiguous], midpoints)]
    return codes


def _cell(x: Tensor) -> Tensor:
    """The cell of each x. It is monotonic in x, so rounding cannot misplace a weight."""
    return x.mul(CELLS / 2).add_(CELLS / 2).int()


@cache
def _cells(kind: str, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(midpoints (15,), rank -> code (16,), cell -> code (CELLS + 1,) or _AMBIGUOUS)."""
    ordered, order = values(kind, device).sort(stable=True)
    midpoints, order = (ordered[1:] + ordered[:-1]) / 2, order.to(torch.uint8)
    centres = (torch.arange(CELLS + 1, device=device) + 0.5) / (CELLS / 2) - 1
    table = order[torch.bucketize(centres, midpoints)]
    table[_cell(midpoints).long()] = _AMBIGUOUS
    return midpoints, order, table


def _check_finite(scales: Tensor) -> None:
    if not scales.isfinite().all():
        raise BaseError(
            "a weight is NaN or infinite, and cannot be quantised.",
            fix="download the model anew, or load it without quantisation",
        )


def pack_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Pack a weight (O, I): (codes (O, I) int8, scales (O,) float32: the largest |w| of each row).

    Weights are rounded to float16 first, as LLM.int8() does, unless one is too large for it.
    Raises: BaseError if a weight is not finite.
    """
    half = weight.half()
    rows = half.float() if half.isfinite().all() else weight.float()
    scales = rows.abs().amax(1)
    _check_finite(scales)
    factors = torch.where(scales > 0, 127 / scales, 0).unsqueeze(1)
    return (rows * factors).round_().to(torch.int8), scales
