"""Bottleneck adapters: y = h + Wu gelu(Wd h + bd) + bu, where h is the output of a sublayer.

Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", 2019, arXiv:1902.00751, section
2.1: one adapter behind attention and one behind the feed-forward layer of each block, before the
residual sum. placement="pfeiffer" keeps only the one behind the feed-forward layer, after Pfeiffer
et al., 2020, arXiv:2005.00247. (Theirs reads the hidden states after the sum and the norm; ours
reads the layer's output.) Wd and Wu start as N(0, 1e-3^2), truncated at two standard deviations,
as in the authors' code; by default Wu is zero, so that the adapted model starts as the base. The
authors also train the norms, which train_norms does, and the head, which lorica always does for a
classifier.

The layers that write to the residual stream are found by their shape: the last linear layer of a
sublayer whose output is as wide as the residual stream, and whose name is not that of a query, key
or value.

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
from lorica.core.modules_to_save import ModuleCopies
from lorica.core.site import Site
from lorica.errors import ConfigError, TargetError, listed

Place = Literal["houlsby", "pfeiffer"]
STD = 1e-3  # of the initial Wd and Wu
BLOCK = re.compile(r"((?:.*?\.)??\d+)\.(\w+(?:\.\d+)*)")  # name of a block, name of its sublayer
INPUT = re.compile(r"(q|k|v|kv|qk|qkv|query|key|value|in)(_|$)", re.I)  # do not write to the stream


@dataclass(frozen=True, kw_only=True)
class Bottleneck(Method, name="bottleneck"):
    kinds: ClassVar[tuple[str, ...]] = ("linear",)
    paper: ClassVar[str] = "Houlsby et al. 2019, arXiv:1902.00751"
    count: ClassVar[str] = "2 * r * O + r + O"
    rates: ClassVar[Rates] = (0.02, 0.0003, 2.0)
    rate_source: ClassVar[str] = "google-research/adapter-bert, README"
    to_lora: ClassVar[Literal["exact", "approximate", "never"]] = "never"
    r: Annotated[int, Bounds(ge=1)] = 64
    """Width of the bottleneck. Parameters per layer: 2 r O + r + O."""
    placement: Place = "houlsby"
    """houlsby: behind the attention and the feed-forward layer of each block. pfeiffer: behind the
    feed-forward layer only."""
    zero_up: bool = True
    """Start with Wu = 0, so that the adapted model starts as the base; false: near zero, as in the
    paper."""
    train_norms: bool = False
    """Train the norms as well, as the paper does."""

    def __post_init__(self):
        super().__post_init__()
        if self.train_norms:  # norms are other sites, and cannot differ from row to row
            object.__setattr__(self, "kinds", ("linear", "other"))
            object.__setattr__(self, "mixes", False)

    def choose(self, sites: list[Site]) -> list[Site]:
        """The layers behind which adapters are placed, and the norms.

        Raises: TargetError if there are no blocks, or a block has no such layer.
        """
        linear = [s for s in sites if s.kind == "linear" and not s.is_head and BLOCK.match(s.name)]
        if not linear:
            raise TargetError(
                "this model has no numbered blocks of linear layers.",
                fix="name the layers to adapt in target_modules",
            )
        names: set[str] = set()
        for block, layers in groupby(linear, lambda site: _block_and_sublayer(site)[0]):
            names |= {site.name for site in _residual_writers(block, list(layers), self.placement)}
        return [site for site in sites if site.name in names or is_norm(site)]

    def share(self, sites: list[Site]) -> ModuleCopies:
        if self.train_norms and all(site.kind == "linear" for site in sites):
            raise ConfigError(
                "bottleneck.train_norms is set, and target_modules names no norm.",
                fix="name the norms as well, or leave target_modules out",
            )
        return ModuleCopies()

    def build(self, site: Site, shared: Any) -> Adapter:
        return BottleneckAdapter(site, self) if site.kind == "linear" else shared.build(site)


def _block_and_sublayer(site: Site) -> tuple[str, str]:
    """The names of a site's block and sublayer; "" if it is a direct child of the block."""
    match = BLOCK.match(site.name)
    assert match is not None
    return match[1], "" if match.end() == len(site.name) else match[2]


def is_norm(site: Site) -> bool:
    """Whether all parameters of a layer are vectors, as those of norms are."""
    return site.kind == "other" and all(p.ndim == 1 for p in site.module.parameters(recurse=False))


def _residual_writers(block: str, layers: list[Site], placement: Place) -> list[Site]:
    """The linear layers of a block that write to the residual stream, in order.

    Raises: TargetError if other modules write to it, as experts do.
    """
    sizes = [n for site in layers for n in (site.in_features, site.out_features)]
    width = Counter(sizes).most_common(1)[0][0]  # of the residual stream
    last: dict[str, Site] = {}
    for site in layers:
        sublayer, leaf = _block_and_sublayer(site)[1], site.name.rpartition(".")[2]
        if site.out_features == width and not INPUT.match(leaf):
            last[sublayer] = site
    feedforward = [site for sublayer, site in last.items() if "att" not in sublayer.lower()]
    if not feedforward or any("expert" in site.name for site in layers):
        raise TargetError(
            f"{block} has no feed-forward layer whose last linear layer alone writes the {width} "
            "features of the residual stream; a mixture of experts has none.",
            layers=listed(site.name.removeprefix(f"{block}.") for site in layers),
            fix="name the layers to adapt in target_modules",
        )
    return feedforward[-1:] if placement == "pfeiffer" else list(last.values())


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
