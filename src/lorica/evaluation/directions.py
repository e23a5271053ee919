"""How training turned the rows of each weight, and how it changed their size.

Liu et al., "DoRA", 2024, arXiv:2402.09353, section 3: with W the base's weight, W' the adapted one
and m, m' the norms of their O rows,

    magnitude  = mean over rows of |m' - m|
    direction  = mean over rows of 1 - cos(row of W', row of W)

The paper correlates the two over layers and checkpoints: about -0.6 for full fine-tuning, -0.3
for DoRA and +0.8 for LoRA on its task.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lorica.core.merge import merged
from lorica.core.port import ports, spec_of
from lorica.errors import ConfigError


@dataclass(frozen=True)
class Turn:
    """What became of one weight. magnitude: in units of the weight. direction: 0 to 2."""

    site: str
    magnitude: float
    direction: float


@torch.no_grad()
def turns(model: nn.Module, name: str = "default") -> list[Turn]:
    """What adapter `name` does to the weight of each linear layer, in model order.

    A row of zeros has no direction: it counts as not turned. Raises: ConfigError if there is no
    such adapter, or it changes no weight of a linear layer.
    """
    spec_of(model, name)
    found = []
    for site_name, module, port in ports(model):
        if name not in port or port.kind != "linear" or not port[name].affine:
            continue
        site = port.site(site_name, module)
        before, _ = site.dense()
        after, _ = merged(site, [port[name]])  # type: ignore[list-item]
        found.append(turn(site_name, before, after))
    if not found:
        raise ConfigError(
            f"adapter {name!r} changes no weight of a linear layer.", fix="use another adapter"
        )
    return found


def turn(site: str, before: Tensor, after: Tensor) -> Turn:
    """The two figures of one weight; both are (O, I)."""
    old, new = before.double(), after.double()
    m, moved = old.norm(dim=1), new.norm(dim=1)
    size = m * moved
    cosine = torch.where(size > 0, (old * new).sum(1) / size.clamp_min(1e-300), 1.0)
    magnitude, direction = (moved - m).abs().mean(), (1 - cosine).mean()
    return Turn(site, magnitude.item(), max(direction.item(), 0.0))


def correlation(found: Sequence[Turn]) -> float | None:
    """Pearson's, of direction and magnitude, in [-1, 1]; None where one of them is constant."""
    pairs = torch.tensor([[t.direction, t.magnitude] for t in found], dtype=torch.float64)
    if len(pairs) < 2:
        return None
    pairs = pairs - pairs.mean(0)
    spread = pairs.norm(dim=0)
    if not bool((spread > 1e-12 * (1 + pairs.abs().max())).all()):
        return None
    return (pairs.prod(1).sum() / spread.prod()).item()
