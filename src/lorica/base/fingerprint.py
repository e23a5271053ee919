"""The fingerprint of a base: whether it is the same base later, and if not, what differs.

Every number of every tensor is hashed, rounded to bfloat16, so that a base loaded in float32 and
in bfloat16 has one fingerprint. Of a layer that was quantised here the original weight is hashed,
so that the fingerprint does not depend on the quantisation, which is recorded by itself. The fields
of the config that decide what is computed are recorded as they are. A resumed run compares the
exact bits instead.

Adapters of earlier versions have only samples: 64 values of each tensor, rounded to bfloat16, of
linear layers and of all others. They are still written, and compared where there is no more.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lorica.base.config_fields import Value, changed_fields, computing_fields, in_training_only
from lorica.base.digest import digests, tokenizer_parts
from lorica.base.mapped_memory import mapped_weights, release_pages
from lorica.base.model_view import config_view_of, model_view
from lorica.base.quantisation_config import quantisation_of
from lorica.base.quantise import QuantisedLinear
from lorica.base.samples import sampled
from lorica.core.site import ADAPTERS, Site, output_head, site_of, sites_of
from lorica.core.site_names import lies_in
from lorica.errors import listed

CODES = "codes:"
"""Marks a hash of codes: of linear layers whose original weights are not known."""
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

    hashing: see Fingerprint; None leaves the weights out.
    """
    remote = model_view(model).remote_fingerprints
    if remote is not None:
        return replace(remote[hashing], **_text(tokenizer))
    left_out = head_layers(model, whole)
    shapes: list[str] = []
    linear, rest = hashlib.sha256(), hashlib.sha256()
    originals_known, ranges = True, mapped_weights()
    sizes: dict[int, int] = {}  # by tensor: a tied tensor counts once
    for site in sites_of(model, ("linear", "embedding", "other")):
        if site.name in left_out:
            continue
        if site.kind == "linear":
            shapes.append(f"{site.name} {site.out_features} {site.in_features}")
            for sample in _buffer_samples(site):
                linear.update(sample)
            if not site.is_dense:
                sizes[id(site.module)] = site.out_features * site.in_features
                originals_known &= _original_sample(site.module) is not None
        for key, parameter in site.module._parameters.items():
            if parameter is None:
                continue
            if site.is_dense or key != "weight" or site.kind == "other":
                sizes[id(parameter)] = parameter.numel()
            if site.kind != "linear":
                shapes.append(f"{site.name}.{key} {tuple(parameter.shape)}")
            (linear if site.kind == "linear" else rest).update(sampled(parameter))
            release_pages(parameter, ranges)  # the system reads 16 pages for each that is asked for
    quantisation, double = _quantisation(model)
    return Fingerprint(
        path=path or config_view_of(model).path,
        architecture=type(model).__name__,
        parameters=sum(sizes.values()),
        shapes=_sha("\n".join(sorted(shapes)).encode()),
        linear=linear.hexdigest() if originals_known else CODES + linear.hexdigest(),
        rest=rest.hexdigest(),
        quantisation=quantisation,
        double_quantisation=double,
        config=computing_fields(model),
        weights=None if hashing is None else weight_digests(model, hashing, left_out),
        hashing=hashing or "rounded",
        **_text(tokenizer),
    )


def head_layers(model: nn.Module, whole: Sequence[str] = ()) -> set[str]:
    """The names of a sequence classifier's layers that do not belong to its base.

    Its head, and the layers that an adapter with modules_to_save `whole` replaces.
    """
    if model_view(model).output_head is not None:
        return set()
    head = output_head(model)
    tops = [*whole, *(name for name, module in model.named_modules() if module is head and name)]
    return {name for name, _ in model.named_modules() if any(lies_in(name, top) for top in tops)}


