"""IA3: keys, values and the MLP's inner activations are multiplied by learned vectors.

y = l * (W x + b) at the layers of keys and values, y = W (l * x) + b at the output layer of the
MLP; l begins at one. Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper
than In-Context Learning", 2022, arXiv:2205.05638, section 3.3. That a vector acts on the output of
the key layer, bias included, before the rotation by position, is read off PEFT's code. Only a few
thousand numbers learn: the learning rate is that of T-Few, 3e-3, rather than LoRA's.

Without target_modules the layers are found by the names that are usual; where a model has none of
them, by shape, which is ours: of a block's layers the one that reads most and writes less ends
the MLP; of three or more side by side that read the same width, the two that write least (of
equals, the second and third) are keys and values. Among layers of unknown names that
target_modules lists, the first of these two rules says which are scaled at their input.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lorica.core.adapter import Adapter, BaseLayer, Method, Rates
from lorica.core.site import Site
from lorica.core.targets import block_of
from lorica.errors import TargetError, closest, listed

OUTPUT = re.compile(
    r"(.*\.)?(k_proj|v_proj|key|value|k|v|key_proj|value_proj|k_lin|v_lin|kv_proj|kv_b_proj"
    r"|c_attn|qkv|qkv_proj|query_key_value|Wqkv)"
)  # fused layers are scaled whole, their queries included, as PEFT does
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
    """Name endings of target layers that are scaled at their input; null: the output layers of the
    MLP, by their usual names, or by shape."""

    def choose(self, sites: list[Site]) -> list[Site]:
        """Keys, values and the MLP's output, by name or else by shape; or every linear layer."""
        linear = super().choose(sites)
        if named := [s for s in linear if is_known(s)]:
            return named
        found = shaped_feedforward(linear) | shaped_keys(linear)
        return [s for s in linear if s.name in found] or linear

    def share(self, sites: list[Site]) -> set[str]:
        """The sites that are scaled at their input. Raises: TargetError for an entry of none."""
        if self.feedforward_modules is None:
            if any(is_known(s) for s in sites):
                return {s.name for s in sites if FEEDFORWARD.fullmatch(s.name)}
            return shaped_feedforward(sites)
        names = [s.name for s in sites]
        hits = {
            e: {n for n in names if f".{n}".endswith(f".{e}")} for e in self.feedforward_modules
        }
        if dead := [entry for entry, found in hits.items() if not found]:
            leaves = sorted({n.rpartition(".")[2] for n in names})
            raise TargetError(
                f"feedforward_modules {listed(dead)} names none of the target layers.",
                closest=closest(dead[0], leaves),
                known=listed(leaves),
                fix="name layers that target_modules names as well",
            )
        return set().union(*hits.values())

    def build(self, site: Site, shared: Any) -> "Ia3Adapter":
        return Ia3Adapter(site, site.name in shared)


class Ia3Adapter(Adapter):
    """feedforward: the input is scaled, l is (I,); else the output, l is (O,)."""

    def __init__(self, site: Site, feedforward: bool):
        super().__init__()
        self.feedforward = feedforward
        self.l = nn.Parameter(torch.ones(site.in_features if feedforward else site.out_features))

    def before(self, x: Tensor) -> Tensor:
        return x * self.l.to(x.dtype) if self.feedforward else x

    def after(self, x: Tensor, y: Tensor, base: BaseLayer) -> Tensor:
        return y if self.feedforward else y * self.l.to(y.dtype)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.feedforward:
            return weight * self.l, bias
        return weight * self.l.unsqueeze(1), None if bias is None else bias * self.l


def is_known(site: Site) -> bool:
    return any(pattern.fullmatch(site.name) for pattern in (OUTPUT, FEEDFORWARD))


def shaped_feedforward(sites: list[Site]) -> set[str]:
    """Layers that narrow, and read more than others of their block do, or stand alone in it."""
    widths: dict[int | None, list[int]] = {}
    for site in sites:
        widths.setdefault(block_of(site.name), []).append(site.in_features)
    return {
        s.name
        for s in sites
        if s.in_features > s.out_features
        and s.in_features == max(of := widths[block_of(s.name)])
        and (len(of) == 1 or min(of) < s.in_features)
    }


def shaped_keys(sites: list[Site]) -> set[str]:
    """Of three or more layers side by side that read the same width, the two that write least."""
    beside: dict[tuple[str, int], list[Site]] = {}
    for site in sites:
        beside.setdefault((site.name.rpartition(".")[0], site.in_features), []).append(site)
    found: set[str] = set()
    for group in beside.values():
        if len(group) > 2:
            least = sorted(enumerate(group), key=lambda p: (p[1].out_features, p[0] not in (1, 2)))
            found |= {site.name for _, site in least[:2]}
    return found
