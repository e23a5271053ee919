"""ADALORA: adalora.

    lora_A (R, I)   lora_E (R, 1)   lora_B (O, R)

PEFT cuts the components that its rank_pattern masks out of the file, and keeps the scale
alpha / (init_r + 1e-5). Here they come back as zeros; we write every component and no
rank_pattern. total_step is demanded by PEFT and says nothing of the result.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lorica.core.adapter import Adapter
from lorica.core.bank import Spec, attached, spec_of
from lorica.core.targets import Targets
from lorica.errors import FileError
from lorica.formats.peft.layout import Layout, is_uniform, number, places
from lorica.methods.adalora import Adalora, AdaloraAdapter

TRAINING = ("tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight")


class AdaloraLayout(Layout):
    kind = "ADALORA"
    marks = ("lora_",)
    settings: ClassVar = {
        "alpha_pattern",
        "init_lora_weights",
        "init_r",
        "lora_alpha",
        "lora_dropout",
        "megatron_core",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "runtime_config",
        "target_r",
        "total_step",
        "use_rslora",
        *TRAINING,
    }

    def holds(self, spec: Spec, adapters: Mapping[str, Adapter]) -> bool:
        return type(spec.method) is Adalora and is_uniform(spec.targets)

    def config(self, model: nn.Module, name: str) -> dict[str, Any]:
        method = spec_of(model, name).method
        assert isinstance(method, Adalora)
        adapter = next(iter(attached(model, name).adapters.values()))
        assert isinstance(adapter, AdaloraAdapter)
        tinit, tfinal = method.tinit or 0, method.tfinal or 0
        return {
            "init_r": method.r,
            "target_r": adapter.target,
            "lora_alpha": number(2.0 * method.r if method.alpha is None else method.alpha),
            "lora_dropout": method.dropout,
            **places(model, name, self.kind),
            "bias": "none",
            "tinit": tinit,
            "tfinal": tfinal,
            "deltaT": method.deltaT or 1,
            "beta1": method.beta1,
            "beta2": method.beta2,
            "orth_reg_weight": method.orth_reg_weight,
            "total_step": tinit + tfinal + 1,
        }

    def spec(self, config: Mapping[str, Any], file: Mapping[str, Tensor], source: str) -> Spec:
        self.check_supported(config, source)
        r, alpha = int(config.get("init_r", 12)), float(config.get("lora_alpha", 8))
        method = Adalora(
            r=r,
            target_r=min(int(config.get("target_r", 8)), r),
            alpha=alpha if alpha > 0 else float(r),
            dropout=float(config.get("lora_dropout", 0.0)),
            **{key: config[key] for key in TRAINING if key in config},
        )
        return Spec(method, Targets(**self.targets(config, file)), seed=0)

    def peft_tensors(self, adapter: Adapter) -> dict[str, Tensor]:
        assert isinstance(adapter, AdaloraAdapter)
        e = adapter.e.detach().unsqueeze(1)
        return {"lora_A": adapter.a.detach(), "lora_E": e, "lora_B": adapter.b.detach()}

    def own_tensors(
        self, site: str, adapter: Adapter, tensors: dict[str, Tensor], config: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        names = {"a": "lora_A", "e": "lora_E", "b": "lora_B"}
        state = {key: tensors.pop(name) for key, name in names.items() if name in tensors}
        if "e" in state:
            state["e"] = state["e"].flatten()
        mask = (config.get("rank_pattern") or {}).get(f"{site}.lora_E")
        if mask is None or state.keys() != names.keys():
            return state
        kept = torch.tensor(mask, dtype=torch.bool).nonzero().flatten()
        if len(kept) != len(state["e"]):
            raise FileError(
                f"the rank_pattern of {site} keeps {len(kept)} components, and the file has "
                f"{len(state['e'])}.",
                fix="copy the folder anew",
            )
        return {
            key: torch.zeros(
                *(len(mask) if i == axis else n for i, n in enumerate(tensor.shape)),
                dtype=tensor.dtype,
            ).index_copy(axis, kept, tensor)
            for key, axis, tensor in (
                ("a", 0, state["a"]),
                ("e", 0, state["e"]),
                ("b", 1, state["b"]),
            )
        }
