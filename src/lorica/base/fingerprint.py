"""What a base is: enough to say later whether it is the same one, and if not, what differs.

Every number of every tensor is hashed, rounded to bfloat16, so that a base loaded in float32 and
in bfloat16 is the same base. Of a layer that was packed here the weight that it was made from is
hashed, so that a base is the same one in any quantisation; how it is quantised stands beside it.
The fields of the config that decide what is computed stand there as they are. A run that goes on
compares the exact bits instead.

Adapters of earlier versions have samples alone: 64 values of each tensor, rounded to bfloat16;
linear layers apart from the rest. They are still written and compared where there is no more.
"""

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lorica.base.bitsandbytes_layers import quantisation_of
from lorica.base.config_fields import Value, changed, computing, in_training_only
from lorica.base.digest import digests, tokenizer_parts
from lorica.base.quantise import QuantisedLinear
from lorica.core.site import ADAPTERS, Site, output_head, site_of, sites_of
from lorica.core.targets import lies_in
from lorica.errors import listed

SAMPLE = 64
CODES = "codes:"
"""Before a hash of linear layers whose codes were read, because their weights are not known."""
Grade = Literal["same", "same but quantised", "same shapes", "different"]
Hashing = Literal["rounded", "exact"]


@dataclass(frozen=True)
class Fingerprint:
    path: str
    """Folder, hub id or "bundled": where the base was loaded from."""
    architecture: str
    parameters: int
    shapes: str
    linear: str
    rest: str
    quantisation: str | None = None
    double_quantisation: bool = False
    tokenizer: str | None = None
    chat_template: str | None = None
    config: dict[str, Value] | None = None
    """Fields of the config that decide what is computed, nested ones with dots."""
    weights: dict[str, str] | None = None
    """A digest of each tensor, by its name."""
    hashing: Hashing = "rounded"
    """Of the numbers in bfloat16, or of the bits as they are held."""
    tokenizer_parts: dict[str, str] | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def fingerprint(
    model: nn.Module,
    *,
    path: str = "",
    tokenizer: Any = None,
    whole: Sequence[str] = (),
    hashing: Hashing | None = "rounded",
) -> Fingerprint:
    """The fingerprint of the base under any adapters; the head of a classifier is left out.

    whole: modules_to_save of the adapter, which replaces these layers. Of a classifier they are
        left out as well: they are fresh as a rule, and hold random numbers.

    A model that stands for one whose weights lie elsewhere says so in `stands_for`.
    hashing: see Fingerprint; None leaves the weights out.
    """
    known = getattr(model, "stands_for", None)
    if isinstance(known, dict):
        return replace(known[hashing], **_text(tokenizer))
    left_out = head_layers(model, whole)
    shapes: list[str] = []
    linear, rest = hashlib.sha256(), hashlib.sha256()
    known = True
    sizes: dict[int, int] = {}  # by tensor: a tied one counts once
    for site in sites_of(model, ("linear", "embedding", "other")):
        if site.name in left_out:
            continue
        if site.kind == "linear":
            shapes.append(f"{site.name} {site.out_features} {site.in_features}")
            for part in _packed(site):
                linear.update(part)
            if not site.is_dense:
                sizes[id(site.module)] = site.out_features * site.in_features
                known &= getattr(site.module, "original_sample", None) is not None
        for key, parameter in site.module._parameters.items():
            if parameter is None:
                continue
            if site.is_dense or key != "weight" or site.kind == "other":
                sizes[id(parameter)] = parameter.numel()
            if site.kind != "linear":
                shapes.append(f"{site.name}.{key} {tuple(parameter.shape)}")
            (linear if site.kind == "linear" else rest).update(sampled(parameter))
    config = getattr(model, "config", None)
    quantisation, double = _quantisation(model)
    return Fingerprint(
        path=path or str(getattr(config, "_name_or_path", "")),
        architecture=type(model).__name__,
        parameters=sum(sizes.values()),
        shapes=_sha("\n".join(sorted(shapes)).encode()),
        linear=linear.hexdigest() if known else CODES + linear.hexdigest(),
        rest=rest.hexdigest(),
        quantisation=quantisation,
        double_quantisation=double,
        config=computing(model),
        weights=None if hashing is None else weight_digests(model, hashing, left_out),
        hashing=hashing or "rounded",
        **_text(tokenizer),
    )


def head_layers(model: nn.Module, whole: Sequence[str] = ()) -> set[str]:
    """The names of a sequence classifier's layers that are no part of its base.

    Its head, and what an adapter with modules_to_save `whole` replaces.
    """
    ask = getattr(model, "get_output_embeddings", None)
    if callable(ask) and ask() is not None:
        return set()
    head = output_head(model)
    tops = [*whole, *(name for name, module in model.named_modules() if module is head and name)]
    return {name for name, _ in model.named_modules() if any(lies_in(name, top) for top in tops)}


def weight_digests(
    model: nn.Module, hashing: Hashing, left_out: Collection[str] = ()
) -> dict[str, str]:
    """A digest of every parameter and every buffer that a checkpoint would hold, by its name.

    A packed layer has one for what it was made from; where that is not known, or the exact bits
    are asked for, for each of its buffers, marked as codes.
    """
    found, packed = dict[str, Tensor](), dict[str, str]()
    codes: set[str] = set()
    for name, module in model.named_modules():
        if ADAPTERS in name.split(".") or name in left_out:
            continue
        made_from = getattr(module, "original_digest", None)
        is_packed = isinstance(module, QuantisedLinear) or not _is_plain(name, module)
        if is_packed and made_from is not None and hashing == "rounded":
            packed[f"{name}.weight"] = made_from
        else:
            kept = {
                f"{name}.{k}": b
                for k, b in module._buffers.items()
                if b is not None and k not in module._non_persistent_buffers_set
            }
            found |= kept
            codes |= kept.keys() if is_packed else set()
        own = {f"{name}.{k}": p for k, p in module._parameters.items() if p is not None}
        found |= own
        codes |= {f"{name}.weight"} & own.keys() if is_packed else set()
    done = digests({str(id(t)): t for t in found.values()}, rounded=hashing == "rounded")
    every = {name: done[str(id(tensor))] for name, tensor in found.items()} | packed
    return {name: CODES + d if name in codes else d for name, d in sorted(every.items())}


