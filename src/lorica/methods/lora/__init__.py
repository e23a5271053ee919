"""LoRA: y = W x + s B A x.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, arXiv:2106.09685, section
4.1; s = alpha / r. Variants: s = alpha / sqrt(r) is rsLoRA, Kalajdzievski, 2023, arXiv:2312.03732.
A larger learning rate for B is LoRA+, Hayou et al., 2024, arXiv:2402.12354; vectors (bias, DoRA's
m) get it too, as in its authors' code (lora_plus.py, a0c44bf) and in PEFT's. Other initial values
of A and B have a file each in lorica.inits. For an embedding, A is looked up by token id and starts
at zero, so that A gets the larger rate. (LoRA+'s authors: a fixed 1e-6.) Experts: lora/experts.py.

    B  batch   T  tokens   I  in_features   O  out_features   R  r
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorica.core.adapter import Adapter, BaseLayer, Method, Rates
from lorica.core.bounds import Bounds
from lorica.core.initialization import Initialization, initialization_skipped, parse_initialization
from lorica.core.requantised import RequantisedLayer
from lorica.core.site import Kind, Site
from lorica.errors import ConfigError, TargetError
from lorica.kernels.low_rank import low_rank, low_rank_segments
from lorica.methods.lora.experts import ExpertLora


@dataclass(frozen=True, kw_only=True)
class Lora(Method, name="lora"):
    kinds: ClassVar[tuple[str, ...]] = ("linear", "embedding", "expert")
    paper: ClassVar[str] = "Hu et al. 2021, arXiv:2106.09685"
    count: ClassVar[str] = "r * (I + O)"
    rates: ClassVar[Rates] = (0.007, 0.0002, 1.0)
    rate_source: ClassVar[str] = "Dettmers et al. 2023, arXiv:2305.14314 (7B and 13B)"
    r: Annotated[int, Bounds(ge=1)] = 8
    """Rank of the update. Parameters per layer: r * (I + O)."""
    alpha: Annotated[float, Bounds(gt=0)] | None = None
    """Numerator of the scale s; None: 2 r, so that s does not depend on r."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(r) in place of alpha / r (rsLoRA)."""
    dropout: Annotated[float, Bounds(ge=0, lt=1)] = 0.0
    """Probability of dropping an input coordinate of A, in [0, 1)."""
    init: str = "kaiming"
    """Initial values of A and B: kaiming, gaussian, orthogonal, pissa (pissa_niter_4: faster),
    olora, loftq (for a quantised base; loftq_iters_5: five rounds) or eva (from data; eva_rho_2:
    at most rank 2 r at a site)."""
    loraplus_lr_ratio: Annotated[float, Bounds(ge=1)] = 1.0
    """Learning rate of B and of vectors, divided by that of A (LoRA+); at least 1. For embeddings,
    that of A divided by that of B. Without learning_rate, the default is divided by the square
    root of this ratio."""
    lora_bias: bool = False
    """Train a bias as well: y = W x + s (B A x + bias)."""

    def __post_init__(self):
        super().__post_init__()
        try:
            parse_initialization(self.init)
        except ConfigError as error:
            raise ConfigError(
                f"{self.name}.init is {self.init!r}: {error.what}",
                fix=error.fix or "name one of these",
                **error.facts,
            ) from None

    @property
    def numerator(self) -> float:
        return 2.0 * self.r if self.alpha is None else self.alpha

    @property
    def scale(self) -> float:
        return self.numerator / self.divisor(self.r)

    def divisor(self, r: int) -> float:
        """What alpha is divided by at rank `r`."""
        return math.sqrt(r) if self.use_rslora else r

    @property
    def initialization(self) -> Initialization:
        return parse_initialization(self.init)

    @property
    def needs_data(self) -> bool:
        """Whether the adapter must see data (lorica.inits.eva.calibrate) before training."""
        return self.initialization.needs_data

    @property
    def replaces_weights(self) -> bool:
        return self.initialization.requantises

    def build(self, site: Site, shared: Any) -> "LoraAdapter | ExpertLora":
        return ExpertLora(site, self) if site.kind == "expert" else LoraAdapter(site, self)

    @property
    def rate_factor(self) -> float:
        return self.loraplus_lr_ratio**-0.5

    def learning_rate(self, parameter: str, base: float, kind: Kind = "linear") -> float:
        slow = "b" if kind == "embedding" else "a"  # the factor that starts away from zero
        return base if parameter == slow else base * self.loraplus_lr_ratio


