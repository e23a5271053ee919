"""Bottleneck adapters: y = h + Wu gelu(Wd h + bd) + bu, where h is what a sublayer gives.

Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", 2019, arXiv:1902.00751, section
2.1: behind attention and behind the feed-forward layer, before the residual sum. `pfeiffer` puts
one behind the feed-forward layer alone, after Pfeiffer et al., 2020, arXiv:2005.00247, whose own
adapter reads what comes after the sum and the norm: ours reads the layer's output, as above.
Wd and Wu start from a normal distribution of std 1e-3, cut at two std, as in the authors' code;
our default has Wu = 0, so that the start is the base exactly. The authors train the norms as
well, which `train_norms` does, and the head, which lorica always does for a classifier.

What writes to the residual stream is found by shape: the last linear layer of each sublayer that
has several, and the last of the block, give as many features as the block takes.

    I  in_features   O  out_features   m  r, the width of the bottleneck
"""

import re
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from lorica.core.adapter import Adapter, Base, Method
from lorica.core.site import Site
from lorica.core.whole import SavedModules
from lorica.errors import ConfigError, TargetError, closest

Place = Literal["houlsby", "pfeiffer"]
STD = 1e-3
BLOCK = re.compile(r"((?:.*?\.)??\d+)\.(\w+(?:\.\d+)*)\b")  # a block's name, and its sublayer's


@dataclass(frozen=True, kw_only=True)
class Bottleneck(Method, name="bottleneck"):
    kinds: ClassVar[tuple[str, ...]] = ("linear",)
    paper: ClassVar[str] = "Houlsby et al. 2019, arXiv:1902.00751"
    count: ClassVar[str] = "2 * r * O + r + O"
    to_lora: ClassVar[Literal["exact", "approximate", "never"]] = "never"
    r: int = 64
    """Width m of the bottleneck. Parameters per layer: 2 r O + r + O."""
    placement: Place = "houlsby"
    """Behind attention and feed-forward layer of each block, or behind the latter alone."""
    zero_up: bool = True
    """Wu starts at zero, so that the start is the base; false: near zero, as in the paper."""
    train_norms: bool = False
    """Train the norms as well, as the paper does."""

    def __post_init__(self):
        if not isinstance(self.r, int) or isinstance(self.r, bool) or self.r < 1:
            raise ConfigError(
                f"bottleneck.r is {self.r}; it must be a whole number, at least 1.", fix="try r=64"
            )
        if self.placement not in get_args(Place):
            raise ConfigError(
                f"bottleneck.placement is {self.placement!r}.",
                closest=closest(str(self.placement), get_args(Place)),
                known=", ".join(get_args(Place)),
                fix="name one of these",
            )
        if self.train_norms:  # only then does it act elsewhere
            object.__setattr__(self, "kinds", ("linear", "other"))

    def choose(self, sites: list[Site]) -> list[Site]:
        """Raises: TargetError if there are no blocks, or one does not end as a block does."""
        linear = [s for s in sites if s.kind == "linear" and not s.is_head and BLOCK.match(s.name)]
        if not linear:
            raise TargetError("this model has no numbered blocks of linear layers.",
                              fix="name the layers to adapt in target_modules")  # fmt: skip
        names: set[str] = set()
        for block, inside in groupby(linear, lambda site: _parts(site)[0]):
            names |= {site.name for site in _writers(block, list(inside), self.placement)}
        return [site for site in sites if site.name in names or is_norm(site)]

    def share(self, sites: list[Site]) -> SavedModules:
        if self.train_norms and all(site.kind == "linear" for site in sites):
            raise ConfigError(
                "bottleneck.train_norms is set, and target_modules names no norm.",
                fix="name the norms as well, or leave target_modules out",
            )
        return SavedModules()

    def build(self, site: Site, shared: Any) -> Adapter:
        return BottleneckAdapter(site, self) if site.kind == "linear" else shared.at(site)


def _parts(site: Site) -> tuple[str, str]:
    found = BLOCK.match(site.name)
    assert found is not None
    return found[1], found[2]


def is_norm(site: Site) -> bool:
    """A layer of vectors alone."""
    return site.kind == "other" and all(p.ndim == 1 for p in site.module.parameters(recurse=False))


def _writers(block: str, inside: list[Site], placement: Place) -> list[Site]:
    """The layers of a block that write to the residual stream.

    Raises: TargetError if it is written to by something else, as experts are.
    """
    sublayers = [list(sites) for _, sites in groupby(inside, lambda site: _parts(site)[1])]
    last = [sites[-1] for sites in sublayers[:-1] if len(sites) > 1] + [inside[-1]]
    width = inside[0].in_features
    wrong = [s for s in last if s.out_features != width] or [
        s for s in inside if "expert" in s.name
    ]
    if wrong:
        raise TargetError(
            f"{block} does not look like a block: {wrong[0].name} does not alone write to the "
            "residual stream.",
            features=f"the block takes {width}, the layer gives {wrong[0].out_features}",
            fix="name the layers to adapt in target_modules",
        )
    return last[-1:] if placement == "pfeiffer" else last


class BottleneckAdapter(Adapter):
    affine = False

    def __init__(self, site: Site, method: Bottleneck):
        super().__init__()
        self.down = nn.Linear(site.out_features, method.r)
        self.up = nn.Linear(method.r, site.out_features)
        for layer in (self.down, self.up):
            nn.init.trunc_normal_(layer.weight, std=STD, a=-2 * STD, b=2 * STD)
            nn.init.zeros_(layer.bias)
        if method.zero_up:
            nn.init.zeros_(self.up.weight)

    def after(self, x: Tensor, y: Tensor, base: Base) -> Tensor:
        down, up = self.down, self.up
        h = F.linear(y, down.weight.to(y.dtype), down.bias.to(y.dtype))  # (B, T, m)
        return y + F.linear(F.gelu(h), up.weight.to(y.dtype), up.bias.to(y.dtype))
