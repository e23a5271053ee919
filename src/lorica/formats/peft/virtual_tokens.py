"""What the layouts of prompt learning share: one table under prompt_embeddings.

    prompt_embeddings (n, ...)          what the network makes, where there is one
    reparametrisation.e  .mlp.0.weight  ...   the network, so that training can go on from it

PEFT folds the network into the table, as the papers do, and reads nothing but the table. A folder
of ours keeps the network beside it; a table that is not what its network makes is refused.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lorica.base.model_view import config_view_of
from lorica.core.adapter import Adapter
from lorica.core.bank import Spec, attached, spec_of
from lorica.core.targets import Targets
from lorica.errors import FileError
from lorica.formats.peft.layout import Layout
from lorica.methods.prompt_tuning import Virtual

TABLE, NETWORK = "prompt_embeddings", "reparametrisation."
FIRST = f"{NETWORK}mlp.0.weight"


class VirtualLayout(Layout):
    """method: the class of our settings."""

    prefix = "base_model."
    marks = (TABLE, NETWORK)
    targeted = False
    settings: ClassVar = {
        "num_attention_heads",
        "num_layers",
        "num_transformer_submodules",
        "num_virtual_tokens",
        "token_dim",
    }
    method: ClassVar[type[Virtual]]

    def table(self, adapter: Adapter) -> Tensor:
        """What stands in front of every row, as PEFT lays it out (n, ...)."""
        raise NotImplementedError

    def check(self, adapter: Adapter, config: Mapping[str, Any], source: str) -> None:
        """Raises: FileError if the table means something else here than in PEFT."""

    def holds(self, spec: Spec, adapters: Mapping[str, Adapter]) -> bool:
        return type(spec.method) is self.method and not spec.targets.trainable_token_indices

    def config(self, model: nn.Module, name: str) -> dict[str, Any]:
        method = spec_of(model, name).method
        assert isinstance(method, Virtual)
        foreign: Any = model.config
        text = foreign.get_text_config()
        return {
            "num_virtual_tokens": method.num_virtual_tokens,
            "token_dim": text.hidden_size,
            "num_transformer_submodules": 1,
            "num_attention_heads": text.num_attention_heads,
            "num_layers": text.num_hidden_layers,
        }

    def spec(self, config: Mapping[str, Any], file: Mapping[str, Tensor], source: str) -> Spec:
        n, problems = config.get("num_transformer_submodules"), []
        if n not in (None, 1):
            problems.append(f"num_transformer_submodules {n} (an encoder and a decoder)")
        self.check_supported(config, source, problems)
        width = len(file[FIRST]) if FIRST in file else None
        method = self.method(
            num_virtual_tokens=int(config.get("num_virtual_tokens") or 0), reparametrisation=width
        )
        fields = self.targets(config, file)
        return Spec(method, Targets(modules_to_save=fields["modules_to_save"]), seed=0)

    def notices(self, model: nn.Module) -> list[str]:
        window = config_view_of(model).window
        if window is None:
            return []
        seen = "in longer rows PEFT loses sight of virtual tokens, and lorica does not"
        return [f"this base attends within windows of {window} tokens: {seen}"]

    @torch.no_grad()
    def write(self, model: nn.Module, name: str) -> dict[str, Tensor]:
        (adapter,) = attached(model, name).adapters.values()
        file = super().write(model, name)
        file[TABLE] = self.table(adapter).detach().clone()
        if _network(adapter) is not None:
            file |= {NETWORK + key: t.detach() for key, t in adapter.named_parameters()}
        return file

    @torch.no_grad()
    def read(
        self,
        model: nn.Module,
        name: str,
        file: Mapping[str, Tensor],
        config: Mapping[str, Any],
        source: str,
    ) -> dict[str, Tensor]:
        ((site, adapter),) = attached(model, name).adapters.items()
        self.check(adapter, config, source)
        state = super().read(model, name, file, config, source)
        table, mlp = state.pop(TABLE, None), _network(adapter)
        if mlp is None:
            return state if table is None else {**state, f"{site}.e": table}
        own = {key.removeprefix(NETWORK): state.pop(key) for key in file if key.startswith(NETWORK)}
        if table is not None and own.keys() == dict(adapter.named_parameters()).keys():
            weights = {k.removeprefix("mlp."): t for k, t in own.items() if k != "e"}
            output = functional_call(mlp, weights, own["e"])
            same = output.shape == table.shape
            if not same or not torch.allclose(output, table, atol=1e-4, rtol=1e-4):
                raise FileError(
                    f"the {TABLE} of {source} is not the output of its network.",
                    fix=f"remove the tensors {NETWORK}* if the table was trained on without them",
                )
        return {**state, **{f"{site}.{key}": tensor for key, tensor in own.items()}}

    def peft_tensors(self, adapter: Adapter) -> dict[str, Tensor]:
        return {}

    def own_tensors(
        self, site: str, adapter: Adapter, tensors: dict[str, Tensor], config: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        return {}


def _network(adapter: Adapter) -> nn.Module | None:
    """The network that generates the virtual tokens; None: they are trained themselves."""
    return dict(adapter.named_children()).get("mlp")
