"""PEFT's adapter layout: what we write for lora and dora, and what we read.

    base_model.model.<layer>.lora_A.weight  lora_B.weight  lora_B.bias  lora_magnitude_vector
    base_model.model.<layer>.lora_embedding_A  lora_embedding_B
    base_model.model.<layer>.weight                                (modules_to_save)
    base_model.model.<layer>.token_adapter.trainable_tokens_delta  (rows, not differences)

Read off peft 0.21.2. Every setting that changes the result and is not known here is refused:
nothing of a foreign config is passed over.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lorica.core.port import Spec, ports, spec_of
from lorica.core.site import sites_of
from lorica.core.targets import Targets, leaf_names
from lorica.core.whole import TokenRows, Whole
from lorica.errors import FileError, listed
from lorica.methods.dora import Dora
from lorica.methods.lora import Lora, LoraAdapter

PREFIX = "base_model.model."
LINEAR = {"a": "lora_A.weight", "b": "lora_B.weight", "bias": "lora_B.bias"}
LOOKUP = {"a": "lora_embedding_A", "b": "lora_embedding_B"}
MAGNITUDE = "lora_magnitude_vector"
ROWS = "token_adapter.trainable_tokens_delta"

# Settings that say nothing about the result, and the values under which others say nothing.
SILENT = {
    "auto_mapping", "base_model_name_or_path", "fan_in_fan_out", "inference_mode", "megatron_core",
    "peft_type", "peft_version", "qalora_group_size", "revision", "task_type",
}  # fmt: skip
READ = {
    "alpha_pattern", "exclude_modules", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "lora_alpha", "lora_bias", "lora_dropout", "modules_to_save", "r",
    "rank_pattern", "target_modules", "trainable_token_indices", "use_dora", "use_rslora",
}  # fmt: skip
READ_STARTS = (True, False, "gaussian", "orthogonal", "eva", "pissa")


def is_peft_method(method: object) -> bool:
    """PEFT has a place for the trained tensors of this method."""
    return isinstance(method, Lora)


def config_of(model: nn.Module, name: str, base_path: str) -> dict[str, Any]:
    """adapter_config.json: PEFT's own keys, and only those that older readers know too."""
    spec = spec_of(model, name)
    method = spec.method
    assert isinstance(method, Lora)
    adapted = [(p.site(n, m), p[name]) for n, m, p in ports(model) if name in p]
    lora = [(site, a) for site, a in adapted if isinstance(a, LoraAdapter)]
    every = sites_of(model, ("linear", "embedding", "other"))
    own = [site for site, _ in lora]
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": _task(model),
        "base_model_name_or_path": base_path,
        "r": method.r,
        "lora_alpha": _number(method.numerator),
        "lora_dropout": method.dropout,
        "target_modules": leaf_names(own, every),
        "bias": "none",
        "fan_in_fan_out": any(s.transposed and s.kind == "linear" for s in own),
        "inference_mode": True,
        "modules_to_save": _containers(
            [s.name for s, a in adapted if isinstance(a, Whole)], spec.targets.modules_to_save
        )
        or None,
        "use_rslora": method.use_rslora,
        "use_dora": isinstance(method, Dora),
        "rank_pattern": {s.name: a.r for s, a in lora if a.r != method.r},
        "alpha_pattern": {
            s.name: _number(a.numerator) for s, a in lora if a.numerator != method.numerator
        },
    }
    if method.lora_bias:
        config["lora_bias"] = True
    if spec.targets.trainable_token_indices:
        config["trainable_token_indices"] = list(spec.targets.trainable_token_indices)
    return config


def spec_from(config: dict[str, Any], keys: list[str], source: str) -> Spec:
    """What a PEFT config asks for, as a Spec.

    keys: the tensor names in the file; PEFT matches modules_to_save by any ending of a name,
        so what was really saved is read off them.

    Raises: FileError that lists every setting that is not understood.
    """
    problems = []
    if config.get("peft_type") != "LORA":
        problems.append(f"peft_type {config.get('peft_type')!r}")
    for key, value in config.items():
        harmless = value in (None, False, {}, [], "none")
        if key not in SILENT | READ and not harmless:
            problems.append(f"{key} {value!r}")
    start = config.get("init_lora_weights", True)
    if start not in READ_STARTS:
        problems.append(f"init_lora_weights {start!r} (it changed the base's weights)")
    if not config.get("target_modules"):
        problems.append("target_modules is empty")
    if problems:
        raise FileError(
            f"{source}: this PEFT adapter uses what lorica does not read.",
            settings=listed(problems, 8),
            fix="merge it with PEFT, or train it again here",
        )
    kind = Dora if config.get("use_dora") else Lora
    method = kind(
        r=int(config.get("r", 8)),
        alpha=float(config.get("lora_alpha", 8)),
        use_rslora=bool(config.get("use_rslora")),
        dropout=float(config.get("lora_dropout", 0.0)),
        lora_bias=bool(config.get("lora_bias")),
    )
    layers = config.get("layers_to_transform")
    targets = Targets(
        target_modules=config["target_modules"],
        exclude_modules=config.get("exclude_modules") or None,
        layers_to_transform=[layers] if isinstance(layers, int) else layers,
        rank_pattern=dict(config.get("rank_pattern") or {}),
        alpha_pattern={k: float(v) for k, v in (config.get("alpha_pattern") or {}).items()},
        modules_to_save=_containers(_saved_whole(keys), config.get("modules_to_save") or []),
        trainable_token_indices=_token_ids(config.get("trainable_token_indices")),
    )
    return Spec(method, targets, seed=0)


