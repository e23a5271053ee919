"""MoRA: y = W x + decompress(M compress(x)), with one square M in place of LoRA's two factors.

Jiang et al., "MoRA: High-Rank Updating for Parameter-Efficient Fine-Tuning", 2024,
arXiv:2405.12130, section 3. M has N = sqrt(r (I + O)) rows, rounded, so that it has as many
elements as a LoRA of rank r. It starts at zero, and there is no scale and no alpha. `compress` and
`decompress` have no parameters:

    mora_type   compress                              decompress
    1           sum of coordinates N apart            repeated end to end
    2           sum of neighbours                     each repeated beside itself
    3           sum of neighbours                     repeated end to end
    4           sum of coordinates N apart            each repeated beside itself
    6           groups of N, each rotated by its      the outputs of all groups end to
                index as in rotary embeddings         end, cut or repeated to O

The types are those of its code (in the paper, type 1 also sums neighbours). The last group is
filled with coordinates from the front. Types 1 to 4 have rank N, not r, and export as such a LoRA.
Type 6 reaches any rank and has no LoRA of low rank ("approximate" in the table). If I > O, type 6
cuts off the outputs of its last groups, so that coordinates of x beyond O have no effect.

reset_steps makes it ReMoRA: every reset_steps steps M is added to a sum, the next of types 1 to 4
takes over, and M and its optimizer state start anew. The update is linear in M, so that the adapter
stores one sum for each of the four types, and the base is unchanged. The paper merges into the base
and warms the learning rate up again; here the run's schedule goes on.

    B  batch   T  tokens   I  in_features   O  out_features   N  rows of M   G  groups
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorica.core.adapter import Adapter, BaseLayer, Method, Rates
from lorica.core.bounds import Bounds
from lorica.core.schedule import Schedule
from lorica.core.site import Site
from lorica.errors import ConfigError
from lorica.kernels.dropout import dropout

CYCLE = (1, 2, 3, 4)  # take turns in ReMoRA
ROTATED = 6
APART = (1, 4)  # compress by coordinates N apart; 2 and 3 by neighbours
END_TO_END = (1, 3, 6)  # decompress end to end; 2 and 4 repeat each beside itself


@dataclass(frozen=True, kw_only=True)
class Mora(Method, name="mora"):
    kinds: ClassVar[tuple[str, ...]] = ("linear",)
    paper: ClassVar[str] = "Jiang et al. 2024, arXiv:2405.12130"
    count: ClassVar[str] = "(int((r * (I + O)) ** 0.5 + 0.5) // 2 * 2) ** 2"  # 1 to 4: may be odd
    rates: ClassVar[Rates] = (0.005, 0.0003, 0.5)
    rate_source: ClassVar[str] = "Jiang et al. 2024"
    to_lora: ClassVar[Literal["exact", "approximate", "never"]] = "approximate"
    r: Annotated[int, Bounds(ge=1)] = 8
    """Rank of the LoRA with as many parameters."""
    mora_type: Literal[1, 2, 3, 4, 6] = 6
    """How x is compressed and the output decompressed: 6 rotates groups, 1 to 4 sum coordinates."""
    dropout: Annotated[float, Bounds(ge=0, lt=1)] = 0.0
    """Probability of dropping an input coordinate of M, in [0, 1)."""
    reset_steps: Annotated[int, Bounds(ge=1)] | None = None
    """ReMoRA: optimizer steps after which M is added to the sum and starts anew; None: never."""

    def __post_init__(self):
        super().__post_init__()
        if self.reset_steps is not None and self.mora_type == ROTATED:
            raise ConfigError(
                "mora.reset_steps needs one of mora_type 1 to 4, which take turns.",
                fix="set mora_type to 1, or leave reset_steps out",
            )

    def build(self, site: Site, shared: Any) -> "MoraAdapter":
        return MoraAdapter(site, self)

    def schedule(self, adapters: Mapping[str, Any], total: int, epoch: int) -> Schedule | None:
        if self.reset_steps is None:
            return None
        if self.reset_steps >= total:
            raise ConfigError(
                f"mora.reset_steps is {self.reset_steps}, and the run has {total} steps: "
                "M would never be reset.",
                fix=f"set it to at most {max(total - 1, 1)}, or leave it out",
            )
        return Resets(adapters, self.reset_steps)


class MoraAdapter(Adapter):
    cos: Tensor
    sin: Tensor
    kept: Tensor
    turn: Tensor

    def __init__(self, site: Site, method: Mora):
        super().__init__()
        self.p, self.form = method.dropout, method.mora_type
        self.inputs, self.outputs = site.in_features, site.out_features
        n = int(math.sqrt((self.inputs + self.outputs) * method.r) + 0.5)
        n = max(n - n % 2, 2) if self.form == ROTATED else n  # even: halves rotate into each other
        self.m = nn.Parameter(torch.zeros(n, n))
        if self.form == ROTATED:
            slow = 10000.0 ** (-2 * torch.arange(n // 2).double() / n)
            angle = torch.outer(torch.arange(-(-self.inputs // n)).double(), slow).repeat(1, 2)
            self.register_buffer("cos", angle.cos().float(), persistent=False)  # (G, N)
            self.register_buffer("sin", angle.sin().float(), persistent=False)
        self.types = (self.form,) if method.reset_steps is None else CYCLE
        if self.types == CYCLE:
            self.register_buffer("kept", torch.zeros(len(CYCLE), n, n))
            self.register_buffer("turn", torch.eye(len(CYCLE))[CYCLE.index(self.form)])  # one-hot

    def after(self, x: Tensor, y: Tensor, base: BaseLayer) -> Tensor:
        return y + self.branch(dropout(x, self.p, self.training), y.dtype)

    def branch(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The update of y: (B, T, O)."""
        pairs = zip(self.types, self.squares(), strict=True)
        terms = [
            self.decompress(F.linear(self.compress(x, form), m.to(dtype)), form)
            for form, m in pairs
        ]
        return reduce(torch.add, terms)

    def squares(self) -> tuple[Tensor, ...]:
        """The M of each of `types`, with its sum of earlier ones."""
        if self.types != CYCLE:
            return (self.m,)
        return (self.kept + self.turn[:, None, None] * self.m).unbind()

    def compress(self, x: Tensor, form: int) -> Tensor:
        """(B, T, I) -> (B, T, N), or (B, T, G, N) for type 6."""
        n = len(self.m)
        if form not in (*APART, ROTATED):
            size, more = divmod(self.inputs, n)  # `more` groups have one coordinate more
            wide, narrow = x.split((more * (size + 1), (n - more) * size), -1)
            sums = wide.unflatten(-1, (more, size + 1)), narrow.unflatten(-1, (n - more, size))
            return torch.cat([s.sum(-1) for s in sums], -1)
        whole, rest = divmod(-(-self.inputs // n) * n, self.inputs)
        if rest or whole > 1:  # fill the last group from the front
            x = torch.cat([x] * whole + [x[..., :rest]], -1)
        groups = x.unflatten(-1, (-1, n))
        if form in APART:
            return groups.sum(-2)
        left, right = groups.chunk(2, -1)
        rotated = torch.cat([-right, left], -1)
        return groups * self.cos.to(x.dtype) + rotated * self.sin.to(x.dtype)

    def decompress(self, h: Tensor, form: int) -> Tensor:
        """(B, T, N), or (B, T, G, N) for type 6 -> (B, T, O)."""
        h = h.flatten(-2) if form == ROTATED else h
        if form in END_TO_END:
            times = -(-self.outputs // h.shape[-1])
            return torch.cat([h] * times, -1)[..., : self.outputs]
        size, more = divmod(self.outputs, h.shape[-1])
        wide, narrow = h[..., :more], h[..., more:]
        return torch.cat(
            [wide.repeat_interleave(size + 1, -1), narrow.repeat_interleave(size, -1)], -1
        )

    def factors(self) -> tuple[Tensor, Tensor] | None:
        if self.form == ROTATED:
            return None
        n, inputs = torch.eye(len(self.m)).to(self.m), torch.eye(self.inputs).to(self.m)
        pairs = zip(self.types, self.squares(), strict=True)
        a = [m @ self.compress(inputs, form).T for form, m in pairs]  # each (N, I)
        return torch.cat(a), torch.cat([self.decompress(n, form).T for form in self.types], 1)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight + self.branch(torch.eye(self.inputs).to(weight), weight.dtype).T, bias

    @torch.no_grad()
    def reset(self) -> None:
        """Add M to the sum of its type, zero it, and switch to the next type. In place."""
        self.kept.add_(self.turn[:, None, None] * self.m)
        self.m.zero_()
        self.turn.copy_(self.turn.roll(1))


class Resets(Schedule):
    """Resets M every `every` steps."""

    def __init__(self, adapters: Mapping[str, Any], every: int):
        self.adapters, self.every, self.t = adapters, every, 0

    def after_step(self, t: int) -> None:
        self.t = t
        if t % self.every == 0:
            for adapter in self.adapters.values():
                adapter.reset()

    def fresh(self) -> list[str]:
        return [f"{site}.m" for site in self.adapters] if self.t and not self.t % self.every else []

    def facts(self) -> dict[str, Any]:
        return {"resets": self.t // self.every}
