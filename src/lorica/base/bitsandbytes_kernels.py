"""The kernels of bitsandbytes that lorica uses, each held to the codebook before it is trusted.

A kernel depends on the processor. With AVX-512 the CPU kernel of bitsandbytes 0.50.2 takes wrong
scales when a row of the matrix holds 16 k weights and no whole number of blocks (48, 96, 1376).
So such a matrix is passed as rows of one block each, which that kernel unpacks correctly. And its
result is compared with base/codebook.py for every layer, dtype and device before it is used. Where
it differs, the codebook unpacks the layer: about three times slower on the CPU, and always correct.
"""

import logging
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lorica.base.codebook import BLOCK, SECOND_BLOCK
from lorica.errors import MissingError

SAMPLE, SAMPLES = BLOCK * SECOND_BLOCK, 16
"""Weights that are compared at a time, and how often; smaller layers are compared whole."""


def require() -> Any:
    """bitsandbytes. Raises: MissingError if it is not installed."""
    if "bitsandbytes" not in sys.modules:  # importing it recommends a package that lorica needs not
        logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        import bitsandbytes
    except ImportError as error:
        raise MissingError(
            "quantised bases need bitsandbytes, which is not installed.",
            why=error,
            fix='pip install "lorica[quantisation]"',
        ) from None
    return bitsandbytes


def unpack_rows(codes: Tensor, scales: Tensor, kind: str, width: int, dtype: torch.dtype) -> Tensor:
    """The weights (2 * codes,) in `dtype`, by bitsandbytes. All blocks are full.

    width: of the matrix. The kernel is fastest on its own rows, if they hold whole blocks.
    """
    require()
    n = 2 * len(codes)
    columns = width if width % BLOCK == 0 and n % width == 0 else BLOCK
    shape = (n // columns, columns)
    return torch.ops.bitsandbytes.dequantize_4bit.default(codes, scales, BLOCK, kind, shape, dtype)


def unpack_scales(codes: Tensor, second: Tensor, offset: Tensor, table: Tensor) -> Tensor:
    """(blocks,) float32 scales from their 8-bit codes, by bitsandbytes."""
    require()
    kernel = torch.ops.bitsandbytes.dequantize_blockwise.default
    return kernel(codes, second, table, SECOND_BLOCK, torch.float32).add_(offset)


def pack_scales(scales: Tensor) -> dict[str, Tensor | None]:
    """Double quantisation: 8-bit codes of (scale - mean) in blocks of 256.

    Returns: scales (blocks,) uint8, second (blocks / 256, rounded up), offset (), table (256,).
    """
    offset = scales.double().mean().float()  # a float32 sum depends on the number of threads
    codes, state = require().functional.quantize_blockwise(scales - offset, blocksize=SECOND_BLOCK)
    return {"scales": codes, "second": state.absmax, "offset": offset, "table": state.code}


@torch.no_grad()
def unpacks_correctly(
    calls: list[Callable[[], Tensor]], wanted: Callable[[int, int], Tensor]
) -> bool:
    """Compare what each call of a kernel gives (O, I) with the codebook, up to one rounding.

    wanted: the weights (end - start,) by the codebook.
    """

    def compare(call: Callable[[], Tensor]) -> bool:
        weight = call().view(-1)
        last = (len(weight) - 1) // SAMPLE
        starts = sorted({i * last // (SAMPLES - 1) * SAMPLE for i in range(SAMPLES)})
        ends = [min(start + SAMPLE, len(weight)) for start in starts]
        return all(
            _close(weight[start:end], wanted(start, end))
            for start, end in zip(starts, ends, strict=True)
        )

    return all(_holds(lambda call=call: compare(call)) for call in calls)


@torch.no_grad()
def multiplies_correctly(codes: Tensor, state: Any, weight: Tensor) -> bool:
    """Compare the fused product of one row with that of `weight` (O, I), in its dtype.

    The bound: I products, summed in float32 in any order, and rounded to the dtype.
    """

    def compare() -> bool:
        n = weight.shape[1]
        x = torch.linspace(-1, 1, n, device=weight.device).to(weight.dtype).unsqueeze(0)
        product = require().matmul_4bit(x, codes, state).double()
        wanted = F.linear(x.double(), weight.double())
        largest = F.linear(x.double().abs(), weight.double().abs())
        error = 4 * torch.finfo(weight.dtype).eps + n * torch.finfo(torch.float32).eps
        return bool(((product - wanted).abs() <= error * largest).all())

    return _holds(compare)


def _holds(compare: Callable[[], bool]) -> bool:
    """The result of a comparison; a kernel that is not there or that fails is not trusted."""
    try:
        return compare()
    except (AssertionError, RuntimeError, ValueError):
        return False


def _close(x: Tensor, wanted: Tensor) -> bool:
    tiny = torch.finfo(torch.float32).tiny  # a kernel may round what is below to zero
    return torch.allclose(x.float(), wanted.float(), rtol=torch.finfo(x.dtype).eps, atol=tiny)
