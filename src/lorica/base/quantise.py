"""Linear layers kept in 4 or 8 bits a weight, through bitsandbytes: y = x D(codes)^T + b.

    nf4, fp4   4 bits a weight; one float32 scale, the largest |w|, for a block of 64. Double
               quantisation keeps the scales, less their mean, in 8 bits each, with one float32
               for 256 of them
    int8       8 bits a weight; one float32 scale, the largest |w|, for a row

Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023, arXiv:2305.14314, section
3; int8 after Dettmers et al., "LLM.int8()", 2022, arXiv:2208.07339, weights only. The paper
writes FP8 for the second level; bitsandbytes takes its signed 8-bit dynamic map, and so do we.

base/codebook.py packs. It also unpacks, where no kernel of bitsandbytes is shown to be correct:
see base/bitsandbytes_kernels.py. Here the bits are plain buffers, and training and evaluation
compute the same product, so that merging stays exact. bitsandbytes' own layers do not: in eval mode
on a CPU its Linear4bit rewrites the codes and rounds the scales to bfloat16 (with AVX512-BF16), and
its Linear8bitLt rounds activations through float16, where a large one becomes NaN.

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
from lorica.base.workspace import buffer
from lorica.core.site import PackedLayer, site_of
from lorica.errors import ConfigError

Kind = Literal["nf4", "fp4", "int8"]
KINDS: tuple[str, ...] = get_args(Kind)
PART = 2**18
"""Weights that are unpacked at a time into a buffer: whole blocks of both levels of scales."""
PARTS = ("codes", "scales", "second", "offset", "table")


class QuantisedLinear(PackedLayer):
    """A frozen linear layer in a few bits a weight. It computes in the dtype of its input.

    codes: uint8 (O * I / 2, rounded up), the first weight in the high half; int8 (O, I).
    scales: of blocks or rows; the 8-bit codes of them where they are quantised again, with
        second: the scales of 256 scales each, offset: their mean, table: (256,) code -> value.
    transposed: the layer that it stands for keeps its weight (I, O): Conv1D.
    kept: the weight (O, I) dequantised, if there is memory for it; see `keep`.
    original_weight: reads the weight that was quantised, (O, I); None when it is not known.
    original_sample: a few of its values, for the fingerprint; None when it is not known.
    original_digest: of all its values, rounded to bfloat16; None when it is not known.
    checked: (kernel, device, dtype) -> whether bitsandbytes' kernel agrees with the codebook.
    """

    codes: Tensor
    scales: Tensor
    second: Tensor | None
    offset: Tensor | None
    table: Tensor | None
    like: Tensor
    kept: Tensor | None

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
                # Held as bits, because model.to(bfloat16) would round every float buffer.
                part = part.detach().float().contiguous().view(torch.int32)
            self.register_buffer(name, part)
        # Empty: it has the device of the layer, and the dtype of the model around it.
        empty = torch.empty(0, dtype=dtype, device=self.codes.device)
        self.register_buffer("like", empty, persistent=False)
        self.register_buffer("kept", None, persistent=False)
        kept = None if bias is None else nn.Parameter(bias.detach().to(dtype), requires_grad=False)
        self.bias = kept
        self.transposed = False
        self.original_weight: Callable[[], Tensor] | None = None
        self.original_sample: bytes | None = None
        self.original_digest: str | None = None
        self.checked: dict[tuple[str, str, torch.dtype], bool] = {}

    @property
    def double_quantisation(self) -> bool:
        """The scales are quantised too."""
        return self.second is not None

    @property
    def bits_per_parameter(self) -> float:
        """Bits that codes and scales take, for each weight. `table` is the same in all layers."""
        parts = [self._buffers[name] for name in PARTS if name != "table"]
        used = sum(part.numel() * part.element_size() for part in parts if part is not None)
        return 8 * used / (self.in_features * self.out_features)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            y = _Product.apply(x, self)
        elif x.is_cuda and self.multiplies_by_kernel(x.dtype):
            # One kernel unpacks and multiplies: for a single token it takes a third of the time.
            y = require().matmul_4bit(x, self.codes, self.state(x.dtype))
        else:
            y = F.linear(x, self.weight_for_product(x.dtype))
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def requantised(self, weight: Tensor) -> "QuantisedLinear":
        """Another weight (O, I), quantised as this layer is; see inits.loftq."""
        with torch.device(weight.device):
            dense = nn.Linear(self.in_features, self.out_features, bias=False)
        dense.weight = nn.Parameter(weight.float(), requires_grad=False)
        packed = quantise(dense, self.kind, double=self.double_quantisation)
        packed.like = self.like
        if self.kept is not None:
            packed.keep()
        return packed

    def keep(self) -> None:
        """Keep the weight dequantised in `like.dtype`, for all forward passes in this dtype."""
        self.kept = None
        self.kept = self.weight_as(self.like.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantisedLinear":
        before = self.like.dtype
        super()._apply(fn, recurse)
        if self.kept is not None and self.like.dtype != before:
            self.keep()  # what bfloat16 rounded off, a wider dtype has
        return self

    def weight_as(self, dtype: torch.dtype) -> Tensor:
        """The weight that the codes stand for, (O, I), computed in float32, rounded to `dtype`."""
        if self.kept is not None and self.kept.dtype == dtype:
            return self.kept
        near = torch.float32 if dtype == torch.float64 else dtype
        return self._unpack(near, self.unpacks_by_kernel(near)).to(dtype)

    def weight_for_product(self, dtype: torch.dtype) -> Tensor:
        """The same weight, in memory that the next call takes again; see base/workspace.py."""
        kept = self.kept is not None and self.kept.dtype == dtype
        if kept or self.codes.device.type != "cpu" or dtype == torch.float64:
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
        """bitsandbytes unpacks these codes to `dtype` correctly on their device. Checked once."""
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
        """bitsandbytes multiplies one row by these codes correctly, on a GPU. Checked once."""
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
        """(weight (O, I), bias (O,) or None) as float32, with what `like.dtype` rounds off gone:
        the numbers that the product is made of."""
        bias = None if self.bias is None else self.bias.detach().float()
        return self.weight_as(self.like.dtype).float(), bias

    def state(self, dtype: torch.dtype) -> Any:
        """What bitsandbytes keeps beside 4-bit codes."""
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
    """x D(codes)^T. The backward pass unpacks the weight again: keeping it would cost the memory
    that the codes save, which is `keep`'s to spend."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantisedLinear) -> Tensor:  # type: ignore[override]
        # As it is now: an adapter may put other codes in place for this call alone.
        ctx.layer = now = object.__new__(QuantisedLinear)
        now.__dict__ = {**layer.__dict__, "_buffers": dict(layer._buffers)}
        return F.linear(x, layer.weight_for_product(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad @ ctx.layer.weight_for_product(grad.dtype), None


@torch.no_grad()
def quantise(layer: nn.Module, kind: str, *, double: bool = True) -> QuantisedLinear:
    """A dense linear layer (or Conv1D) in fewer bits.

    double: quantise the scales too; without meaning for int8.
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
    laid = weight.detach().T if site.transposed else weight.detach()
    if kind == "int8":
        codes, scales = codebook.pack_int8(laid)
        parts = {"codes": codes, "scales": scales}
    else:
        codes, scales = codebook.pack(laid, kind)
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
