"""The network that generates the two matrices of a LoRA for every site, from a condition.

    z = mixer [enc(c) | depth(l) | type(m)]      u = out(z + res(z)) / d
    A = reshape(W_A u + b_A), (R, I)             B = reshape(W_B u + b_B), (O, R)

enc(c) takes up half of its width and depth(l) and type(m) a quarter each; each of them is
normalised. A type m is the name and the shape of a layer. All sites share the network except their
biases; sites of one type share W_A and W_B. W starts at zero, b_A as the A of a LoRA and b_B at
zero, so that every condition starts with the same A and with no update.

    C conditions   S sites   I, O features of a site   R r   d hidden
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorica.core.site import Site
from lorica.core.site_names import block_of
from lorica.core.tensor_cache import TensorCache
from lorica.methods.hyperlora.encoders import Encoder
from lorica.methods.hyperlora.rows import Rows


class Place(NamedTuple):
    """What the network knows of a site: indices of its depth and type, and of its bias in a
    head."""

    depth: int
    kind: int
    head: str
    number: int


MAX_CACHED = 64
"""Conditions whose factors are kept during a generation."""


class Network(nn.Module):
    """The network, and the conditions that are set.

    enc: encodes conditions as latent // 2 features. default: the conditions if none are set; None:
        there are none. codes: (C, ...), the codes of the distinct conditions that are set. rows:
        which of them each row has; None: all rows have the only one.
    """

    def __init__(
        self,
        enc: Encoder,
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
        self._arguments: tuple[Any, Any] | None = None  # of the last call of `set`
        self._distinct: list[str] = []  # the conditions that `codes` are of
        self._cache: TensorCache[tuple[Tensor, Tensor]] = TensorCache()  # by site and condition
        self._joined: TensorCache[tuple[Tensor, Tensor]] = TensorCache()  # of `codes`, by site
        self._own_parameters = tuple(self.parameters())
        self.set(None, None)

    def place(self, site: Site) -> Place:
        return self._places[site.name]

    def set(self, conditions: Sequence[str] | None, lengths: Sequence[int] | None) -> None:
        """Set the conditions of the rows; see `core.condition.set_conditions`."""
        if (conditions, lengths) == self._arguments:
            return  # already set, by the adapter of another site
        by_row = (self.default if conditions is None else conditions) or ()
        distinct = list(dict.fromkeys(by_row))
        device = self.kind.weight.device
        codes = self.enc.codes(distinct).to(device) if distinct else None
        rows = None
        if len(by_row) > 1:
            indices = tuple(distinct.index(condition) for condition in by_row)
            rows = Rows(indices, None if lengths is None else tuple(lengths))
        self.codes, self.rows, self._arguments = codes, rows, (conditions, lengths)
        if distinct != self._distinct:
            self._joined.clear()
        if conditions is None or len(self._cache.values) > MAX_CACHED * len(self._places):
            self._cache.clear()
            self._joined.clear()
        self._distinct = distinct

    def factors(self, codes: Tensor, place: Place) -> tuple[Tensor, Tensor]:
        """A (C, R, I) and B (C, O, R) of a site for `codes`, cached between tokens of a
        generation: those of each condition too, as the rows of its passes change."""
        if torch.is_grad_enabled() or len(codes) < 2:
            return self._own_factors(codes, place, 0)

        def joined() -> tuple[Tensor, Tensor]:
            parts = [self._own_factors(codes[i : i + 1], place, i) for i in range(len(codes))]
            a, b = zip(*parts, strict=True)
            return torch.cat(a), torch.cat(b)

        return self._joined(self._own_parameters, place, joined)

    def _own_factors(self, codes: Tensor, place: Place, i: int) -> tuple[Tensor, Tensor]:
        """Those of condition number i."""
        key = place, self._distinct[i]
        return self._cache(self._own_parameters, key, lambda: self(codes, [place]))

    def forward(self, codes: Tensor, places: Sequence[Place]) -> tuple[Tensor, Tensor]:
        """A (C S, R, I) and B (C S, O, R) of S sites that share a head, in float32."""
        kind, head = self.kind.weight[places[0].kind], self.heads[places[0].head]
        with torch.autocast(kind.device.type, enabled=False):
            c = self.enc(codes.to(kind.device)).repeat_interleave(len(places), 0)  # (C S, n / 2)
            depth = torch.stack([self.depth.weight[place.depth] for place in places])
            parts = c, depth.repeat(len(codes), 1), kind.expand(len(c), -1)
            z = torch.cat([norm(v) for norm, v in zip(self.norms, parts, strict=True)], -1)
            z = self.mixer(z)
            return head(self.out(z + self.res(z)), [place.number for place in places])


class Head(nn.Module):
    """Generates A and B of the sites of one type."""

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
        """states: (C S, d), by condition and then by site. numbers: the S indices of the biases."""
        u, c = states / self.hidden, len(states) // len(numbers)
        a, b = (
            F.linear(u, weight) + torch.stack([bias[i] for i in numbers]).repeat(c, 1)
            for weight, bias in ((self.weight_a, self.bias_a), (self.weight_b, self.bias_b))
        )
        return a.unflatten(-1, (self.r, -1)), b.unflatten(-1, (-1, self.r))


def head_of(site: Site) -> str:
    """The head of a site: the name of its layer and its shape."""
    return f"{site.name.rpartition('.')[2]}_{site.in_features}x{site.out_features}"
