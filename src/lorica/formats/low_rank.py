"""The update of one site as the factors of a plain LoRA: W' - W = b a, exactly or nearly.

An adapter that knows its factors gives them; components that are zero are dropped. Otherwise, or
if the factors have a larger rank than is asked for, the singular value decomposition of W' - W
gives the nearest update of that rank (Eckart and Young, 1936).

    I  in_features   O  out_features   R  the rank of the result
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
class LowRankUpdate:
    """W' - W ~ b a, and what is added to the bias.

    a: (R, I), b: (O, R), shift: (O,) or None, all float32. R may be 0.
    error: the Frobenius norm of the lost part over that of W' - W; 0 if nothing is lost.
    """

    a: Tensor
    b: Tensor
    shift: Tensor | None
    error: float

    @property
    def r(self) -> int:
        return len(self.a)


@torch.no_grad()
def low_rank_update(site: Site, adapter: Adapter, rank: int | None) -> LowRankUpdate:
    """The update of `adapter` at a linear or embedding site, of at most `rank` (None: exact)."""
    factors = adapter.factors()
    if factors is None:
        assert rank is not None, "check_reducible() comes first"
        delta, shift = change_of(site, adapter)
        a, b, error = truncated(delta, rank)
    else:
        a, b, error = (*_without_zeros(*factors), 0.0)
        if rank is not None and len(a) > rank:
            a, b, error = truncated(b @ a, rank)
        nothing = a.new_zeros(site.out_features, site.in_features)
        _, shift = adapter.merged(nothing, None) or (None, None)
    return LowRankUpdate(a, b, shift if shift is not None and shift.any() else None, error)


@torch.no_grad()
def change_of(site: Site, adapter: Adapter) -> tuple[Tensor, Tensor | None]:
    """W' - W (O, I), and what is added to the bias (O,); None: nothing."""
    weight, bias = site.dense()
    new, shifted = merged(site, [adapter])
    return new - weight, None if shifted is None else shifted - (0 if bias is None else bias)


def check_reducible(adapters: list[tuple[Site, Adapter]], method: str, rank: int | None) -> None:
    """Raises: MergeError that says why an adapter is not a LoRA, and what to do instead."""
    not_affine = [(site, adapter) for site, adapter in adapters if not adapter.affine]
    if not_affine:
        inside = any(site.kind in ("attention", "decoder") for site, _ in not_affine)
        raise MergeError(
            f"{method} is not a LoRA, and cannot be written as a change of weights.",
            why="it acts on what each token attends to"
            if inside
            else "its update is not a linear function of the layer's input",
            sites=listed(site.name for site, _ in not_affine),
            fix="use the adapter as it is",
        )
    if experts := [site.name for site, _ in adapters if site.kind == "expert"]:
        raise MergeError(
            f"{method} adapts fused weights of experts, which is no LoRA of layers.",
            sites=listed(experts),
            fix="write a plain model with lorica merge; PEFT reads the folder of a lora as it is",
        )
    unset = [a for _, a in adapters if isinstance(a, Conditioned) and a.factors() is None]
    if unset:
        raise MergeError(
            f"{method} generates an adapter for each condition, and no single condition is set.",
            known=listed(unset[0].known),
            fix="pass --condition (condition=), and export each condition by itself",
        )
    full = [] if rank is not None else [s.name for s, a in adapters if a.factors() is None]
    if full:
        raise MergeError(
            f"the update of {method} has full rank: no LoRA equals it exactly.",
            sites=listed(full),
            fix="write a plain model with lorica merge, or pass --rank R for the nearest LoRA of "
            "rank R; its error is measured",
        )


def truncated(delta: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """(a (R, I), b (O, R), error) of the R <= rank largest components of delta (O, I)."""
    if not delta.isfinite().all():
        raise MergeError("the adapter has numbers that are not finite.", fix="train it again")
    u, singular, v = torch.linalg.svd(delta, full_matrices=False)
    r = min(rank, int((singular > NOISE * singular[0]).sum()))
    root = singular[:r].sqrt()
    total = singular.norm().item()
    error = singular[r:].norm().item() / total if total else 0.0
    return root.unsqueeze(1) * v[:r], u[:, :r] * root, error


def compressed(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """(a (R, I), b (O, R), error) of the R <= rank largest components of b a, from its factors.

    As `truncated`, without the product (O, I): of QR decompositions of the factors (K, I), (O, K).
    """
    if not (a.isfinite().all() and b.isfinite().all()):
        raise MergeError("the adapter has numbers that are not finite.", fix="train it again")
    q_b, r_b = torch.linalg.qr(b.double())
    q_a, r_a = torch.linalg.qr(a.double().T)
    u, singular, v = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    if not len(singular) or not singular[0]:
        return a[:0], b[:, :0], 0.0
    r = min(rank, int((singular > NOISE * singular[0]).sum()))
    root = singular[:r].sqrt()
    error = singular[r:].norm().item() / singular.norm().item()
    new_a, new_b = root.unsqueeze(1) * (v[:r] @ q_a.T), q_b @ (u[:, :r] * root)
    return new_a.float(), new_b.float(), 0.0 if error < NOISE else error


def _without_zeros(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    nonzero = (a != 0).any(1) & (b != 0).any(0)
    return a[nonzero].detach(), b[:, nonzero].detach()