def differences(then: Fingerprint, now: Fingerprint) -> dict[str, str]:
    """What differs between two bases of the same shapes, in words, by its kind.

    weights, config, tokenizer, chat_template; training: fields of the config that act in training
    alone. What one side does not know is not compared; quantisation is not looked at.
    """
    found: dict[str, str] = {}
    if then.weights is not None and now.weights is not None and then.hashing == now.hashing:
        found["weights"] = listed(_other_tensors(then, now))
    else:
        found["weights"] = listed(_other_samples(then, now))
    fields = changed(then.config or {}, now.config or {}) if then.config and now.config else {}
    for kind, wanted in (("config", False), ("training", True)):
        found[kind] = listed(
            (
                f"{name} {values}"
                for name, values in fields.items()
                if in_training_only(name) == wanted
            ),
            12,
        )
    parts = [f.tokenizer_parts or {} for f in (then, now)]
    if all(parts):
        one, two = parts
        names = sorted(one.keys() | two.keys())
        found["tokenizer"] = listed([k for k in names if one.get(k) != two.get(k)])
    if now.tokenizer is not None and then.tokenizer is not None:
        other = then.chat_template != now.chat_template
        found["chat_template"] = "another one" if other else "none"
    return {kind: what for kind, what in found.items() if what != "none"}


def _other_tensors(then: Fingerprint, now: Fingerprint) -> list[str]:
    one, two = then.weights or {}, now.weights or {}
    other = [name for name in sorted(one.keys() | two.keys()) if one.get(name) != two.get(name)]
    if _quantised_as(then) == _quantised_as(now):
        return other
    # Codes say nothing of floats, and nothing of other codes.
    layers = {
        name.rpartition(".")[0]
        for side in (one, two)
        for name, d in side.items()
        if d.startswith(CODES)
    }
    biases = {f"{layer}.bias" for layer in layers}
    return [n for n in other if n.rpartition(".")[0] not in layers or n in biases]


def _other_samples(then: Fingerprint, now: Fingerprint) -> list[str]:
    codes = any(f.linear.startswith(CODES) for f in (then, now))
    apart = codes and _quantised_as(then) != _quantised_as(now)
    found = ["linear layers"] if then.linear != now.linear and not apart else []
    return found + (["embeddings, norms and others"] if then.rest != now.rest else [])


def grade(then: Fingerprint, now: Fingerprint) -> Grade:
    """How far the base that is here is the one that the adapter was trained on.

    Another chat template, and what acts in training alone, do not count.
    """
    if then.shapes != now.shapes:
        return "different"
    if differences(then, now).keys() & {"weights", "config", "tokenizer"}:
        return "same shapes"
    return "same" if _quantised_as(then) == _quantised_as(now) else "same but quantised"


def _quantised_as(base: Fingerprint) -> tuple[str | None, bool]:
    return base.quantisation, base.double_quantisation


def _packed(site: Site) -> list[bytes]:
    """What a layer keeps in buffers, sampled; what it was made from where that is known."""
    known = getattr(site.module, "original_sample", None)
    if known is not None:
        return [known]
    hidden = site.module._non_persistent_buffers_set
    buffers = site.module._buffers.items()
    return [sampled(buffer) for key, buffer in buffers if buffer is not None and key not in hidden]


def sampled(tensor: Tensor) -> bytes:
    """A few values of a tensor, rounded to bfloat16."""
    flat = tensor.detach().reshape(-1)
    values = flat[places(flat.numel()).to(flat.device)].float().bfloat16()
    return values.view(torch.int16).cpu().numpy().tobytes()


def places(n: int) -> Tensor:
    """Up to SAMPLE places among n, at even distances, in whole numbers: float32 would round the
    last one of a large tensor past its end."""
    many = min(SAMPLE, n)
    return torch.arange(many) * (n - 1) // max(many - 1, 1)


def _is_plain(name: str, module: nn.Module) -> bool:
    """Not a packed linear layer of another library."""
    site = site_of(name, module)
    return site is None or site.kind != "linear" or site.is_dense


def _text(tokenizer: Any) -> dict[str, Any]:
    """The fields of a Fingerprint that the tokenizer decides."""
    if tokenizer is None:
        return {}
    return {
        "tokenizer": _sha(_vocabulary(tokenizer)),
        "chat_template": _template(tokenizer),
        "tokenizer_parts": tokenizer_parts(tokenizer),
    }


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _vocabulary(tokenizer: Any) -> bytes:
    vocabulary = sorted(tokenizer.get_vocab().items())
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    return json.dumps([vocabulary, special], sort_keys=True).encode()


def _template(tokenizer: Any) -> str | None:
    template = tokenizer.chat_template
    return _sha(json.dumps(template).encode()) if template else None


def _quantisation(model: nn.Module) -> tuple[str | None, bool]:
    packed = [m for m in model.modules() if isinstance(m, QuantisedLinear)]
    if packed:
        return packed[0].kind, any(layer.double_quantisation for layer in packed)
    config = getattr(model, "config", None)
    return quantisation_of(getattr(config, "quantization_config", None))
