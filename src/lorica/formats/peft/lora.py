"""LORA: lora and dora.

    lora_A.weight (R, I)   lora_B.weight (O, R)   lora_B.bias   lora_magnitude_vector
    lora_embedding_A       lora_embedding_B

Weights of fused experts lie as formats/peft/experts.py says.

A LoRA whose start is taken out again (pissa, olora) is written as a plain one of rank 2 r on the
untouched base: [A; A0] and [B, -B0], which loses no bit. PEFT's own files of such starts hold A
and B alone, and mean a base without B0 A0; the start is remade from the base's weights.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lorica.core.adapter import Adapter
from lorica.core.bank import Spec, attached, spec_of
from lorica.core.site import Site
from lorica.core.targets import Targets
from lorica.errors import FileError, listed
from lorica.formats.peft import experts
from lorica.formats.peft.layout import Layout, number, own_sites, places, sites
from lorica.formats.peft.matching import parameter_patterns, places_for
from lorica.formats.peft.types import check_types
from lorica.methods.dora import Dora
from lorica.methods.lora import Lora, LoraAdapter
from lorica.methods.lora.experts import ExpertDora, ExpertLora

REMADE = ("pissa", "olora")
"""Starts that change PEFT's base, and follow from its weights."""
STARTS = (True, False, "gaussian", "orthogonal", "eva", *REMADE)


