"""Two starts that lorica's methods do not have, because they are known to be bad.

Importing this file registers both under their names.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lorica.core.adapter import Adapter
from lorica.core.site import Site
from lorica.methods.llama_adapter import LlamaAdapter
from lorica.methods.prompt_tuning import PromptTuning


@dataclass(frozen=True, kw_only=True)
class OpenGates(LlamaAdapter, name="llama_adapter_open"):
    """LLaMA-Adapter with every gate at 1 at the start."""

    starts_as_base: ClassVar[bool] = False

    def build(self, site: Site, shared: Any) -> Adapter:
        adapter: Any = super().build(site, shared)
        nn.init.ones_(adapter.g)
        return adapter


@dataclass(frozen=True, kw_only=True)
class UnitPrompts(PromptTuning, name="prompt_tuning_unit"):
    """Prompt tuning that starts from N(0, 1), as PEFT draws it."""

    def vectors(self, decoder: nn.Module, init: str) -> Tensor:
        return torch.randn_like(super().vectors(decoder, init))
