"""VERA: vera.

    vera_lambda_d (R,)   vera_lambda_b (O,)
    base_model.vera_A (R, largest I)   base_model.vera_B (largest O, R)     once, for all layers

Without save_projection the last two are drawn anew, by PEFT from projection_prng_key and by us
from the adapter's seed; both draw the same numbers.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from lorica.core.adapter import Adapter
from lorica.core.bank import Spec, attached, spec_of
from lorica.core.targets import Targets
from lorica.formats.peft.layout import Layout, is_uniform, places
from lorica.methods.vera import Vera, VeraAdapter

SHARED = {"base_model.vera_A": "a", "base_model.vera_B": "b"}
NAMES = {"d": "vera_lambda_d", "v": "vera_lambda_b"}


class VeraLayout(Layout):
    kind = "VERA"
    marks = ("vera_",)
    settings: ClassVar = {
        "d_initial",
        "init_weights",
        "projection_prng_key",
        "r",
        "save_projection",
        "vera_dropout",
    }

    def holds(self, spec: Spec, adapters: Mapping[str, Adapter]) -> bool:
        targets = spec.targets
        return (
            type(spec.method) is Vera
            and is_uniform(targets)
            and not targets.trainable_token_indices
        )

    def config(self, model: nn.Module, name: str) -> dict[str, Any]:
        spec = spec_of(model, name)
        method = spec.method
        assert isinstance(method, Vera)
        return {
            "r": method.r,
            "d_initial": method.d_initial,
            "vera_dropout": method.dropout,
            **places(model, name, self.kind),
            "bias": "none",
            "projection_prng_key": spec.seed,
            "save_projection": method.save_projection,
        }

    def spec(self, config: Mapping[str, Any], file: Mapping[str, Tensor], source: str) -> Spec:
        self.check_supported(config, source)
        method = Vera(
            r=int(config.get("r", 256)),
            d_initial=float(config.get("d_initial") or 0.1),  # 0 is no start, and may be an end
            dropout=float(config.get("vera_dropout", 0.0)),
            save_projection=bool(config.get("save_projection", True)),
        )
        seed = int(config.get("projection_prng_key") or 0)
        return Spec(method, Targets(**self.targets(config, file)), seed)

    def peft_tensors(self, adapter: Adapter) -> dict[str, Tensor]:
        return {NAMES[key]: tensor.detach() for key, tensor in adapter.named_parameters()}

    def own_tensors(
        self, site: str, adapter: Adapter, tensors: dict[str, Tensor], config: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        return {key: tensors.pop(name) for key, name in NAMES.items() if name in tensors}

    def write(self, model: nn.Module, name: str) -> dict[str, Tensor]:
        method = spec_of(model, name).method
        assert isinstance(method, Vera)
        file = super().write(model, name)
        adapter = next(iter(attached(model, name).adapters.values()))
        assert isinstance(adapter, VeraAdapter)
        if method.save_projection:
            file |= {key: getattr(adapter.projections, ours) for key, ours in SHARED.items()}
        return file

    def read(
        self,
        model: nn.Module,
        name: str,
        file: Mapping[str, Tensor],
        config: Mapping[str, Any],
        source: str,
    ) -> dict[str, Tensor]:
        state = super().read(model, name, file, config, source)
        first = next(
            iter(attached(model, name).adapters)
        )  # shared tensors stand under the first site
        for key, ours in SHARED.items():
            if key in state and config.get("save_projection", True):
                state[f"{first}.projections.{ours}"] = state.pop(key)
        return state
