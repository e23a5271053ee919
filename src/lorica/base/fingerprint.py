"""What a base is, in a few hashes: enough to say later whether it is the same one.

Weights are sampled (64 values of each tensor, at even distances) and rounded to bfloat16
before hashing, so that a base loaded in float32 and in bfloat16 is the same base. Linear
layers are hashed apart from the rest, because quantisation packs them and leaves the rest.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lorica.core.site import output_head, sites_of

SAMPLE = 64
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
    tokenizer: str | None = None
    chat_template: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def fingerprint(model: nn.Module, *, path: str = "", tokenizer: Any = None) -> Fingerprint:
    """The fingerprint of the base under any adapters; a fresh classifier head is left out."""
    head = output_head(model)
    ask = getattr(model, "get_output_embeddings", None)
    fresh = None if callable(ask) and ask() is not None else head
    shapes: list[str] = []
    linear, rest = hashlib.sha256(), hashlib.sha256()
    sizes: dict[int, int] = {}  # by tensor: a tied one counts once
    for site in sites_of(model, ("linear", "embedding", "other")):
        if site.module is fresh:
            continue
        if site.kind == "linear":
            shapes.append(f"{site.name} {site.out_features} {site.in_features}")
        for key, parameter in site.module._parameters.items():
            if parameter is None:
                continue
            sizes[id(parameter)] = parameter.numel()
            if site.kind != "linear":
                shapes.append(f"{site.name}.{key} {tuple(parameter.shape)}")
            (linear if site.kind == "linear" else rest).update(_sample(parameter))
    config = getattr(model, "config", None)
    return Fingerprint(
        path=path or str(getattr(config, "_name_or_path", "")),
        architecture=type(model).__name__,
        parameters=sum(sizes.values()),
        shapes=_sha("\n".join(sorted(shapes)).encode()),
        linear=linear.hexdigest(),
        rest=rest.hexdigest(),
        quantisation=_quantisation(config),
        tokenizer=None if tokenizer is None else _sha(_vocabulary(tokenizer)),
        chat_template=_template(tokenizer),
    )


def grade(trained_on: Fingerprint, now: Fingerprint) -> Grade:
    """How far the base that is here is the one that the adapter was trained on."""
    if trained_on.shapes != now.shapes:
        return "different"
    if trained_on.rest != now.rest:
        return "same shapes"
    if trained_on.linear == now.linear:
        return "same"
    quantised = trained_on.quantisation != now.quantisation
    return "same but quantised" if quantised else "same shapes"


def _sample(tensor: Tensor) -> bytes:
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


def _quantisation(config: Any) -> str | None:
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    plain = settings if isinstance(settings, dict) else settings.to_dict()
    return str(plain.get("bnb_4bit_quant_type") or plain.get("quant_method") or "unknown")
