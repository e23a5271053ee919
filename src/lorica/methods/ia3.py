"""IA3: keys, values and the inner activations of the MLP are multiplied by learned vectors.

    y = l * (W x + b)   at the layers of keys and values
    y = W (l * x) + b   at the output layer of the MLP

Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context
Learning", 2022, arXiv:2205.05638, section 3.3. l starts as ones, so that the adapted model starts
as the base. As in PEFT's code, the vector of the keys acts on the output of the layer, bias
included, before the rotary embedding. Only a few thousand elements are trained, so that the
learning rate is that of T-Few (3e-3) rather than that of LoRA.

Without target_modules the layers are found by their usual names. If a model has none of them, they
are found by shape, which is our own rule: of a block's layers, the one with the most inputs and
fewer outputs is the output of the MLP; of three or more sibling layers with the same input width,
the two with the fewest outputs (of equals, the second and third) are keys and values. If
target_modules lists layers of unknown names, the first of these rules decides which are scaled at
their input.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lorica.core.adapter import Adapter, BaseLayer, Method, Rates
from lorica.core.row_form import RowForm
from lorica.core.site import Site
from lorica.core.site_names import block_of
from lorica.errors import TargetError, closest, listed

OUTPUT = re.compile(
    r"(.*\.)?(k_proj|v_proj|key|value|k|v|key_proj|value_proj|k_lin|v_lin|kv_proj|kv_b_proj"
    r"|c_attn|qkv|qkv_proj|query_key_value|Wqkv)"
)  # fused layers are scaled as a whole, queries included, as in PEFT
FEEDFORWARD = re.compile(
    r"(.*\.)?(down_proj|fc2|fc_out|w2|wo|dense_4h_to_h|lin2|mlp\.c_proj|(?<!attention\.)output\.dense)"
)


@dataclass(frozen=True, kw_only=True)
class Ia3(Method, name="ia3"):
    kinds: ClassVar[tuple[str, ...]] = ("linear",)
    paper: ClassVar[str] = "Liu et al. 2022, arXiv:2205.05638"
    count: ClassVar[str] = "O"  # I at the output layer of the MLP
    rates: ClassVar[Rates] = (0.1, 0.003, 10.0)
    rate_source: ClassVar[str] = "Liu et al. 2022, section 3"
    to_lora: ClassVar[Literal["exact", "approximate", "never"]] = "approximate"
    feedforward_modules: Sequence[str] | None = None
    """Name endings of the target layers that are scaled at their input; None: the output layers of
    the MLP, by their usual names or by shape."""

    def choose(self, sites: list[Site]) -> list[Site]:
        """Keys, values and the MLP's output layer by name, else by shape, else all linear
        layers."""
        linear = super().choose(sites)
        if named := [s for s in linear if is_known(s)]:
            return named
        by_shape = feedforward_by_shape(linear) | keys_values_by_shape(linear)
        return [s for s in linear if s.name in by_shape] or linear

    def share(self, sites: list[Site]) -> set[str]:
        """Names of the sites that are scaled at their input.

        Raises: TargetError if an entry of feedforward_modules names no target layer.
        """
        if self.feedforward_modules is None:
            if any(is_known(s) for s in sites):
                return {s.name for s in sites if FEEDFORWARD.fullmatch(s.name)}
            return feedforward_by_shape(sites)
        names = [s.name for s in sites]
        matches = {
            entry: {name for name in names if f".{name}".endswith(f".{entry}")}
            for entry in self.feedforward_modules
        }
        if unmatched := [entry for entry, matching in matches.items() if not matching]:
            leaves = sorted({n.rpartition(".")[2] for n in names})
            raise TargetError(
                f"feedforward_modules {listed(unmatched)} names none of the target layers.",
                closest=closest(unmatched[0], leaves),
                known=listed(leaves),
                fix="name layers that target_modules names too",
            )
        return set().union(*matches.values())

    def build(self, site: Site, shared: Any) -> "Ia3Adapter":
        return Ia3Adapter(site, site.name in shared)


class Ia3Adapter(Adapter):
    """feedforward: scale the input, l is (I,); otherwise the output, l is (O,)."""

    def __init__(self, site: Site, feedforward: bool):
        super().__init__()
        self.feedforward, self.inputs = feedforward, site.in_features
        self.l = nn.Parameter(torch.ones(site.in_features if feedforward else site.out_features))

    def before(self, x: Tensor) -> Tensor:
        return x * self.l.to(x.dtype) if self.feedforward else x

    def after(self, x: Tensor, y: Tensor, base: BaseLayer) -> Tensor:
        return y if self.feedforward else y * self.l.to(y.dtype)

    def row_form(self, base: BaseLayer, dtype: torch.dtype) -> RowForm | None:
        if self.feedforward:
            return None
        return RowForm(self.l.new_zeros(0, self.inputs), self.l.new_zeros(len(self.l), 0), self.l)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.feedforward:
            return weight * self.l, bias
        return weight * self.l.unsqueeze(1), None if bias is None else bias * self.l


def is_known(site: Site) -> bool:
    return any(pattern.fullmatch(site.name) for pattern in (OUTPUT, FEEDFORWARD))


def feedforward_by_shape(sites: list[Site]) -> set[str]:
    """Layers with fewer outputs than inputs that have the most inputs of their block, not all
    layers being as wide, or that are alone in it."""
    widths: dict[int | None, list[int]] = {}
    for site in sites:
        widths.setdefault(block_of(site.name), []).append(site.in_features)
    return {
        s.name
        for s in sites
        if s.in_features > s.out_features
        and s.in_features == max(inputs := widths[block_of(s.name)])
        and (len(inputs) == 1 or min(inputs) < s.in_features)
    }


def keys_values_by_shape(sites: list[Site]) -> set[str]:
    """Of three or more sibling layers with one input width, the two with the fewest outputs."""
    siblings: dict[tuple[str, int], list[Site]] = {}
    for site in sites:
        siblings.setdefault((site.name.rpartition(".")[0], site.in_features), []).append(site)
    keys_values: set[str] = set()
    for group in siblings.values():
        if len(group) > 2:
            by_size = sorted(
                enumerate(group), key=lambda p: (p[1].out_features, p[0] not in (1, 2))
            )
            keys_values |= {site.name for _, site in by_size[:2]}
    return keys_values
