"""HyperLoRA's penalty on large A and B, over all known conditions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lorica.core.schedule import Schedule
from lorica.methods.hyperlora.network import Network, Place

MAX_CONDITIONS = 16  # of one step's penalty: its cost does not grow with the task list


class SizePenalty(Schedule):
    """weight * the sum over types of layer of (mean A^2 + mean B^2).

    The means are over the layers of a type, the conditions and the elements, as in the source's
    `generated_w_l2_loss` (sft_trainer.py of SakanaAI/text-to-lora, 8ba7749).

    conditions: all known ones; none of embeddings, where the conditions that are set count.
    """

    def __init__(
        self, network: Network, places: Sequence[Place], conditions: Sequence[str], weight: float
    ):
        self.network, self.conditions, self.weight = network, conditions, weight
        self.places_by_head: dict[str, list[Place]] = {}
        for place in places:
            self.places_by_head.setdefault(place.head, []).append(place)

    def penalty(self, t: int) -> Tensor | None:
        codes = self.network.codes
        if self.conditions:
            codes = self.network.enc.codes(self.conditions_of_step(t))
        if codes is None:
            return None
        sums = []
        for places in self.places_by_head.values():
            a, b = self.network(codes, places)
            sums.append(a.square().mean() + b.square().mean())
        return self.weight * torch.stack(sums).sum()

    def conditions_of_step(self, t: int) -> list[str]:
        """The conditions that step t looks at: MAX_CONDITIONS at most, all of them in turn."""
        n = len(self.conditions)
        first = t * MAX_CONDITIONS
        return [self.conditions[(first + i) % n] for i in range(min(MAX_CONDITIONS, n))]
