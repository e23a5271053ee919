"""The updates of a batch whose rows have an adapter each, against what they compute written out."""

import pytest
import torch

from lorica.kernels.stacked import (
    Groups,
    add_each,
    add_grouped,
    add_looped,
    add_one,
    reference,
    rescale,
)

N, R, I, O = 3, 4, 10, 12
DTYPES = [torch.float32, torch.bfloat16]


def tensors(rows, tokens, dtype, wide=False):
    draw = torch.Generator().manual_seed(0)
    shapes = (rows, tokens, I), (rows, tokens, O), (N, R, I), (N, O, R)
    x, y, a, b = (torch.randn(s, generator=draw).to(dtype) for s in shapes)
    return x, y, *((a.float(), b.float()) if wide else (a, b))


def check(got, want, dtype):
    bound = {torch.float32: 1e-5, torch.bfloat16: 0.15}[dtype]
    torch.testing.assert_close(got, want.to(dtype), atol=bound, rtol=bound)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("wide", [False, True])
def test_one_adapter_and_one_for_each_row(dtype, wide):
    x, y, a, b = tensors(N, 1, dtype, wide)
    pairs = [(u.to(dtype), v.to(dtype)) for u, v in zip(a, b, strict=True)]
    want = reference(x, y, pairs, [0, 1, 2])
    each = y.clone()
    add_each(x, each, a, b)
    check(each, want, dtype)
    for k in range(N):
        one = y.clone()
        add_one(x, one, a[k], b[k])
        check(one, reference(x, y, pairs, [k] * N), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(
    "numbers",
    [[0, 1, 2], [2, 0, 2, 1, 2], [None, 1, 0, None, 2, 1], [0, None, None, 1, 2]],
    ids=str,
)
def test_rows_that_share_adapters(dtype, wide, numbers):
    """Rows without one keep their bits, whatever is computed in the places left over."""
    x, y, a, b = tensors(len(numbers), 1, dtype, wide)
    pairs = [(u.to(dtype), v.to(dtype)) for u, v in zip(a, b, strict=True)]
    want, got = reference(x, y, pairs, numbers), y.clone()
    add_grouped(x, got, a, b, Groups.of(numbers, N, x.device))
    check(got, want, dtype)
    idle = [i for i, k in enumerate(numbers) if k is None]
    assert torch.equal(got[idle], y[idle])


def test_an_adapter_that_overflows_reaches_no_other_row():
    x, y, a, b = tensors(4, 1, torch.float32)
    a[0], numbers = 3e38, [0, None, 1, 2]
    got = y.clone()
    add_grouped(x, got, a, b, Groups.of(numbers, N, x.device))
    pairs = list(zip(a, b, strict=True))
    assert not got[0].isfinite().all()
    check(got[1:], reference(x, y, pairs, numbers)[1:], torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_several_tokens(dtype):
    x, y, a, b = tensors(6, 5, dtype)
    pairs, numbers, got = list(zip(a, b, strict=True)), [1, 1, None, 0, 2, 0], y.clone()
    add_looped(x, got, pairs, [torch.tensor([3, 5]), slice(0, 2), slice(4, 5)])
    check(got, reference(x, y, pairs, numbers), dtype)
    assert torch.equal(got[2], y[2])


def test_sizes_and_shifts():
    y, size, shift = (torch.randn(2, 1, O) for _ in range(3))
    for factor, offset in ((size, None), (None, shift), (size, shift), (None, None)):
        got = y.clone()
        rescale(got, factor, offset)
        want = y * (1 if factor is None else factor) + (0 if offset is None else offset)
        torch.testing.assert_close(got, want)
