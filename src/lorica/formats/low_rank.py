"""One site's update as the factors of a plain LoRA: W' - W = b a, exactly or nearly.

Where the adapter knows its factors they are taken as they are, without the components that are
zero. Where it does not, or they are more than asked for, the singular value decomposition of
W' - W gives the nearest update of that rank (Eckart and Young, 1936).

    I  in_features   O  out_features   R  the rank that is left
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lorica.core.adapter import Adapter
from lorica.core.condition import Conditioned
from lorica.core.merge import merged
from lorica.core.site import Site
from lorica.errors import MergeError, listed

NOISE = 1e-6
"""Singular values below this share of the largest are float32's rounding."""


@dataclass(frozen=True)
class Reduced:
    """W' - W ~ b a, and what is added to the bias.

    a: (R, I), b: (O, R), shift: (O,) or None, all float32. R may be 0.
    error: the Frobenius norm of what is lost over that of W' - W; 0 where nothing is.
    """

    a: Tensor
    b: Tensor
    shift: Tensor | None
    error: float

    @property
    def r(self) -> int:
        return len(self.a)


@torch.no_grad()
def reduced(site: Site, adapter: Adapter, rank: int | None) -> Reduced:
    """What `adapter` does at a linear or embedding site, of at most `rank` (None: exact)."""
    found = adapter.factors()
    if found is None:
        assert rank is not None, "refusal() comes first"
        weight, bias = site.dense()
        new, shifted = merged(site, [adapter])
        a, b, error = truncated(new - weight, rank)
    else:
        a, b, error = (*_without_zeros(*found), 0.0)
        if rank is not None and len(a) > rank:
            a, b, error = truncated(b @ a, rank)
        nothing = a.new_zeros(site.out_features, site.in_features)
        bias, (_, shifted) = None, adapter.merged(nothing, None) or (None, None)
    shift = None if shifted is None else shifted - (0 if bias is None else bias)
    return Reduced(a, b, shift if shift is not None and shift.any() else None, error)


def refusal(adapters: list[tuple[Site, Adapter]], method: str, rank: int | None) -> None:
    """Raises: MergeError that says why an adapter is no LoRA, and the ways out."""
    bent = [(site, adapter) for site, adapter in adapters if not adapter.affine]
    if bent:
        inside = any(site.kind in ("attention", "decoder") for site, _ in bent)
        raise MergeError(
            f"{method} is no LoRA, and no change of weights does what it does.",
            why="it acts on what each token attends to"
            if inside
            else "its update is no linear function of the layer's input",
            sites=listed(site.name for site, _ in bent),
            fix="use the adapter as it is",
        )
    unset = [a for _, a in adapters if isinstance(a, Conditioned) and a.factors() is None]
    if unset:
        raise MergeError(
            f"{method} is another adapter for each condition, and no single one is set.",
            known=listed(getattr(unset[0], "known", ())),
            fix="pass --condition (condition=), and export each",
        )
    full = [] if rank is not None else [s.name for s, a in adapters if a.factors() is None]
    if full:
        raise MergeError(
            f"the update of {method} is of full rank: no LoRA is exactly the same.",
            sites=listed(full),
            fix="write a plain model with lorica merge, or pass --rank R: the nearest LoRA of "
            "rank R, with the error that it makes",
        )


def truncated(delta: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """(a (R, I), b (O, R), error) of the R <= rank largest components of delta (O, I)."""
    if not delta.isfinite().all():
        raise MergeError("the adapter has numbers that are not finite.", fix="train it anew")
    u, singular, v = torch.linalg.svd(delta, full_matrices=False)
    kept = min(rank, int((singular > NOISE * singular[0]).sum()))
    root = singular[:kept].sqrt()
    total = singular.norm().item()
    error = singular[kept:].norm().item() / total if total else 0.0
    return root.unsqueeze(1) * v[:kept], u[:, :kept] * root, error


def _without_zeros(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    live = (a != 0).any(1) & (b != 0).any(0)
    return a[live].detach(), b[:, live].detach()
