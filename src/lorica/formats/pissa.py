"""PEFT adapters that started from PiSSA, read as plain LoRA of twice the rank.

PiSSA (Meng et al., 2024, arXiv:2404.02948) starts at the r largest singular directions of W
and takes them out of the base: y = (W - s B0 A0) x + s B A x. The file holds A and B alone;
B0 and A0 follow from W. So the adapter is exactly a LoRA on the untouched base with the
factors [B, -B0] and [A; A0], and the base need not be written to.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from lorica.core.port import Spec
from lorica.core.site import sites_of
from lorica.core.targets import first
from lorica.formats.peft import PREFIX
from lorica.methods.lora import Lora

START = "pissa"
A, B = ".lora_A.weight", ".lora_B.weight"


def widened(spec: Spec) -> Spec:
    """`spec` with twice the rank everywhere, and alpha such that every scale stays."""
    method = spec.method
    assert isinstance(method, Lora)
    grown = 2**0.5 if method.use_rslora else 2.0
    alphas = {key: alpha * grown for key, alpha in spec.targets.alpha_pattern.items()}
    ranks = {key: 2 * r for key, r in spec.targets.rank_pattern.items()}
    targets = replace(spec.targets, rank_pattern=ranks, alpha_pattern=alphas)
    return Spec(replace(method, r=2 * method.r, alpha=method.numerator * grown), targets, spec.seed)


@torch.no_grad()
def widen(model: nn.Module, file: dict[str, Tensor], spec: Spec) -> dict[str, Tensor]:
    """PEFT's tensors with the start of every site beside them.

    spec: what the PEFT config asks for, before `widened`.
    """
    wide = dict(file)
    for site in sites_of(model):
        a, b = file.get(f"{PREFIX}{site.name}{A}"), file.get(f"{PREFIX}{site.name}{B}")
        if a is None or b is None:
            continue
        weight, _ = site.dense()
        u, singular, v = torch.linalg.svd(weight, full_matrices=False)
        r = a.shape[0]
        root = (singular[:r] / _scale(spec, site.name)).sqrt()
        wide[f"{PREFIX}{site.name}{A}"] = torch.cat([a, root.unsqueeze(1) * v[:r].cpu()])
        wide[f"{PREFIX}{site.name}{B}"] = torch.cat([b, -(u[:, :r] * root).cpu()], dim=1)
    return wide


def _scale(spec: Spec, site: str) -> float:
    method, targets = spec.method, spec.targets
    assert isinstance(method, Lora)
    r = first(targets.rank_pattern, site) or method.r
    alpha = first(targets.alpha_pattern, site) or method.numerator
    return replace(method, r=r, alpha=alpha).scale
