"""What the layouts of PEFT have in common: names of tensors, settings, and what is refused.

base_model.model.<layer>.<key of the method>
base_model.model.<layer>.weight                                (modules_to_save)
base_model.model.<layer>.token_adapter.trainable_tokens_delta  (rows, not differences)
"""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from lorica.core.adapter import Adapter
from lorica.core.bank import Spec, attached, spec_of
from lorica.core.modules_to_save import ModuleCopy
from lorica.core.site import Site
from lorica.core.targets import Targets
from lorica.errors import FileError, listed
from lorica.formats.peft import whole_layers
from lorica.formats.peft.matching import places_for
from lorica.formats.peft.types import check_types

COMMON = {
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "revision",
    "target_modules",
    "task_type",
    "trainable_token_indices",
}
HARMLESS: tuple[object, ...] = (None, False, {}, [], "none")


class Layout:
    """How PEFT writes one kind of adapter. One final class for each peft_type.

    kind: the peft_type. prefix: what stands before the names of the base's layers. marks: parts
    of the keys that are the method's. settings: keys of the config that are read, or that say
    nothing about the result.
    """

    kind: ClassVar[str]
    prefix: ClassVar[str] = "base_model.model."
    marks: ClassVar[tuple[str, ...]]
    settings: ClassVar[Collection[str]] = ()
    targeted: ClassVar[bool] = True
    """It acts on layers that target_modules names."""

    def holds(self, spec: Spec, adapters: Mapping[str, Adapter]) -> bool:
        """PEFT has a place for all that an adapter of `spec`, these at their sites, is."""
        raise NotImplementedError

    def config(self, model: nn.Module, name: str) -> dict[str, Any]:
        """The method's own keys of adapter_config.json."""
        raise NotImplementedError

    def spec(self, config: Mapping[str, Any], file: Mapping[str, Tensor], source: str) -> Spec:
        """What a folder of PEFT asks for. Raises: FileError for what is not understood."""
        raise NotImplementedError

    def peft_tensors(self, adapter: Adapter) -> dict[str, Tensor]:
        """The tensors of one site under PEFT's names."""
        raise NotImplementedError

    def own_tensors(
        self, site: str, adapter: Adapter, tensors: dict[str, Tensor], config: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """The tensors of one site under our names. Known ones are popped from `tensors`."""
        raise NotImplementedError

    def notices(self, model: nn.Module) -> list[str]:
        """Named lines on what PEFT would do otherwise with a file of its own."""
        return []

    def peft_problems(self, model: nn.Module, name: str) -> list[str]:
        """Why PEFT would not adapt the layers that adapter `name` is on; []: it reads it."""
        if not self.targeted:
            return []
        return places_for(model, own_sites(model, name), self.kind).problems

    def write(self, model: nn.Module, name: str) -> dict[str, Tensor]:
        """Every tensor of adapter `name` under PEFT's names."""
        file = {
            f"{self.prefix}{site}.{key}": tensor
            for site, adapter in attached(model, name).adapters.items()
            for key, tensor in self.peft_tensors(adapter).items()
        }
        return file | whole_layers.peft_tensors(model, name, self.prefix)

    def read(
        self,
        model: nn.Module,
        name: str,
        file: Mapping[str, Tensor],
        config: Mapping[str, Any],
        source: str,
    ) -> dict[str, Tensor]:
        """PEFT's tensors under our names; names that we do not know stay, for the strict loader.

        In place, in adapter `name`: layers that the base ties and that were trained apart.
        """
        adapters = attached(model, name).adapters
        by_site: dict[str, dict[str, Tensor]] = {site: {} for site in adapters}
        rest: dict[str, Tensor] = {}
        for key, tensor in file.items():
            site, own = _split(key.removeprefix(self.prefix), adapters)
            if site is not None and key.startswith(self.prefix) and own.startswith(self.marks):
                by_site[site][own] = tensor
            else:
                rest[key] = tensor
        state = whole_layers.own_tensors(model, name, self.prefix, rest, source)
        for site, adapter in adapters.items():
            ours = self.own_tensors(site, adapter, by_site[site], config)
            state |= {f"{site}.{key}": tensor for key, tensor in ours.items()}
            state |= {f"{self.prefix}{site}.{key}": t for key, t in by_site[site].items()}
        return state

    def check_supported(
        self, config: Mapping[str, Any], source: str, problems: Collection[str] = ()
    ) -> None:
        """Raises: FileError that lists `problems`, and every setting that is not known.

        A value of another type than PEFT writes is refused first, all of them at once.
        """
        check_types(config, source)
        unknown = [
            f"{key} {value!r}"
            for key, value in config.items()
            if key not in COMMON | set(self.settings) and value not in HARMLESS
        ]
        named = config.get("target_modules") or config.get("target_parameters")
        if self.targeted and not named:
            unknown.append("target_modules is empty")
        if wrong := [*problems, *unknown]:
            raise FileError(
                f"{source}: this PEFT adapter uses what lorica does not read.",
                settings=listed(wrong, 8),
                fix="merge it with PEFT, or train it again here",
            )

    def targets(self, config: Mapping[str, Any], file: Mapping[str, Tensor]) -> dict[str, Any]:
        """The fields of Targets that every method of PEFT has.

        What was really saved is read off the tensors: PEFT matches modules_to_save by any ending
        of a name.
        """
        layers = config.get("layers_to_transform")
        whole = whole_layers.saved_whole(list(file), self.prefix, self.marks)
        return {
            "target_modules": config.get("target_modules"),
            "exclude_modules": config.get("exclude_modules") or None,
            "layers_to_transform": [layers] if isinstance(layers, int) else layers,
            "modules_to_save": whole_layers.containers(whole, config.get("modules_to_save") or []),
            "trainable_token_indices": whole_layers.token_ids(
                config.get("trainable_token_indices")
            ),
        }


def config_of(layout: Layout, model: nn.Module, name: str, base_path: str) -> dict[str, Any]:
    """adapter_config.json: PEFT's own keys, and only those that older readers know too."""
    targets = spec_of(model, name).targets
    copied = [site.name for site, a in sites(model, name) if isinstance(a, ModuleCopy)]
    config = {
        "peft_type": layout.kind,
        "task_type": task(model),
        "base_model_name_or_path": base_path,
        "inference_mode": True,
        "modules_to_save": whole_layers.containers(copied, targets.modules_to_save) or None,
        **layout.config(model, name),
    }
    if targets.trainable_token_indices:
        config["trainable_token_indices"] = list(targets.trainable_token_indices)
    return config


def places(model: nn.Module, name: str, kind: str, *, parameters: bool = False) -> dict[str, Any]:
    """The keys that say where the method's own adapters are.

    kind: the peft_type. parameters: see `places_for`.
    """
    own = own_sites(model, name)
    target = places_for(model, own, kind, parameters=parameters)
    config: dict[str, Any] = {
        "target_modules": target.modules,
        "fan_in_fan_out": any(s.transposed and s.kind == "linear" for s in own),
    }
    return config | ({"target_parameters": target.parameters} if target.parameters else {})


def own_sites(model: nn.Module, name: str) -> list[Site]:
    """The sites of the method's own adapters."""
    own = attached(model, name)
    return [own.sites[site] for site in own.adapters]


def sites(model: nn.Module, name: str) -> list[tuple[Site, Adapter]]:
    """Every site of adapter `name`, in model order."""
    own = attached(model, name)
    return [(own.sites[site], adapter) for site, adapter in own.every.items()]


def is_uniform(targets: Targets) -> bool:
    """No site has settings of its own."""
    return not targets.rank_pattern and not targets.alpha_pattern


def task(model: nn.Module) -> str:
    return "SEQ_CLS" if "SequenceClassification" in type(model).__name__ else "CAUSAL_LM"


def number(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value


def _split(key: str, sites: Collection[str]) -> tuple[str | None, str]:
    """A key as (site, the rest); the longest site that fits; None: it is of no site."""
    parts = key.split(".")
    for i in range(len(parts) - 1, 0, -1):
        if (site := ".".join(parts[:i])) in sites:
            return site, ".".join(parts[i:])
    return None, key
