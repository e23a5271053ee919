"""A network that makes the two matrices of a LoRA for every site, from a condition.

    z = mixer [enc(c) | depth(l) | type(m)]      u = out(z + res(z)) / d
    A = reshape(W_A u + b_A), (R, I)             B = reshape(W_B u + b_B), (O, R)

enc(c), depth(l) and type(m) take a half and two quarters of its width, each normalised; m is a
layer's name and shape. Sites share all but their biases; sites of one type share W. W starts at
zero, b_A as a LoRA's A and b_B at zero, so that every condition starts with the same A and with
no update.

    C conditions   S sites   I, O features of a site   R r   d hidden
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorica.core.kept import Kept
from lorica.core.site import Site
from lorica.core.targets import block_of
from lorica.methods.hyperlora.encoders import Names, Vectors
from lorica.methods.hyperlora.rows import Rows


class Place(NamedTuple):
    """Where a site stands: its depth and type, and the head and the number that it has there."""

    depth: int
    kind: int
    head: str
    number: int


class Network(nn.Module):
    """The network, and the conditions that are set.

    enc: of conditions, onto latent // 2 numbers. default: the conditions while none are set;
    None: there are none. codes: (C, ...) what `enc` reads of the distinct conditions that are
    set. rows: which of them each row has; None: the one for all.
    """

    def __init__(
        self,
        enc: Names | Vectors,
        sites: list[Site],
        *,
        r: int,
        hidden: int,
        latent: int,
        default: tuple[str, ...] | None,
    ):
        super().__init__()
        n, quarter = latent, latent // 4
        self.enc, self.r, self.default = enc, r, default
        self.depths = list(dict.fromkeys(block_of(site.name) for site in sites))
        heads: dict[str, list[Site]] = {}
        for site in sites:
            heads.setdefault(head_of(site), []).append(site)
        self._places = {
            site.name: Place(self.depths.index(block_of(site.name)), kind, head, number)
            for kind, (head, own) in enumerate(heads.items())
            for number, site in enumerate(own)
        }
        self.depth = nn.Embedding(len(self.depths), quarter)
        self.kind = nn.Embedding(len(heads), quarter)
        self.norms = nn.ModuleList(nn.LayerNorm(size) for size in (n // 2, quarter, quarter))
        self.mixer = nn.Sequential(nn.Linear(n, n), nn.SiLU())
        self.res = nn.Sequential(
            nn.LayerNorm(n), nn.Linear(n, 2 * n), nn.SiLU(), nn.Linear(2 * n, n)
        )
        self.out = nn.Sequential(nn.LayerNorm(n), nn.Linear(n, hidden))
        self.heads = nn.ModuleDict({key: Head(r, hidden, own) for key, own in heads.items()})
        self.codes: Tensor | None = None
        self.rows: Rows | None = None
        self._now: tuple[Any, Any] | None = None
        self._kept: Kept[tuple[Tensor, Tensor]] = Kept()
        self._own = tuple(self.parameters())
        self.set(None, None)

    def place(self, site: Site) -> Place:
        return self._places[site.name]

    def set(self, conditions: Sequence[str] | None, lengths: Sequence[int] | None) -> None:
        """Take up the conditions of the rows; see `core.condition.set_conditions`."""
        if (conditions, lengths) == self._now:
            return  # another site has said so
        each = (self.default if conditions is None else conditions) or ()
        distinct = list(dict.fromkeys(each))
        device = self.kind.weight.device
        codes = self.enc.codes(distinct).to(device) if distinct else None
        numbers = tuple(distinct.index(condition) for condition in each)
        self.rows = (
            Rows(numbers, None if lengths is None else tuple(lengths)) if len(each) > 1 else None
        )
        self.codes, self._now = codes, (conditions, lengths)
        self._kept.clear()

    def made(self, codes: Tensor, place: Place) -> tuple[Tensor, Tensor]:
        """A (C, R, I) and B (C, O, R) of a site at the conditions that are set.

        They are kept from token to token of a generation.
        """
        return self._kept(self._own, place, lambda: self(codes, [place]))

    def forward(self, codes: Tensor, places: Sequence[Place]) -> tuple[Tensor, Tensor]:
        """A (C S, R, I) and B (C S, O, R) of S sites with one head, in float32 always."""
        kind, head = self.kind.weight[places[0].kind], self.heads[places[0].head]
        with torch.autocast(kind.device.type, enabled=False):
            c = self.enc(codes.to(kind.device)).repeat_interleave(len(places), 0)  # (C S, n / 2)
            depth = torch.stack([self.depth.weight[place.depth] for place in places])
            parts = c, depth.repeat(len(codes), 1), kind.expand(len(c), -1)
            z = torch.cat([norm(v) for norm, v in zip(self.norms, parts, strict=True)], -1)
            z = self.mixer(z)
            return head(self.out(z + self.res(z)), [place.number for place in places])


class Head(nn.Module):
    """A and B of the sites of one type."""

    def __init__(self, r: int, hidden: int, sites: list[Site]):
        super().__init__()
        self.r, self.hidden = r, hidden
        a, b = r * sites[0].in_features, sites[0].out_features * r
        self.weight_a = nn.Parameter(torch.zeros(a, hidden))
        self.weight_b = nn.Parameter(torch.zeros(b, hidden))
        bound = 1 / math.sqrt(sites[0].in_features)
        self.bias_a = nn.Parameter(torch.empty(len(sites), a).uniform_(-bound, bound))
        self.bias_b = nn.Parameter(torch.zeros(len(sites), b))

    def forward(self, states: Tensor, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """states: (C S, d), the sites of one condition side by side."""
        u, c = states / self.hidden, len(states) // len(numbers)
        a, b = (
            F.linear(u, weight) + torch.stack([bias[i] for i in numbers]).repeat(c, 1)
            for weight, bias in ((self.weight_a, self.bias_a), (self.weight_b, self.bias_b))
        )
        return a.unflatten(-1, (self.r, -1)), b.unflatten(-1, (-1, self.r))


def head_of(site: Site) -> str:
    """The name of the head that a site has: that of its layer, and its shape."""
    return f"{site.name.rpartition('.')[2]}_{site.in_features}x{site.out_features}"
