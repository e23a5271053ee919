"""What a base is, in a few hashes: enough to say later whether it is the same one.

Weights are sampled (64 values of each tensor, at even distances) and rounded to bfloat16
before hashing, so that a base loaded in float32 and in bfloat16 is the same base. Linear
layers are hashed apart from the rest, because quantisation packs them and leaves the rest. Of a
layer that was packed here the weight that it was made from is hashed, so that a base is the same
one in any quantisation; how it is quantised stands beside it.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lorica.base.quantise import QuantisedLinear, quantisation_of
from lorica.core.site import Site, output_head, sites_of

SAMPLE = 64
CODES = "codes:"
"""Before a hash of linear layers whose codes were read, because their weights are not known."""
Grade = Literal["same", "same but quantised", "same shapes", "different"]


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

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def fingerprint(model: nn.Module, *, path: str = "", tokenizer: Any = None) -> Fingerprint:
    """The fingerprint of the base under any adapters; a fresh classifier head is left out.

    A model that stands for one whose weights lie elsewhere says so in `stands_for`.
    """
    if isinstance(known := getattr(model, "stands_for", None), Fingerprint):
        return known if tokenizer is None else replace(
            known, tokenizer=_sha(_vocabulary(tokenizer)), chat_template=_template(tokenizer)
        )  # fmt: skip
    head = output_head(model)
    ask = getattr(model, "get_output_embeddings", None)
    fresh = None if callable(ask) and ask() is not None else head
    shapes: list[str] = []
    linear, rest = hashlib.sha256(), hashlib.sha256()
    known = True
    sizes: dict[int, int] = {}  # by tensor: a tied one counts once
    for site in sites_of(model, ("linear", "embedding", "other")):
        if site.module is fresh:
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
        tokenizer=None if tokenizer is None else _sha(_vocabulary(tokenizer)),
        chat_template=_template(tokenizer),
    )


def grade(trained_on: Fingerprint, now: Fingerprint) -> Grade:
    """How far the base that is here is the one that the adapter was trained on."""
    if trained_on.shapes != now.shapes:
        return "different"
    if trained_on.rest != now.rest:
        return "same shapes"
    then, here = ((f.quantisation, f.double_quantisation) for f in (trained_on, now))
    codes = any(f.linear.startswith(CODES) for f in (trained_on, now))
    if trained_on.linear != now.linear and not (codes and then != here):
        return "same shapes"
    return "same" if then == here else "same but quantised"


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


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _vocabulary(tokenizer: Any) -> bytes:
    vocabulary = sorted(tokenizer.get_vocab().items())
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    return json.dumps([vocabulary, special], sort_keys=True).encode()


def _template(tokenizer: Any) -> str | None:
    template = None if tokenizer is None else tokenizer.chat_template
    return _sha(json.dumps(template).encode()) if template else None


def _quantisation(model: nn.Module) -> tuple[str | None, bool]:
    packed = [m for m in model.modules() if isinstance(m, QuantisedLinear)]
    if packed:
        return packed[0].kind, any(layer.double_quantisation for layer in packed)
    config = getattr(model, "config", None)
    return quantisation_of(getattr(config, "quantization_config", None))
