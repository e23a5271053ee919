"""IA3: ia3.

ia3_l (1, I) at layers that are scaled at their input (feedforward_modules), else (O, 1)
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from lorica.core.adapter import Adapter
from lorica.core.bank import Spec, attached
from lorica.core.targets import Targets
from lorica.formats.peft.layout import Layout, places
from lorica.methods.ia3 import Ia3, Ia3Adapter

KEY = "ia3_l"


class Ia3Layout(Layout):
    kind = "IA3"
    marks = (KEY,)
    settings: ClassVar = {"feedforward_modules", "init_ia3_weights"}

    def holds(self, spec: Spec, adapters: Mapping[str, Adapter]) -> bool:
        return type(spec.method) is Ia3 and not spec.targets.trainable_token_indices

    def config(self, model: nn.Module, name: str) -> dict[str, Any]:
        scaled = {
            s: a.feedforward
            for s, a in attached(model, name).adapters.items()
            if isinstance(a, Ia3Adapter)
        }
        config = {**places(model, name, self.kind), "feedforward_modules": endings(scaled)}
        named = config["target_modules"]
        if isinstance(named, str) or not set(config["feedforward_modules"]) <= set(named):
            config["target_modules"] = list(scaled)  # PEFT holds the entries against each other
            config["feedforward_modules"] = [site for site, yes in scaled.items() if yes]
        return config

    def spec(self, config: Mapping[str, Any], file: Mapping[str, Tensor], source: str) -> Spec:
        self.check_supported(config, source)
        shapes = {
            key.removeprefix(self.prefix).removesuffix(f".{KEY}"): tensor.shape
            for key, tensor in file.items()
            if key.endswith(KEY)
        }
        scaled = {site: shape[0] == 1 for site, shape in shapes.items()}
        method = Ia3(feedforward_modules=endings(scaled))
        return Spec(method, Targets(**self.targets(config, file)), seed=0)

    def peft_tensors(self, adapter: Adapter) -> dict[str, Tensor]:
        assert isinstance(adapter, Ia3Adapter)
        return {KEY: adapter.l.detach().unsqueeze(0 if adapter.feedforward else 1)}

    def own_tensors(
        self, site: str, adapter: Adapter, tensors: dict[str, Tensor], config: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        assert isinstance(adapter, Ia3Adapter)
        want = (1, len(adapter.l)) if adapter.feedforward else (len(adapter.l), 1)
        if KEY not in tensors or tensors[KEY].shape != want:
            return {}  # the strict loader names what does not fit
        return {"l": tensors.pop(KEY).flatten()}


def endings(scaled: Mapping[str, bool]) -> list[str]:
    """The shortest list of name endings that names exactly the sites that are True."""
    wanted = [site for site, yes in scaled.items() if yes]
    leaves = sorted({site.rpartition(".")[2] for site in wanted})
    hit = [site for site in scaled if site.endswith(tuple(leaves))]  # PEFT asks for no dot before
    return leaves if len(hit) == len(wanted) else wanted