def weight_digests(
    model: nn.Module, hashing: Hashing, left_out: Collection[str] = ()
) -> dict[str, str]:
    """A digest of every parameter and every buffer that a checkpoint would hold, by its name.

    A quantised layer has one of its original weight; where that is not known, or the exact bits
    are asked for, one of each of its buffers, marked as codes.
    """
    tensors, originals = dict[str, Tensor](), dict[str, str]()
    codes: set[str] = set()
    for name, module in model.named_modules():
        if ADAPTERS in name.split(".") or name in left_out:
            continue
        original = module.original_digest if isinstance(module, QuantisedLinear) else None
        is_packed = isinstance(module, QuantisedLinear) or not _is_plain(name, module)
        if original is not None and hashing == "rounded":
            originals[f"{name}.weight"] = original
        else:
            buffers = {
                f"{name}.{k}": b
                for k, b in module._buffers.items()
                if b is not None and k not in module._non_persistent_buffers_set
            }
            tensors |= buffers
            codes |= buffers.keys() if is_packed else set()
        own = {f"{name}.{k}": p for k, p in module._parameters.items() if p is not None}
        tensors |= own
        codes |= {f"{name}.weight"} & own.keys() if is_packed else set()
    by_id = digests({str(id(t)): t for t in tensors.values()}, rounded=hashing == "rounded")
    by_name = {name: by_id[str(id(tensor))] for name, tensor in tensors.items()} | originals
    return {name: CODES + d if name in codes else d for name, d in sorted(by_name.items())}


def differences(then: Fingerprint, now: Fingerprint) -> dict[str, str]:
    """The differences of two bases of the same shapes, in words, by kind.

    weights, config, tokenizer, chat_template; training: fields of the config that act in training
    alone. What one side does not know is not compared, and neither is quantisation.
    """
    kinds: dict[str, str] = {}
    if then.weights is not None and now.weights is not None and then.hashing == now.hashing:
        kinds["weights"] = listed(_other_tensors(then, now))
    else:
        kinds["weights"] = listed(_other_samples(then, now))
    fields = changed_fields(then.config, now.config) if then.config and now.config else {}
    for kind, wanted in (("config", False), ("training", True)):
        own = [f"{n} {values}" for n, values in fields.items() if in_training_only(n) == wanted]
        kinds[kind] = listed(own, 12)
    parts = [f.tokenizer_parts or {} for f in (then, now)]
    if all(parts):
        kinds["tokenizer"] = listed(_differing(*parts))
    if now.tokenizer is not None and then.tokenizer is not None:
        other = then.chat_template != now.chat_template
        kinds["chat_template"] = "another one" if other else "none"
    return {kind: what for kind, what in kinds.items() if what != "none"}


def _differing(a: Mapping[str, str], b: Mapping[str, str]) -> list[str]:
    """The keys whose values differ, or that are on one side alone."""
    return [key for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]


def _other_tensors(then: Fingerprint, now: Fingerprint) -> list[str]:
    sides = then.weights or {}, now.weights or {}
    other = _differing(*sides)
    if _quantised_as(then) == _quantised_as(now):
        return other
    # Codes cannot be compared with floats, nor with codes of another quantisation.
    layers = {
        name.rpartition(".")[0] for side in sides for name, d in side.items() if d.startswith(CODES)
    }
    biases = {f"{layer}.bias" for layer in layers}
    return [n for n in other if n.rpartition(".")[0] not in layers or n in biases]


def _other_samples(then: Fingerprint, now: Fingerprint) -> list[str]:
    codes = any(f.linear.startswith(CODES) for f in (then, now))
    comparable = not codes or _quantised_as(then) == _quantised_as(now)
    linear = ["linear layers"] if then.linear != now.linear and comparable else []
    return linear + (["embeddings, norms and others"] if then.rest != now.rest else [])


def grade(then: Fingerprint, now: Fingerprint) -> Grade:
    """How far the base `now` is the base `then` that the adapter was trained on.

    Another chat template, and fields that act in training alone, do not count.
    """
    if then.shapes != now.shapes:
        return "different"
    if differences(then, now).keys() & {"weights", "config", "tokenizer"}:
        return "same shapes"
    return "same" if _quantised_as(then) == _quantised_as(now) else "same but quantised"


def _quantised_as(base: Fingerprint) -> tuple[str | None, bool]:
    return base.quantisation, base.double_quantisation


def _original_sample(module: nn.Module) -> bytes | None:
    """The sample of the weight that a layer was quantised from; None: it is not known."""
    return module.original_sample if isinstance(module, QuantisedLinear) else None


def _buffer_samples(site: Site) -> list[bytes]:
    """Samples of the buffers of a layer; of its original weight instead, where that is known."""
    original = _original_sample(site.module)
    if original is not None:
        return [original]
    hidden = site.module._non_persistent_buffers_set
    buffers = site.module._buffers.items()
    return [sampled(buffer) for key, buffer in buffers if buffer is not None and key not in hidden]


def _is_plain(name: str, module: nn.Module) -> bool:
    """Whether a layer is not a quantised linear layer of another library."""
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
    return quantisation_of(config_view_of(model).quantisation)
