"""B-LoRA: y = W x + s Q(B) diag(z Q(E)) Q(A) x, whose ranks and bit widths are learned by gates.

Meo et al., "Bayesian-LoRA: LoRA based Parameter Efficient Fine-Tuning using Optimal Quantization
levels and Rank Values trough Differentiable Bayesian Gates", 2024, arXiv:2406.13046. The formulas
are those of its authors' fork of PEFT (KseniaSycheva/peft, 6548bad). A and B start as N(0, 0.02^2)
and E as N(0, 1): the adapted model does not start as the base. Q rounds to 2 ... n_bits bits, on
one quantization grid per tensor (lorica.kernels.bits), without clipping. z = 1, g1, g1 g2, ...
keeps a prefix of the ranks. The loss gets penalty * R, where R is the sum over all grids of

    mean(q2) (c(2) + c(4) q4 + c(8) q4 q8 + ...)     q: probability that a gate is not 0

For E, q2 are the probabilities of the rank gates; for the other grids q2 = 1. The fork does not
pass its settings to its quantizers: as it runs, it clips nothing, its step sizes are fixed and its
bit gates start at 2. Clipping does harm (docs/methods/results.md).

Differences from the fork:
- The base is not rounded here; the paper rounds it as well. Load it in 4 or 8 bits for that.
- The initial range of a tensor ends at its largest element, where b bits have 2^b - 1 levels.
  Elements that grow past it take more levels. Step sizes are learned as logarithms, so that none
  becomes negative. The outputs of A, E and B are rounded to each token's own range, if at all.
- Gates are drawn once per optimizer step, so that micro-batches and activation checkpointing see
  the same ones. In the first step they are at their medians. The fork's warm-up epochs are left
  out.

Files store A, B and E in float32. Merging, export and evaluation use the final gates.

    B  batch   T  tokens   I  in_features   O  out_features   R  r   Q  grids   N  gates per grid
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorica.core.adapter import Adapter, BaseLayer, Method, Rates
from lorica.core.bounds import Bounds
from lorica.core.site import Kind, Site
from lorica.kernels import bits
from lorica.kernels.dropout import dropout
from lorica.methods.blora.schedule import Gating


@dataclass(frozen=True, kw_only=True)
class Blora(Method, name="blora"):
    kinds: ClassVar[tuple[str, ...]] = ("linear",)
    paper: ClassVar[str] = "Meo et al. 2024, arXiv:2406.13046"
    count: ClassVar[str] = "r * (I + O + 2) + 11"  # with E, of 16 bits
    rates: ClassVar[Rates] = (0.01, 0.0002, 1.0)
    starts_as_base: ClassVar[bool] = False
    r: Annotated[int, Bounds(ge=1)] = 8
    """Largest rank; training may close ranks."""
    alpha: Annotated[float, Bounds(gt=0)] | None = None
    """Numerator of the scale s = alpha / r; None: 2 r."""
    dropout: Annotated[float, Bounds(ge=0, lt=1)] = 0.0
    """Probability of dropping an input coordinate of A, in [0, 1); 0.05 in the paper."""
    n_bits: Literal[4, 8, 16, 32] = 16
    """Largest bit width of a grid."""
    prune_rank: bool = True
    """Learn the ranks as well; false: there is no E."""
    quantise_activations: bool = False
    """Round the outputs of A, E and B as well; such an adapter cannot be merged."""
    zero_start: bool = False
    """Start as the base, with E zero (B if there is no E)."""
    penalty: Annotated[float, Bounds(ge=0)] = 1e-3
    """Weight of R, the cost of bits and ranks, in the loss."""
    cost: Literal["const", "bits"] = "const"
    """const: c(b) = 1. bits: c(b) = b times the grid's multiplications, relative to the largest
    grid."""
    gate_start: float = 6.0
    """Initial value of the gates: at 6 a gate is closed with probability 0.0005, at 2 with
    0.027."""
    gate_lr: Annotated[float, Bounds(gt=0)] = 1e-2
    """Learning rate of the gates, independent of that of A, B and E."""
    scale_lr: Annotated[float, Bounds(gt=0)] = 1e-2
    """Learning rate of the logarithms of the step sizes."""

    def build(self, site: Site, shared: Any) -> "BloraAdapter":
        return (RoundedBlora if self.quantise_activations else BloraAdapter)(site, self)

    def learning_rate(self, parameter: str, base: float, kind: Kind = "linear") -> float:
        return {"gates": self.gate_lr, "log_steps": self.scale_lr}.get(parameter, base)

    def schedule(self, adapters: Mapping[str, Any], total: int, epoch: int) -> Gating:
        return Gating(adapters, self.penalty, by_size=self.cost == "bits")


class BloraAdapter(Adapter):
    """gates: (Q N + R - 1,), those of every grid, then those of the ranks. They are one flat
    vector, to which weight decay does not apply.
    sizes: {grid: the number of multiplications that it takes part in}.
    noise: drawn once per optimizer step for all gates.
    """

    noise: Tensor

    def __init__(self, site: Site, method: Blora):
        super().__init__()
        r, pruned = method.r, method.prune_rank
        inputs, outputs = site.in_features, site.out_features
        self.p, self.scale = method.dropout, 2.0 if method.alpha is None else method.alpha / r
        self.a = nn.Parameter(0.02 * torch.randn(r, inputs))
        self.b = nn.Parameter(0.02 * torch.randn(outputs, r))
        self.e = nn.Parameter(torch.randn(r)) if pruned else None
        self.seed = int(torch.randint(2**62, (), device="cpu"))
        largest = torch.stack([t.detach().abs().max() for t in self.tensors()])
        self.log_steps = nn.Parameter((largest / bits.EDGE).log())
        self.sizes = {"a": r * inputs, "b": r * outputs, **({"e": r} if pruned else {})}
        if method.quantise_activations:
            self.sizes |= {"a_x": r if pruned else r * outputs, "b_x": outputs}
            self.sizes |= {"e_x": r * outputs} if pruned else {}
        self.split = [len(self.sizes) * (method.n_bits.bit_length() - 2), (r - 1) * pruned]
        self.gates = nn.Parameter(torch.full((sum(self.split),), method.gate_start))
        self.register_buffer("noise", torch.zeros(sum(self.split)), persistent=False)
        if method.zero_start:
            nn.init.zeros_(self.b if self.e is None else self.e)

    def tensors(self) -> list[Tensor]:
        return [t for t in (self.a, self.b, self.e) if t is not None]

    def open_gates(self, noise: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        """The gates (N,) of every grid and the active ranks (R,), drawn with `noise`; None:
        final."""
        open_ = (
            bits.final_gates(self.gates) if noise is None else bits.sampled_gates(self.gates, noise)
        )
        grids, ranks = open_.split(self.split)
        grids = grids.view(len(self.sizes), -1)
        if noise is not None:
            grids = grids * bits.not_off(self.gates[: self.split[0]].view_as(grids))
        active = bits.prefix(ranks) if self.split[1] else torch.ones_like(self.b[0])
        return dict(zip(self.sizes, grids, strict=True)), active

    def rounded(self, grids: Mapping[str, Tensor], ranks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Q(A) (R, I), Q(B) (O, R) and z Q(E) (R,), float32."""
        rows = zip(self.tensors(), self.log_steps.exp(), grids.values(), strict=False)
        a, b, *e = (bits.quantise(t, step, gates) for t, step, gates in rows)
        return a, b, ranks * e[0] if e else ranks

    def after(self, x: Tensor, y: Tensor, base: BaseLayer) -> Tensor:
        grids, ranks = self.open_gates(self.noise if self.training else None)
        a, b, e = (t.to(y.dtype) for t in self.rounded(grids, ranks))
        h = bits.on_own_range(F.linear(dropout(x, self.p, self.training), a), grids.get("a_x"))
        h = bits.on_own_range(h * e, grids.get("e_x"))  # (B, T, R)
        return torch.add(y, bits.on_own_range(F.linear(h, b), grids.get("b_x")), alpha=self.scale)

    def factors(self) -> tuple[Tensor, Tensor] | None:
        if "a_x" in self.sizes:
            return None
        grids, ranks = self.open_gates(None)
        a, b, e = self.rounded(grids, ranks)
        return a[: int(ranks.sum())], (self.scale * b * e)[:, : int(ranks.sum())]

    def cost(self, largest: int) -> Tensor:
        """R. largest: multiplications of the largest grid of all sites; 0: every width costs 1."""
        grids, ranks = self.gates.split(self.split)
        sizes = torch.tensor([*self.sizes.values()], device=grids.device)
        prices = bits.expected_cost(
            grids.view(len(sizes), -1), sizes / largest if largest else None
        )
        return prices.sum() - (
            prices[2] * (1 - bits.open_probability(ranks).mean()) if len(ranks) else 0
        )


class RoundedBlora(BloraAdapter):
    affine: ClassVar[bool] = False
