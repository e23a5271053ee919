"""B-LoRA's schedule: draw the gates once per step, and charge for bits and ranks."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lorica.core.schedule import Schedule
from lorica.kernels import bits


class Gating(Schedule):
    """Draws the gates once per step, and adds the cost of bits and ranks to the loss."""

    def __init__(self, adapters: Mapping[str, Any], weight: float, *, by_size: bool):
        self.adapters, self.weight = adapters, weight
        sizes = [size for a in adapters.values() for size in a.sizes.values()]
        self.largest = max(sizes) if by_size else 0

    def penalty(self, t: int) -> Tensor:
        costs = [adapter.cost(self.largest) for adapter in self.adapters.values()]
        return self.weight * torch.stack(costs).sum()

    def after_step(self, t: int) -> None:
        for adapter in self.adapters.values():
            adapter.noise.copy_(bits.noise(len(adapter.noise), adapter.seed + t))

    def ranks(self) -> dict[str, int]:
        return {site: int(a.open_gates(None)[1].sum()) for site, a in self.adapters.items()}

    def state(self) -> dict[str, Tensor]:
        return {f"{site}.noise": adapter.noise for site, adapter in self.adapters.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for site, adapter in self.adapters.items():
            adapter.noise.copy_(state[f"{site}.noise"])

    def facts(self) -> dict[str, Any]:
        """The bit width of every grid; a_x, e_x and b_x are those of the outputs of A, E and B."""
        grids = {site: adapter.open_gates(None)[0] for site, adapter in self.adapters.items()}
        return {
            "bits": {
                site: {key: int(bits.width(gates)) for key, gates in own.items()}
                for site, own in grids.items()
            }
        }