class LoraAdapter(Adapter):
    """a0, b0: frozen initial A and B, whose product is subtracted (PiSSA, OLoRA); else None.
    a1, b1: the layer runs with the quantised codes of W - s B1 A1 (LoftQ with several rounds), in a
        copy of the layer; else None.
    waits: the initialization needs data and has not seen any.
    """

    a0: Tensor | None
    b0: Tensor | None
    a1: Tensor | None
    b1: Tensor | None

    def __init__(self, site: Site, method: Lora):
        super().__init__()
        self.r, self.numerator, self.scale = method.r, method.numerator, method.scale
        self.p, self.lookup, self.gain = method.dropout, site.kind == "embedding", site.gain
        if self.lookup and method.lora_bias:
            raise TargetError(
                f"{site.name} is an embedding, for which lora_bias is not defined.",
                fix="leave lora_bias out, or remove this layer from target_modules",
            )
        init, sizes = method.initialization, (site, method.r, method.scale)
        a, b = init.factors(*sizes)
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)
        self.register_buffer("a0", a.clone() if init.subtracts_initial else None)
        self.register_buffer("b0", b.clone() if init.subtracts_initial else None)
        a1, b1 = init.requantised_factors(*sizes) if init.requantises else (None, None)
        self.register_buffer("a1", a1)
        self.register_buffer("b1", b1)
        self.requantised = RequantisedLayer()
        self.bias = nn.Parameter(torch.zeros(site.out_features)) if method.lora_bias else None
        self.waits = init.needs_data and not initialization_skipped()

    def after(self, x: Tensor, y: Tensor, base: BaseLayer) -> Tensor:
        if self.waits and self.training and torch.is_grad_enabled():
            raise ConfigError(
                "this adapter is initialized from data, and has not seen any.",
                fix="call lorica.inits.eva.calibrate(model, batches) before the first step",
            )
        a, b = self.pair()
        scale = self.scale * self.gain
        if self.lookup:
            h = F.embedding(x, a.T.to(y.dtype))  # (B, T, R)
            return torch.add(y, F.linear(h, b.to(y.dtype)), alpha=scale)  # (B, T, O)
        y = low_rank(x, y, a, b, scale, self.p if self.training else 0.0)
        return y if self.bias is None else torch.add(y, self.bias.to(y.dtype), alpha=scale)

    @classmethod
    def apply_many(
        cls, adapters: Sequence[Any], sizes: Sequence[int], x: Tensor, y: Tensor, base: BaseLayer
    ) -> Tensor | None:
        if cls.after is not LoraAdapter.after:  # that of a subclass
            return None
        return LoraAdapter.add_low_rank(adapters, sizes, x, y)

    @staticmethod
    def add_low_rank(
        adapters: "Sequence[LoraAdapter]", sizes: Sequence[int], x: Tensor, y: Tensor
    ) -> Tensor | None:
        """y plus the update of each segment, in one pass; None: some need a pass of their own."""
        if any(a.lookup or a.waits or a.bias is not None or a.p for a in adapters):
            return None
        pairs = [(*adapter.pair(), adapter.scale * adapter.gain) for adapter in adapters]
        return low_rank_segments(x, y, pairs, sizes)

    def pair(self) -> tuple[Tensor, Tensor]:
        """The update without the scale, as factors: (a (R, I), b (O, R)), or of rank 2 R."""
        if self.a0 is None or self.b0 is None:
            return self.a, self.b
        # B A - B0 A0 = B (A - A0) + (B - B0) A0, which does not subtract two large products
        a = torch.cat([self.a - self.a0, self.a0])
        return a, torch.cat([self.b, self.b - self.b0], dim=1)

    def weights(self, layer: nn.Module) -> dict[str, Tensor]:
        if self.a1 is None or self.b1 is None:
            return {}
        requantised = self.requantised.build(layer, self.a1, self.b1, self.scale)
        return {key: t for key, t in requantised._buffers.items() if t is not None}

    def factors(self) -> tuple[Tensor, Tensor] | None:
        if self.a1 is not None:
            return None  # the difference between two sets of codes has full rank
        a, b = self.pair()
        return a, self.scale * b

    def bias_shift(self) -> Tensor | None:
        return None if self.bias is None else self.scale * self.bias

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.a1 is not None:  # `weights` has been called and has filled `requantised`
            weight = self.requantised.layer.unpacked()[0]
        if (shift := self.bias_shift()) is not None:
            bias = shift if bias is None else bias + shift
        a, b = self.pair()
        return torch.addmm(weight, b, a, alpha=self.scale), bias
