"""Prefix tuning: n trained keys and values stand before those of every row, in every layer.

    softmax(q [Kp ; K]^T) [Vp ; V],   one softmax over both

Li and Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", 2021,
arXiv:2101.00190, section 4. With `reparametrisation` the table of all layers' keys and values is
MLP(e), as in the paper, which drops the network after training; `table()` is what it leaves.
The folder keeps the network, so that training can go on from it. A table that is trained itself
needs a rate some ten times that of the network. A start from the keys and values of real tokens
is better than a random one; zeros are no start from the base: over Z = sum exp(scores) they
shrink what attention gives to Z / (Z + n) of it.

The keys stand as attention sees them, after any rotation; the tokens' positions are counted
from the first key of the prefix, as PEFT does. Our own: in a model that reads both ways they are
left as they are, and a sliding window never loses sight of the prefix.

    L  attention layers   K  key heads   D  head size   C  features   n  num_virtual_tokens
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lorica.core.adapter import Adapter, Rates
from lorica.core.front import Front, in_front, reads_left_to_right, shown
from lorica.core.site import Site
from lorica.errors import ConfigError
from lorica.methods.prompt_tuning import Virtual

Start = Literal["vocabulary", "text", "random", "zero"]


@dataclass(frozen=True, kw_only=True)
class PrefixTuning(Virtual, name="prefix_tuning"):
    paper: ClassVar[str] = "Li and Liang 2021, arXiv:2101.00190"
    count: ClassVar[str] = "num_virtual_tokens * key and value features of all layers"
    rates: ClassVar[Rates] = (0.3, 0.005, 30.0)
    rate_source: ClassVar[str] = "PEFT's method comparison"
    init: Start | None = None
    """What the base makes of tokens drawn at random, or of init_ids; N(0, 1); or zeros; None:
    vocabulary, and with reparametrisation random, since no network begins with given values."""

    def __post_init__(self):
        super().__post_init__()
        if self.reparametrisation and self.init in ("vocabulary", "text"):
            raise ConfigError(
                f"prefix_tuning.init is {self.init!r}: a network cannot begin with given values.",
                fix='leave reparametrisation out, or take init="random"',
            )

    def build(self, site: Site, shared: Any) -> "PrefixAdapter":
        return PrefixAdapter(site, self)


class PrefixAdapter(Adapter):
    affine = False

    def __init__(self, site: Site, method: PrefixTuning):
        super().__init__()
        width = method.reparametrisation
        init = method.init or ("random" if width else "vocabulary")
        self.shift = reads_left_to_right(site.module)
        words = method.vectors(site.module, init if init == "text" else "vocabulary")
        front = shown(site.module, words)
        self.sizes = {i: [(t.shape[0], t.shape[2]) for t in pair] for i, pair in front.items()}
        table = torch.cat(
            [t.transpose(0, 1).flatten(1).float() for pair in front.values() for t in pair], dim=1
        )
        if init in ("random", "zero"):
            table = torch.randn(table.shape) if init == "random" else torch.zeros(table.shape)
        self.e, self.mlp = nn.Parameter(table), None
        if width is not None:
            last = nn.Linear(width, table.shape[1])
            self.e = nn.Parameter(torch.randn(words.shape))
            self.mlp = nn.Sequential(nn.Linear(words.shape[1], width), nn.Tanh(), last)
            if init == "zero":
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)

    def table(self) -> Tensor:
        """Keys and values, (n, sum over layers of 2 K D): layer by layer, keys first, by head."""
        return self.e if self.mlp is None else self.mlp(self.e)

    def front(self) -> Front:
        widths = [heads * size for pair in self.sizes.values() for heads, size in pair]
        parts = iter(self.table().split(widths, dim=1))
        laid = {
            i: [next(parts).unflatten(1, s).transpose(0, 1) for s in pair]
            for i, pair in self.sizes.items()
        }
        return {i: (keys, values) for i, (keys, values) in laid.items()}

    def enter(self, decoder: nn.Module, options: dict[str, Any]) -> dict[str, Any]:
        return in_front(decoder, options, self.front(), shift=self.shift)
