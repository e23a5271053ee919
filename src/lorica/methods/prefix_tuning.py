"""Prefix tuning: in every layer, n trained keys and values precede those of every row.

    softmax(q [Kp ; K]^T) [Vp ; V],   one softmax over both

Li and Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", 2021, arXiv:2101.00190,
section 4. With `reparametrisation` the table of the keys and values of all layers is MLP(e), as in
the paper, which drops the network after training; `table()` is the result. The adapter folder keeps
the network, so that training can continue. A table that is trained directly needs a learning rate
about ten times that of the network. Starting from the keys and values of real tokens is better than
starting at random. The adapted model does not start as the base, even from zeros: they reduce the
output of attention to Z / (Z + n) of it, Z being the sum of exp(scores).

The keys are stored as attention sees them, after any rotation. The positions of the tokens are
counted from the first key of the prefix, as in PEFT. Our own: in a bidirectional model positions do
not change, and a sliding window always sees the prefix.

    L  attention layers   K  key heads   D  head size   C  features   n  num_virtual_tokens
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lorica.core.adapter import Adapter, Rates
from lorica.core.front import Front, is_causal, prepend_front, probe_keys_values
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
    """Initial keys and values. vocabulary: those of random tokens. text: those of init_ids. random:
    N(0, 1). zero. None: vocabulary, or random with reparametrisation."""

    def __post_init__(self):
        super().__post_init__()
        if self.reparametrisation and self.init in ("vocabulary", "text"):
            raise ConfigError(
                f"prefix_tuning.init is {self.init!r}: a network cannot start from given values.",
                fix='leave reparametrisation out, or set init="random"',
            )

    def build(self, site: Site, shared: Any) -> "PrefixAdapter":
        return PrefixAdapter(site, self)


class PrefixAdapter(Adapter):
    affine = False

    def __init__(self, site: Site, method: PrefixTuning):
        super().__init__()
        width = method.reparametrisation
        init = method.init or ("random" if width else "vocabulary")
        self.shift = is_causal(site.module)
        vectors = method.vectors(site.module, init if init == "text" else "vocabulary")
        front = probe_keys_values(site.module, vectors)
        self.sizes = {i: [(t.shape[0], t.shape[2]) for t in pair] for i, pair in front.items()}
        table = torch.cat(
            [t.transpose(0, 1).flatten(1).float() for pair in front.values() for t in pair], dim=1
        )
        if init in ("random", "zero"):
            table = torch.randn(table.shape) if init == "random" else torch.zeros(table.shape)
        self.e, self.mlp = nn.Parameter(table), None
        if width is not None:
            last = nn.Linear(width, table.shape[1])
            self.e = nn.Parameter(torch.randn(vectors.shape))
            self.mlp = nn.Sequential(nn.Linear(vectors.shape[1], width), nn.Tanh(), last)
            if init == "zero":
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)

    def table(self) -> Tensor:
        """Keys and values, (n, sum over layers of 2 K D): by layer, keys before values, by head."""
        return self.e if self.mlp is None else self.mlp(self.e)

    def front(self) -> Front:
        widths = [heads * size for pair in self.sizes.values() for heads, size in pair]
        parts = iter(self.table().split(widths, dim=1))
        pairs = {
            i: [next(parts).unflatten(1, size).transpose(0, 1) for size in pair]
            for i, pair in self.sizes.items()
        }
        return {i: (keys, values) for i, (keys, values) in pairs.items()}

    def enter(self, decoder: nn.Module, options: dict[str, Any]) -> dict[str, Any]:
        return prepend_front(decoder, options, self.front(), shift=self.shift)
