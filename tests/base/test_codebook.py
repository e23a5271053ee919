"""The codebook and the kernels of bitsandbytes: both give what the definition says."""

import random

import pytest
import torch
from torch import Tensor, nn

from lorica.base import bitsandbytes_kernels as kernels
from lorica.base import codebook
from lorica.base import quantise as quantise_file
from lorica.base.codebook import BLOCK, SECOND_BLOCK
from lorica.base.footprint import quantised_layers
from lorica.base.load import load
from lorica.base.quantise import QuantisedLinear, quantise
from lorica.base.quantised_model import faulty_kernel_notices, quantise_model
from lorica.errors import BaseError
from tests.base import nf4
from tests.laws.bases import gpt2

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
AVX512_WRONG = [(48, 20), (96, 33), (80, 5), (1376, 16), (16, 4), (1072, 8)]  # (I, O)


def layer_of(width: int, height: int, kind: str, double: bool, dtype: torch.dtype, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    dense = nn.Linear(width, height, bias=False)
    weight = torch.randn(height, width, generator=generator) * 10 ** (seed % 5 - 2)
    dense.weight = nn.Parameter(weight.to(dtype))
    return dense, quantise(dense, kind, double=double)


def defined(layer: QuantisedLinear, dtype: torch.dtype) -> Tensor:
    """What the codes and scales of a layer stand for, by the definition."""
    floats = {
        name: None if part is None else part.view(torch.float32)
        for name in ("scales", "second", "offset", "table")
        if (part := getattr(layer, name)) is None or part.dtype == torch.int32
    }
    if layer.kind == "int8":
        return (layer.codes.float() * (floats["scales"] / 127).unsqueeze(1)).to(dtype)
    scales = floats.get("scales")
    if layer.second is not None:
        scales = nf4.scales(layer.scales, floats["table"], floats["second"], floats["offset"])
    codes = nf4.unpacked(layer.codes, layer.out_features * layer.in_features)
    values = nf4.dequantise(codes, scales, layer.kind).to(dtype)
    return values.view(layer.out_features, layer.in_features)


def cases(n: int):
    draw = random.Random(0)
    for seed in range(n):
        width = draw.choice([draw.randint(1, 300), 16 * draw.randint(1, 30), 64])
        kind = draw.choice(["nf4", "fp4", "int8"])
        yield width, draw.randint(1, 70), kind, draw.random() < 0.5, draw.choice(DTYPES), seed


def test_packed_weights_are_those_of_the_definition_whatever_shape_kind_and_dtype():
    for width, height, kind, double, dtype, seed in cases(200):
        dense, layer = layer_of(width, height, kind, double, dtype, seed)
        where = (width, height, kind, double, dtype)
        if kind != "int8":
            codes, absmax = nf4.quantise(dense.weight.detach(), kind)
            assert torch.equal(layer.codes, nf4.packed(codes, kind)), where
            assert double or torch.equal(layer.scales.view(torch.float32), absmax), where
        for asked in DTYPES:
            want = defined(layer, asked)
            assert torch.equal(layer.weight_as(asked), want), (where, asked)
            assert torch.equal(layer.weight_for_product(asked), want), (where, asked)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_the_codebook_packs_the_bits_of_bitsandbytes(kind):
    """So that a base packed by others, and an adapter trained on it, is the same here."""
    functional = kernels.require().functional
    for width, height, _, _, dtype, seed in cases(30):
        dense, layer = layer_of(width, height, kind, False, dtype, seed)
        codes, state = functional.quantize_4bit(
            dense.weight.detach(), blocksize=64, quant_type=kind
        )
        assert torch.equal(layer.codes, codes.view(-1)), (width, height, dtype)
        assert torch.equal(layer.scales.view(torch.float32), state.absmax)
    device = torch.device("cpu")
    assert torch.equal(codebook.values(kind, device), functional.get_4bit_type(kind, device="cpu"))


def test_weights_in_the_middle_of_two_values_and_beside_it():
    """The cells of the search move no weight, however near to a midpoint it lies."""
    for kind in ("nf4", "fp4"):
        middle = nf4.midpoints(nf4.TABLES[kind].sort().values)
        near = torch.cat(
            [
                middle,
                middle.nextafter(torch.tensor(2.0)),
                middle.nextafter(torch.tensor(-2.0)),
                nf4.TABLES[kind],
            ]
        )
        weight = torch.ones(len(near), 64)
        weight[:, 0] = near
        codes, scales = codebook.pack(weight, kind)
        assert torch.equal(codes, nf4.packed(nf4.quantise(weight, kind)[0], kind))
        assert (scales == 1).all()


def test_large_layers_are_packed_and_unpacked_in_parts(monkeypatch):
    weight = torch.randn(70, 50, generator=torch.Generator().manual_seed(0))
    whole = codebook.pack(weight, "nf4")
    monkeypatch.setattr(codebook, "CHUNK", 96)
    parts = codebook.pack(weight, "nf4")
    assert all(map(torch.equal, whole, parts))
    want = nf4.dequantise(nf4.unpacked(whole[0], 3500), whole[1], "nf4")
    for dtype in DTYPES:
        assert torch.equal(codebook.unpack(*parts, "nf4", 3500, dtype), want.to(dtype))


def test_int8_takes_weights_that_float16_does_not_hold():
    dense = nn.Linear(8, 2, bias=False)
    dense.weight = nn.Parameter(torch.tensor([[1e6] + [5e5] * 7, [0.0] * 8]))
    back = quantise(dense, "int8").weight_as(torch.float32)
    torch.testing.assert_close(back, dense.weight.detach(), rtol=0.01, atol=0)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_the_buffer_of_products_is_one_and_holds_the_weight_asked_for(kind, monkeypatch):
    monkeypatch.setattr(quantise_file, "PART", BLOCK * SECOND_BLOCK)
    one, two = (layer_of(192, height, kind, True, torch.float32)[1] for height in (300, 201))
    for dtype in DTYPES:
        first = one.weight_for_product(dtype)
        assert torch.equal(first, defined(one, dtype))
        second = two.weight_for_product(dtype)
        assert torch.equal(second, defined(two, dtype))
        assert first.data_ptr() == second.data_ptr()
        assert one.weight_as(dtype).data_ptr() != two.weight_as(dtype).data_ptr()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_weights_that_are_not_finite_are_named(kind, value):
    model = gpt2()
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[3, 4] = value
    with pytest.raises(BaseError, match=r"transformer\.h\.1\.mlp\.c_fc of base: .*NaN or infinite"):
        quantise_model(model, "base", torch.float32, kind, double_quantisation=True)


# -- kernels that are wrong ---------------------------------------------------------------------


def as_with_avx512(codes, absmax, blocksize, kind, shape, dtype):
    """What bitsandbytes 0.50.2 gives there: each row takes I // 64 scales, rounded down."""
    height, width = shape
    every = nf4.TABLES[kind][nf4.unpacked(codes.view(-1), height * width)].view(height, width)
    at = torch.arange(height).unsqueeze(1) * width + torch.arange(width)
    if width % 16 == 0 and width % blocksize:
        rows, columns = at // width, at % width
        right = rows * (width // blocksize) + columns // blocksize
    else:
        right = at // blocksize
    return (every * absmax[right.clamp_max(len(absmax) - 1)]).to(dtype)


def all_wrong(*arguments):
    return torch.ones(arguments[4], dtype=arguments[5])


def fails(*arguments):
    raise AssertionError("N must be divisible by block_n")


@pytest.fixture(params=[as_with_avx512, all_wrong, fails], ids=lambda f: f.__name__)
def faulty(request, monkeypatch):
    kernels.require()
    monkeypatch.setattr(torch.ops.bitsandbytes.dequantize_4bit, "default", request.param)
    return request.param


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", [*AVX512_WRONG, (64, 64), (192, 5)], ids=str)
def test_a_faulty_kernel_changes_no_weight(faulty, kind, shape):
    for double in (True, False):
        _, layer = layer_of(*shape, kind, double, torch.float32)
        for dtype in DTYPES:
            assert torch.equal(layer.weight_as(dtype), defined(layer, dtype))


def test_the_scales_of_a_faulty_kernel_are_found_as_well(monkeypatch):
    kernels.require()
    monkeypatch.setattr(
        torch.ops.bitsandbytes.dequantize_blockwise,
        "default",
        lambda codes, *_: torch.zeros(codes.shape),
    )
    _, layer = layer_of(64, 128, "nf4", True, torch.float32)
    assert torch.equal(layer.weight_as(torch.float32), defined(layer, torch.float32))
    assert not layer.unpacks_by_kernel(torch.float32)


def test_layers_that_a_kernel_gets_wrong_are_named(monkeypatch, story_base):
    assert not faulty_kernel_notices(load(str(story_base), quantisation="nf4").model)
    monkeypatch.setattr(torch.ops.bitsandbytes.dequantize_4bit, "default", all_wrong)
    base = load(str(story_base), quantisation="nf4")
    (notice,) = [line for line in base.notices if "incorrectly" in line]
    assert notice.startswith("bitsandbytes dequantises 35 of 35 layers incorrectly")
    for layer in quantised_layers(base.model).values():
        assert torch.equal(layer.weight_as(torch.float32), defined(layer, torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_fused_product_is_checked_too(dtype, monkeypatch):
    _, layer = layer_of(128, 32, "nf4", True, torch.float32)
    weight = layer.weight_as(dtype)

    def product(x, codes, state, noise=0.0):
        return (x.float() @ weight.float().T * (1 + noise)).to(dtype)

    for noise, right in ((0.0, True), (0.2, False)):
        monkeypatch.setattr(kernels.require(), "matmul_4bit", lambda *a, n=noise: product(*a, n))
        layer.checked.clear()
        assert layer.multiplies_by_kernel(dtype) == right
    monkeypatch.setattr(kernels.require(), "matmul_4bit", fails)
    layer.checked.clear()
    assert not layer.multiplies_by_kernel(dtype)
    assert not layer.multiplies_by_kernel(torch.float64)
