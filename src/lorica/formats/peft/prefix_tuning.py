"""PREFIX_TUNING: prefix_tuning.

    prompt_embeddings (n, L * 2 * K * D)    layer by layer, keys first, by head

PEFT has one number of heads and one head size for all layers.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from lorica.core.adapter import Adapter
from lorica.core.bank import Spec, attached
from lorica.errors import FileError
from lorica.formats.peft.virtual_tokens import VirtualLayout
from lorica.methods.prefix_tuning import PrefixAdapter, PrefixTuning


class PrefixTuningLayout(VirtualLayout):
    kind = "PREFIX_TUNING"
    method = PrefixTuning
    settings: ClassVar = {
        *VirtualLayout.settings,
        "encoder_hidden_size",
        "init_weights",
        "prefix_projection",
    }

    def holds(self, spec: Spec, adapters: Mapping[str, Adapter]) -> bool:
        return super().holds(spec, adapters) and all(
            len(set(_sizes(adapter))) == 1 for adapter in adapters.values()
        )

    def config(self, model: nn.Module, name: str) -> dict[str, Any]:
        (adapter,) = attached(model, name).adapters.values()
        heads, size = _sizes(adapter)[0]
        return {
            **super().config(model, name),
            "token_dim": heads * size,
            "num_attention_heads": heads,
            "prefix_projection": False,
        }

    def table(self, adapter: Adapter) -> Tensor:
        assert isinstance(adapter, PrefixAdapter)
        return adapter.table()

    def check(self, adapter: Adapter, config: Mapping[str, Any], source: str) -> None:
        heads, width = config.get("num_attention_heads") or 0, config.get("token_dim") or 0
        theirs, ours = (heads, width // heads if heads else 0), set(_sizes(adapter))
        if ours != {theirs}:
            raise FileError(
                f"{source} was made for other attention heads.",
                file=f"{theirs[0]} heads of {theirs[1]}",
                base=" and ".join(f"{k} heads of {d}" for k, d in sorted(ours)),
                fix="load the base that the adapter was trained on",
            )


def _sizes(adapter: Adapter) -> list[tuple[int, int]]:
    """(K, D) of the keys and values of every layer."""
    assert isinstance(adapter, PrefixAdapter)
    return [size for pair in adapter.sizes.values() for size in pair]
