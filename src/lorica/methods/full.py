"""Full fine-tuning: every tensor of the target layers is trained, W <- W - lr * step.

The trained copies are float32 and belong to the adapter. The base is unchanged, can be used beside
them, and comes back exactly. Tensors that the base ties stay tied.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from lorica.core.adapter import Method, Rates
from lorica.core.modules_to_save import ModuleCopies, ModuleCopy
from lorica.core.site import Site


@dataclass(frozen=True, kw_only=True)
class Full(Method, name="full"):
    kinds: ClassVar[tuple[str, ...]] = ("linear", "embedding", "other")
    count: ClassVar[str] = "parameters of the layer"
    rates: ClassVar[Rates] = (0.003, 2e-5, 1.0)
    rate_source: ClassVar[str] = "Lit-LLaMA (3e-5) and PEFT's method comparison (1e-5)"
    to_lora: ClassVar[Literal["exact", "approximate", "never"]] = "approximate"
    on_quantised: ClassVar[bool] = False
    mixes: ClassVar[bool] = False

    def choose(self, sites: list[Site]) -> list[Site]:
        return sites

    def share(self, sites: list[Site]) -> ModuleCopies:
        return ModuleCopies()

    def build(self, site: Site, shared: Any) -> ModuleCopy:
        return shared.build(site)