class LoraLayout(Layout):
    kind = "LORA"
    marks = ("lora_",)
    settings: ClassVar = {
        "alpha_pattern",
        "init_lora_weights",
        "lora_alpha",
        "lora_bias",
        "lora_dropout",
        "megatron_core",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "target_parameters",
        "use_dora",
        "use_rslora",
    }

    def holds(self, spec: Spec, adapters: Mapping[str, Adapter]) -> bool:
        # Not what extends them: it is another method. Nor what goes with codes of its own.
        if any(type(adapter) is ExpertDora for adapter in adapters.values()):
            return False
        return type(spec.method) in (Lora, Dora) and not spec.method.replaces_weights

    def config(self, model: nn.Module, name: str) -> dict[str, Any]:
        method = spec_of(model, name).method
        assert isinstance(method, Lora)
        wider = 2 if method.initialization.subtracts_initial else 1
        grown = math.sqrt(wider) if method.use_rslora else wider  # the scale stays
        r, alpha = wider * method.r, grown * method.numerator
        loras = {
            site: adapter
            for site, adapter in attached(model, name).adapters.items()
            if isinstance(adapter, LoraAdapter | ExpertLora)
        }
        ranks = {site: wider * a.r for site, a in loras.items()}
        alphas = {site: grown * a.numerator for site, a in loras.items()}
        where = places(model, name, self.kind, parameters=_on_weights(model, name))
        weights = where.get("target_parameters", [])
        patterns = (
            {site: own_r for site, own_r in ranks.items() if own_r != r},
            {site: number(own) for site, own in alphas.items() if own != alpha},
        )
        ranked, scaled = (parameter_patterns(pattern, weights) for pattern in patterns)
        config: dict[str, Any] = {
            "r": r,
            "lora_alpha": number(alpha),
            "lora_dropout": 0.0 if weights else method.dropout,  # PEFT has none on weights
            **where,
            "bias": "none",
            "use_rslora": method.use_rslora,
            "use_dora": isinstance(method, Dora),
            "rank_pattern": ranked,
            "alpha_pattern": scaled,
        }
        if method.lora_bias:
            config["lora_bias"] = True
        return config

    def check_supported(
        self, config: Mapping[str, Any], source: str, problems: Collection[str] = ()
    ) -> None:
        super().check_supported(_by_layers(config), source, problems)

    def peft_problems(self, model: nn.Module, name: str) -> list[str]:
        on_weights = _on_weights(model, name)
        own = own_sites(model, name)
        return places_for(model, own, self.kind, parameters=on_weights).problems

    def spec(self, config: Mapping[str, Any], file: Mapping[str, Tensor], source: str) -> Spec:
        check_types(config, source)
        config, problems = _by_layers(config), []
        start = config.get("init_lora_weights", True)
        if start not in STARTS:
            problems.append(f"init_lora_weights {start!r} (it changed the base's weights)")
        stacks = config.get("target_parameters") or []
        if layers := [str(key) for key in stacks if str(key).endswith(".weight")]:
            problems.append(f"target_parameters {listed(layers)} beside a regex in target_modules")
        self.check_supported(config, source, problems)
        kind = Dora if config.get("use_dora") else Lora
        method = kind(
            init=str(start) if start in REMADE else "kaiming",
            r=int(config.get("r", 8)),
            alpha=float(config.get("lora_alpha", 8)),
            use_rslora=bool(config.get("use_rslora")),
            dropout=float(config.get("lora_dropout", 0.0)),
            lora_bias=bool(config.get("lora_bias")),
        )
        alphas = config.get("alpha_pattern") or {}
        fields = self.targets(config, file)
        if stacks:
            fields |= {
                "target_modules": fields["target_modules"] or [],
                "target_parameters": stacks,
            }
        targets = Targets(
            **fields,
            rank_pattern=dict(config.get("rank_pattern") or {}),
            alpha_pattern={k: float(v) for k, v in alphas.items()},
        )
        return Spec(method, targets, seed=0)

    def peft_tensors(self, adapter: Adapter) -> dict[str, Tensor]:
        if isinstance(adapter, ExpertLora):
            return experts.peft_tensors(adapter)
        assert isinstance(adapter, LoraAdapter)
        file: dict[str, Tensor] = dict(adapter.named_parameters())
        a0, b0 = adapter.a0, adapter.b0
        if a0 is not None and b0 is not None:
            file["a"], file["b"] = torch.cat([adapter.a, a0]), torch.cat([adapter.b, -b0], dim=1)
        return {_names(adapter)[key]: tensor.detach() for key, tensor in file.items()}

    def write(self, model: nn.Module, name: str) -> dict[str, Tensor]:
        names = experts.names_in_peft(self.prefix, own_sites(model, name))
        return {names.get(key, key): t for key, t in super().write(model, name).items()}

    def read(
        self,
        model: nn.Module,
        name: str,
        file: Mapping[str, Tensor],
        config: Mapping[str, Any],
        source: str,
    ) -> dict[str, Tensor]:
        start = config.get("init_lora_weights")
        if start in REMADE:
            _check_remade(str(start), sites(model, name), source)
        names = experts.names_in_peft(self.prefix, own_sites(model, name))
        ours = {theirs: own for own, theirs in names.items()}
        file = {ours.get(key, key): tensor for key, tensor in file.items()}
        return super().read(model, name, file, config, source)

    def own_tensors(
        self, site: str, adapter: Adapter, tensors: dict[str, Tensor], config: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        if isinstance(adapter, ExpertLora):
            return experts.own_tensors(adapter, tensors)
        assert isinstance(adapter, LoraAdapter)
        names = _names(adapter)
        state = {key: tensors.pop(name) for key, name in names.items() if name in tensors}
        if adapter.a0 is None or adapter.b0 is None or not {"a", "b"} <= state.keys():
            return state
        if config.get("init_lora_weights") in REMADE:
            return {**state, "a0": adapter.a0.clone(), "b0": adapter.b0.clone()}
        (state["a"], state["a0"]), (state["b"], b0) = (
            state["a"].tensor_split([adapter.r]),
            state["b"].tensor_split([adapter.r], dim=1),
        )
        return {**state, "b0": -b0}


def _on_weights(model: nn.Module, name: str) -> bool:
    """PEFT can put the adapter on weights in place of layers: a plain LoRA on plain layers."""
    method = spec_of(model, name).method
    own = [site for site in own_sites(model, name) if site.kind != "expert"]
    plain = type(method) is Lora and not method.lora_bias
    return plain and all(s.kind == "linear" and s.is_dense and not s.transposed for s in own)


def _by_layers(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with weights of target_parameters as layers; those of experts stay."""
    weights, modules = config.get("target_parameters"), config.get("target_modules") or []
    if not isinstance(weights, list) or not isinstance(modules, list):
        return dict(config)
    layers = [str(key) for key in weights if str(key).endswith(".weight")]
    patterns = {
        key: {k.removesuffix(".weight"): v for k, v in (config.get(key) or {}).items()}
        for key in ("rank_pattern", "alpha_pattern")
    }
    modules = [*modules, *(key.removesuffix(".weight") for key in layers)]
    stacks = [key for key in weights if key not in layers]
    return {**config, **patterns, "target_modules": modules, "target_parameters": stacks}


def _names(adapter: LoraAdapter) -> dict[str, str]:
    pair = (
        {"a": "lora_embedding_A", "b": "lora_embedding_B"}
        if adapter.lookup
        else {"a": "lora_A.weight", "b": "lora_B.weight", "bias": "lora_B.bias"}
    )
    return {**pair, "m": "lora_magnitude_vector"}


def _check_remade(start: str, adapters: list[tuple[Site, Adapter]], source: str) -> None:
    """Raises: FileError where PEFT's start does not follow from the base that is here."""
    loras = [site for site, adapter in adapters if isinstance(adapter, LoraAdapter)]
    if packed := [site.name for site in loras if not site.is_dense]:
        raise FileError(
            f"{source} began with {start} of the float base, and the base here is quantised.",
            layers=listed(packed),
            fix="load the base without quantisation",
        )
    if start == "olora" and (turned := [site.name for site in loras if site.transposed]):
        raise FileError(
            f"{source}: PEFT's olora takes the transposed weight of {turned[0]}: the file is not "
            "what it was trained as.",
            fix="train it again here",
        )