def to_peft(model: nn.Module, name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under PEFT's names. Where tied layers share one copy, each gets it."""
    renames = _renames(model, name)
    file = {renames[key]: tensor for key, tensor in state.items()}
    for key, (adapter, parameter) in _whole(model, name).items():
        file.setdefault(f"{PREFIX}{key}", adapter.get_parameter(parameter).detach().clone())
    return file


def from_peft(
    model: nn.Module, name: str, file: dict[str, Tensor], source: str
) -> dict[str, Tensor]:
    """PEFT's tensors under our names; names that we do not know stay, for the strict loader.

    Copies of base weights that PEFT saves beside embeddings are compared and left out. Layers
    that the base ties and that were trained apart are untied in adapter `name`, in place.
    """
    ours = {theirs: key for key, theirs in _renames(model, name).items()}
    state: dict[str, Tensor] = {}
    for key, tensor in file.items():
        if key.endswith(".base_layer.weight"):
            _same_as_base(model, key.removeprefix(PREFIX), tensor, source)
        else:
            state[ours.get(key, key)] = tensor
    first_of: dict[int, str] = {}
    for key, (adapter, parameter) in _whole(model, name).items():
        own = adapter.get_parameter(parameter)
        first = first_of.setdefault(id(own), key)
        if first == key or key not in state or first not in state:
            continue
        if torch.equal(state[key], state[first]):
            del state[key]
        else:
            setattr(adapter, parameter, nn.Parameter(own.detach().clone()))
    return state


def _whole(model: nn.Module, name: str) -> dict[str, tuple[Whole, str]]:
    """ "<layer>.<parameter>" -> where it is kept, of every layer that is trained whole."""
    kept = {site: port[name] for site, _, port in ports(model) if name in port}
    return {
        f"{site}.{parameter}": (adapter, parameter)
        for site, adapter in kept.items()
        if isinstance(adapter, Whole)
        for parameter, _ in adapter.named_parameters()
    }


def _renames(model: nn.Module, name: str) -> dict[str, str]:
    """Our tensor name -> PEFT's, for every tensor of adapter `name`."""
    names: dict[str, str] = {}
    for site, _, port in ports(model):
        if name not in port:
            continue
        adapter = port[name]
        for key, _ in adapter.named_parameters():
            if isinstance(adapter, TokenRows):
                theirs = ROWS
            elif isinstance(adapter, Whole):
                theirs = key
            else:
                table = LOOKUP if port.kind == "embedding" else LINEAR
                theirs = {**table, "m": MAGNITUDE}[key]
            names[f"{site}.{key}"] = f"{PREFIX}{site}.{theirs}"
    return names


def _same_as_base(model: nn.Module, key: str, tensor: Tensor, source: str) -> None:
    layer = key.removesuffix(".base_layer.weight")
    own = dict(model.named_parameters(remove_duplicate=False)).get(f"{layer}.weight")
    if own is None or own.shape != tensor.shape or not torch.allclose(
        own.detach().float().cpu(), tensor.float(), atol=1e-2, rtol=1e-2
    ):  # fmt: skip
        raise FileError(
            f"{source} carries its own {layer}.weight, which is not the base's.",
            file=tuple(tensor.shape),
            base=None if own is None else tuple(own.shape),
            fix="load the base that the adapter was trained on (resize its embedding if it was)",
        )


def _saved_whole(keys: list[str]) -> list[str]:
    """Layers whose tensors stand in the file under their plain names."""
    plain = [k.removeprefix(PREFIX) for k in keys]
    ours = ("lora_", "token_adapter.", "base_layer.")
    whole = [k for k in plain if not any(part in k for part in ours)]
    return sorted({k.rpartition(".")[0] for k in whole})


def _containers(layers: list[str], entries: Sequence[str]) -> list[str]:
    """`layers`, but where an entry names a container of them, the container: as PEFT wraps it."""
    found: dict[str, None] = {}
    for layer in layers:
        parts = layer.split(".")
        above = (".".join(parts[: i + 1]) for i in range(len(parts)))
        hit = (a for a in above if any(f".{a}".endswith(f".{e}") for e in entries))
        found[next(hit, layer)] = None
    return list(found)


def _token_ids(value: Any) -> list[int]:
    if isinstance(value, dict):
        if len(value) != 1:
            raise FileError("trainable_token_indices names several embeddings.", given=list(value))
        value = next(iter(value.values()))
    return list(value or [])


def _task(model: nn.Module) -> str:
    return "SEQ_CLS" if "SequenceClassification" in type(model).__name__ else "CAUSAL_LM"


def _number(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value
