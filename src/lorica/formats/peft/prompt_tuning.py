"""PROMPT_TUNING and P_TUNING: prompt_tuning.

    prompt_embeddings (n, C)

PEFT writes the same table for both: how it began, and what made it, says nothing of the result.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from lorica.core.adapter import Adapter
from lorica.core.bank import Spec
from lorica.formats.peft.virtual_tokens import VirtualLayout
from lorica.methods.prompt_tuning import PromptAdapter, PromptTuning


class PromptTuningLayout(VirtualLayout):
    kind = "PROMPT_TUNING"
    method = PromptTuning
    settings: ClassVar = {
        *VirtualLayout.settings,
        "encoder_dropout",
        "encoder_hidden_size",
        "encoder_num_layers",
        "encoder_reparameterization_type",
        "prompt_tuning_init",
        "prompt_tuning_init_text",
        "tokenizer_kwargs",
        "tokenizer_name_or_path",
    }

    def config(self, model: nn.Module, name: str) -> dict[str, Any]:
        return {**super().config(model, name), "prompt_tuning_init": "RANDOM"}

    def table(self, adapter: Adapter) -> Tensor:
        assert isinstance(adapter, PromptAdapter)
        return adapter.prompt()


class PTuningLayout(VirtualLayout):
    """Read only: ours is written as PROMPT_TUNING."""

    kind = "P_TUNING"
    method = PromptTuning
    settings = PromptTuningLayout.settings

    def holds(self, spec: Spec, adapters: Mapping[str, Adapter]) -> bool:
        return False
