"""Bottleneck adapters: y = h + Wu gelu(Wd h + bd) + bu, where h is what a sublayer gives.

Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", 2019, arXiv:1902.00751, section
2.1: behind attention and behind the feed-forward layer, before the residual sum. `pfeiffer` puts
one behind the feed-forward layer alone, after Pfeiffer et al., 2020, arXiv:2005.00247, whose own
adapter reads what comes after the sum and the norm: ours reads the layer's output, as above.
Wd and Wu start from a normal distribution of std 1e-3, cut at two std, as in the authors' code;
our default has Wu = 0, so that the start is the base exactly. The authors train the norms as
well, which `train_norms` does, and the head, which lorica always does for a classifier.

What writes to the residual stream is found by its shape: the last linear layer of a sublayer
that gives as many features as the block takes, and is no query, key or value by its name.

    I  in_features   O  out_features   m  r, the width of the bottleneck
"""

import re
from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, Any, ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from lorica.core.adapter import Adapter, BaseLayer, Method, Rates
from lorica.core.bounds import Bounds
from lorica.core.site import Site
from lorica.core.whole import SavedModules
from lorica.errors import ConfigError, TargetError, listed

Place = Literal["houlsby", "pfeiffer"]
STD = 1e-3
BLOCK = re.compile(r"((?:.*?\.)??\d+)\.(\w+(?:\.\d+)*)")  # a block's name, and its sublayer's
INPUT = re.compile(r"(q|k|v|kv|qk|qkv|query|key|value|in)(_|$)", re.I)  # leaves that write inside


@dataclass(frozen=True, kw_only=True)
class Bottleneck(Method, name="bottleneck"):
    kinds: ClassVar[tuple[str, ...]] = ("linear",)
    paper: ClassVar[str] = "Houlsby et al. 2019, arXiv:1902.00751"
    count: ClassVar[str] = "2 * r * O + r + O"
    rates: ClassVar[Rates] = (0.02, 0.0003, 2.0)
    rate_source: ClassVar[str] = "google-research/adapter-bert, README"
    to_lora: ClassVar[Literal["exact", "approximate", "never"]] = "never"
    r: Annotated[int, Bounds(ge=1)] = 64
    """Width m of the bottleneck. Parameters per layer: 2 r O + r + O."""
    placement: Place = "houlsby"
    """Behind attention and feed-forward layer of each block, or behind the latter alone."""
    zero_up: bool = True
    """Wu starts at zero, so that the start is the base; false: near zero, as in the paper."""
    train_norms: bool = False
    """Train the norms as well, as the paper does."""

    def __post_init__(self):
        super().__post_init__()
        if self.train_norms:  # it acts elsewhere then, and there for all rows of a batch alike
            object.__setattr__(self, "kinds", ("linear", "other"))
            object.__setattr__(self, "mixes", False)

    def choose(self, sites: list[Site]) -> list[Site]:
        """Raises: TargetError if there are no blocks, or one does not end as a block does."""
        linear = [s for s in sites if s.kind == "linear" and not s.is_head and BLOCK.match(s.name)]
        if not linear:
            raise TargetError(
                "this model has no numbered blocks of linear layers.",
                fix="name the layers to adapt in target_modules",
            )
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
    """The name of the block, and of the sublayer in it; "" for a layer of the block itself."""
    found = BLOCK.match(site.name)
    assert found is not None
    return found[1], "" if found.end() == len(site.name) else found[2]


def is_norm(site: Site) -> bool:
    """A layer of vectors alone."""
    return site.kind == "other" and all(p.ndim == 1 for p in site.module.parameters(recurse=False))


def _writers(block: str, inside: list[Site], placement: Place) -> list[Site]:
    """The layers of a block that write to the residual stream, in order.

    Raises: TargetError if something else writes to it, as experts do.
    """
    sizes = [n for site in inside for n in (site.in_features, site.out_features)]
    width = Counter(sizes).most_common(1)[0][0]  # of the residual stream
    last: dict[str, Site] = {}
    for site in inside:
        sublayer, leaf = _parts(site)[1], site.name.rpartition(".")[2]
        if site.out_features == width and not INPUT.match(leaf):
            last[sublayer] = site
    behind = [site for sublayer, site in last.items() if "att" not in sublayer.lower()]
    if not behind or any("expert" in site.name for site in inside):
        raise TargetError(
            f"{block} has no feed-forward layer of linear layers that alone writes {width} "
            "features to the residual stream (experts do not).",
            layers=listed(site.name.removeprefix(f"{block}.") for site in inside),
            fix="name the layers to adapt in target_modules",
        )
    return behind[-1:] if placement == "pfeiffer" else list(last.values())


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

    def after(self, x: Tensor, y: Tensor, base: BaseLayer) -> Tensor:
        down, up = self.down, self.up
        h = F.linear(y, down.weight.to(y.dtype), down.bias.to(y.dtype))  # (B, T, m)
        return y + F.linear(F.gelu(h), up.weight.to(y.dtype), up.bias.to(y.dtype))
