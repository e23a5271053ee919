"""How much training changed the magnitude and the direction of each weight's rows.

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

from lorica.core.bank import adapted_layers, spec_of
from lorica.core.merge import merged
from lorica.errors import ConfigError


@dataclass(frozen=True)
class WeightChange:
    """The change of one weight. magnitude: in units of the weight. direction: from 0 to 2."""

    site: str
    magnitude: float
    direction: float


@torch.no_grad()
def weight_changes(model: nn.Module, name: str = "default") -> list[WeightChange]:
    """How adapter `name` changes the weight of each linear layer, in model order.

    A row of zeros has no direction: its direction counts as unchanged.
    Raises: ConfigError if there is no such adapter, or it changes no weight of a linear layer.
    """
    spec_of(model, name)
    changes = []
    for site_name, module, adapters in adapted_layers(model):
        if name not in adapters or adapters.kind != "linear" or not adapters[name].affine:
            continue
        site = adapters.as_site(module)
        before, _ = site.dense()
        after, _ = merged(site, [adapters[name]])  # type: ignore[list-item]
        changes.append(weight_change(site_name, before, after))
    if not changes:
        raise ConfigError(
            f"adapter {name!r} changes no weight of a linear layer.", fix="use another adapter"
        )
    return changes


def weight_change(site: str, before: Tensor, after: Tensor) -> WeightChange:
    """The change from one (O, I) weight to the other."""
    old, new = before.double(), after.double()
    old_norm, new_norm = old.norm(dim=1), new.norm(dim=1)
    product = old_norm * new_norm
    cosine = torch.where(product > 0, (old * new).sum(1) / product.clamp_min(1e-300), 1.0)
    magnitude, direction = (new_norm - old_norm).abs().mean(), (1 - cosine).mean()
    return WeightChange(site, magnitude.item(), max(direction.item(), 0.0))


def correlation(changes: Sequence[WeightChange]) -> float | None:
    """Pearson's, of direction and magnitude, in [-1, 1]; None where one of them is constant."""
    pairs = torch.tensor([[c.direction, c.magnitude] for c in changes], dtype=torch.float64)
    if len(pairs) < 2:
        return None
    pairs = pairs - pairs.mean(0)
    spread = pairs.norm(dim=0)
    if not bool((spread > 1e-12 * (1 + pairs.abs().max())).all()):
        return None
    return (pairs.prod(1).sum() / spread.prod()).item()
