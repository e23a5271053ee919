"""Frozen linear layers with 4 or 8 bits per weight: y = x D(codes)^T + b.

    nf4, fp4   4 bits per weight; one float32 scale, the largest |w|, per block of 64. Double
               quantisation subtracts the mean of the scales and stores each in 8 bits, with one
               float32 per 256 scales
    int8       8 bits per weight; one float32 scale, the largest |w|, per row

Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023, arXiv:2305.14314, section
3; int8 after Dettmers et al., "LLM.int8()", 2022, arXiv:2208.07339, weights only. For the second
level the paper uses FP8; bitsandbytes and this file use a signed 8-bit dynamic map.

base/codebook.py packs. It also unpacks, where no kernel of bitsandbytes passes the check in
base/bitsandbytes_kernels.py. The layers of bitsandbytes are not used, because training and
evaluation must compute the same product for an exact merge. In eval mode on a CPU, Linear4bit
rewrites the codes and rounds the scales to bfloat16 (with AVX512-BF16). Linear8bitLt rounds
activations to float16, where a large one becomes NaN. Here the codes are plain buffers.

    I  in_features   O  out_features
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorica.base import bitsandbytes_kernels as kernels
from lorica.base import codebook
from lorica.base.bitsandbytes_kernels import require
from lorica.base.codebook import BLOCK, SECOND_BLOCK
from lorica.base.frozen_product import input_gradient
from lorica.base.workspace import buffer
from lorica.core.site import PackedLayer, site_of
from lorica.errors import ConfigError

Kind = Literal["nf4", "fp4", "int8"]
KINDS: tuple[str, ...] = get_args(Kind)
PART = 2**18
"""Weights that are unpacked at a time into a buffer: whole blocks of both levels of scales."""
PARTS = ("codes", "scales", "second", "offset", "table")


class QuantisedLinear(PackedLayer):
    """A frozen linear layer with quantised weights. It computes in the dtype of its input.

    codes: uint8 (O * I / 2, rounded up), the first weight in the high half; int8 (O, I).
    scales: of blocks or rows, float32. With double quantisation they are 8-bit codes, with
        second: one scale per 256 scales, offset: their mean, table: (256,) code -> value.
    transposed: the original layer stores its weight as (I, O): Conv1D.
    dequantised: the weight (O, I), if there is memory for it; see `store_dequantised`.
    original_weight: reads the float weight (O, I); None if it is not known.
    original_sample: a few of its values, for the fingerprint; None if it is not known.
    original_digest: of all its values, rounded to bfloat16; None if it is not known.
    checked: (kernel, device, dtype) -> whether bitsandbytes' kernel agrees with the codebook.
    """

    codes: Tensor
    scales: Tensor
    second: Tensor | None
    offset: Tensor | None
    table: Tensor | None
    like: Tensor
    dequantised: Tensor | None

    def __init__(
        self,
        kind: str,
        in_features: int,
        out_features: int,
        bias: Tensor | None,
        dtype: torch.dtype,
        **parts: Tensor | None,
    ):
        super().__init__()
        self.kind = kind
        self.in_features, self.out_features = in_features, out_features
        for name in PARTS:
            part = parts.get(name)
            if part is not None and part.is_floating_point():
                # Stored as int32, because model.to(bfloat16) would round every float buffer.
                part = part.detach().float().contiguous().view(torch.int32)
            self.register_buffer(name, part)
        # Empty. Its device is that of the layer, and its dtype that of the model.
        empty = torch.empty(0, dtype=dtype, device=self.codes.device)
        self.register_buffer("like", empty, persistent=False)
        self.register_buffer("dequantised", None, persistent=False)
        self.bias = (
            None if bias is None else nn.Parameter(bias.detach().to(dtype), requires_grad=False)
        )
        self.transposed = False
        self.original_weight: Callable[[], Tensor] | None = None
        self.original_sample: bytes | None = None
        self.original_digest: str | None = None
        self.checked: dict[tuple[str, str, torch.dtype], bool] = {}

    @property
    def double_quantisation(self) -> bool:
        """Whether the scales are quantised too."""
        return self.second is not None

    @property
    def bits_per_parameter(self) -> float:
        """Bits of codes and scales per weight. `table` is not counted: all layers share it."""
        parts = [getattr(self, name) for name in PARTS if name != "table"]
        used = sum(part.numel() * part.element_size() for part in parts if part is not None)
        return 8 * used / (self.in_features * self.out_features)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            y = _Product.apply(x, self)
        elif x.is_cuda and self.multiplies_by_kernel(x.dtype):
            # One kernel unpacks and multiplies, which is faster for a single token.
            y = require().matmul_4bit(x, self.codes, self.state(x.dtype))
        else:
            y = F.linear(x, self.weight_for_product(x.dtype))
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def requantised(self, weight: Tensor) -> "QuantisedLinear":
        """A new layer: `weight` (O, I), quantised as this layer is; see inits.loftq."""
        with torch.device(weight.device):
            dense = nn.Linear(self.in_features, self.out_features, bias=False)
        dense.weight = nn.Parameter(weight.float(), requires_grad=False)
        packed = quantise(dense, self.kind, double=self.double_quantisation)
        packed.like = self.like
        if self.dequantised is not None:
            packed.store_dequantised()
        return packed

    def store_dequantised(self) -> None:
        """Store the weight in `like.dtype` too, for all forward passes in this dtype."""
        self.dequantised = None
        self.dequantised = self.weight_as(self.like.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantisedLinear":
        before = self.like.dtype
        super()._apply(fn, recurse)
        if self.dequantised is not None and self.like.dtype != before:
            self.store_dequantised()  # a wider dtype has digits that bfloat16 rounded off
        return self

    def weight_as(self, dtype: torch.dtype) -> Tensor:
        """The weight (O, I), dequantised in float32 and rounded to `dtype`."""
        if self.dequantised is not None and self.dequantised.dtype == dtype:
            return self.dequantised
        narrow = torch.float32 if dtype == torch.float64 else dtype
        return self._unpack(narrow, self.unpacks_by_kernel(narrow)).to(dtype)

    def weight_for_product(self, dtype: torch.dtype) -> Tensor:
        """`weight_as`, in a buffer that the next call overwrites; see base/workspace.py."""
        is_stored = self.dequantised is not None and self.dequantised.dtype == dtype
        if is_stored or self.codes.device.type != "cpu" or dtype == torch.float64:
            return self.weight_as(dtype)
        out = buffer(self.out_features, self.in_features, dtype)
        return self._unpack_into(out, self.unpacks_by_kernel(dtype))

    def _unpack(self, dtype: torch.dtype, by_kernel: bool) -> Tensor:
        n = self.out_features * self.in_features
        return self._unpack_part(0, n, dtype, by_kernel).view(self.out_features, self.in_features)

    def _unpack_into(self, out: Tensor, by_kernel: bool) -> Tensor:
        """Unpack in parts that fit the cache. In place. Returns: out (O, I)."""
        flat, n = out.view(-1), out.numel()
        size = PART if self.kind != "int8" else max(PART // self.in_features, 1) * self.in_features
        for start in range(0, n, size):
            end = min(start + size, n)
            flat[start:end] = self._unpack_part(start, end, out.dtype, by_kernel)
        return out

    def _unpack_part(self, start: int, end: int, dtype: torch.dtype, by_kernel: bool) -> Tensor:
        """(end - start,) weights in row-major order, from a multiple of PART, or of I for int8."""
        if self.kind == "int8":
            rows = slice(start // self.in_features, end // self.in_features)
            scales = self.scales.view(torch.float32)[rows].unsqueeze(1) / 127
            return (self.codes[rows].float() * scales).to(dtype).view(-1)
        module = kernels if by_kernel else codebook
        scales = self.scales[start // BLOCK : -(-end // BLOCK)]
        if self.second is None or self.offset is None or self.table is None:
            scales = scales.view(torch.float32)
        else:
            second = self.second.view(torch.float32)[start // (BLOCK * SECOND_BLOCK) :]
            second = second[: -(-len(scales) // SECOND_BLOCK)]
            offset, table = self.offset.view(torch.float32), self.table.view(torch.float32)
            scales = module.unpack_scales(scales, second, offset, table)
        codes = self.codes[start // 2 : -(-end // 2)]
        if by_kernel:
            return kernels.unpack_rows(codes, scales, self.kind, self.in_features, dtype).view(-1)
        return codebook.unpack(codes, scales, self.kind, end - start, dtype)

    def unpacks_by_kernel(self, dtype: torch.dtype) -> bool:
        """Whether bitsandbytes unpacks these codes to `dtype` correctly here. Checked once."""
        if self.kind == "int8" or (self.out_features * self.in_features) % BLOCK:
            return False
        key = ("unpack", self.codes.device.type, dtype)
        if key not in self.checked:
            calls = [lambda: self._unpack(dtype, True)]
            if self.codes.device.type == "cpu":
                out = buffer(self.out_features, self.in_features, dtype)
                calls.append(lambda: self._unpack_into(out, True))
            self.checked[key] = kernels.unpacks_correctly(
                calls, lambda start, end: self._unpack_part(start, end, dtype, False)
            )
        return self.checked[key]

    def multiplies_by_kernel(self, dtype: torch.dtype) -> bool:
        """Whether bitsandbytes multiplies a row by these codes correctly on a GPU. Checked once."""
        if self.kind == "int8" or self.in_features % BLOCK or dtype == torch.float64:
            return False
        key = ("multiply", self.codes.device.type, dtype)
        if key not in self.checked:
            weight = self.weight_as(dtype)
            self.checked[key] = kernels.multiplies_correctly(self.codes, self.state(dtype), weight)
        return self.checked[key]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "checked": {}}  # a copy may be used on another processor

    def unpacked(self) -> tuple[Tensor, Tensor | None]:
        """(weight (O, I), bias (O,) or None), float32, rounded to `like.dtype` as in `forward`."""
        bias = None if self.bias is None else self.bias.detach().float()
        return self.weight_as(self.like.dtype).float(), bias

    def state(self, dtype: torch.dtype) -> Any:
        """The QuantState that bitsandbytes expects with 4-bit codes."""
        functional = require().functional
        scales, second = self.scales, None
        if self.second is not None and self.table is not None:
            second = functional.QuantState(
                absmax=self.second.view(torch.float32),
                code=self.table.view(torch.float32),
                blocksize=SECOND_BLOCK,
                dtype=torch.float32,
            )
        else:
            scales = scales.view(torch.float32)
        return functional.QuantState(
            absmax=scales,
            shape=torch.Size((self.out_features, self.in_features)),
            code=codebook.values(self.kind, self.codes.device),
            blocksize=BLOCK,
            quant_type=self.kind,
            dtype=dtype,
            state2=second,
            offset=None if self.offset is None else self.offset.view(torch.float32),
        )

    def extra_repr(self) -> str:
        double = ", double quantisation" if self.double_quantisation else ""
        bias = "" if self.bias is not None else ", bias=False"
        return f"{self.in_features}, {self.out_features}, {self.kind}{double}{bias}"


class _Product(torch.autograd.Function):
    """x D(codes)^T. The backward pass unpacks the weight again; see `store_dequantised`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantisedLinear) -> Tensor:  # type: ignore[override]
        # A snapshot, because an adapter may replace the codes for this call only.
        ctx.layer, own = object.__new__(QuantisedLinear), vars(layer)
        ctx.layer.__dict__ = own | {key: dict(own[key]) for key in ("_buffers", "_parameters")}
        return F.linear(x, layer.weight_for_product(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return input_gradient(grad, ctx.layer.weight_for_product(grad.dtype)), None


@torch.no_grad()
def quantise(layer: nn.Module, kind: str, *, double: bool = True) -> QuantisedLinear:
    """Quantise a float linear layer (or Conv1D). Returns a new layer.

    double: quantise the scales too; ignored for int8.
    Raises: ConfigError for another kind; MissingError without bitsandbytes; BaseError for weights
        that are not finite.
    """
    check_kind(kind)
    require()
    site = site_of("", layer)
    assert site is not None and site.kind == "linear" and site.is_dense
    weight, bias = layer._parameters["weight"], layer._parameters.get("bias")
    assert weight is not None
    parts: dict[str, Tensor | None]
    matrix = weight.detach().T if site.transposed else weight.detach()  # (O, I)
    if kind == "int8":
        codes, scales = codebook.pack_int8(matrix)
        parts = {"codes": codes, "scales": scales}
    else:
        codes, scales = codebook.pack(matrix, kind)
        parts = {"codes": codes, **(kernels.pack_scales(scales) if double else {"scales": scales})}
    shape = site.in_features, site.out_features
    packed = QuantisedLinear(kind, *shape, bias, site.like.dtype, **parts)
    packed.transposed = site.transposed
    return packed


def check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ConfigError(
            f"quantisation is {kind!r}.", known=", ".join([*KINDS, "none"]), fix="try nf4"
        )
