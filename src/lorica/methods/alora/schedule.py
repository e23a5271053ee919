"""ALoRA's schedule: score the active ranks by ablation, and move the worst to other sites."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lorica.core.schedule import Schedule
from lorica.errors import ConfigError

Scores = Mapping[str, Mapping[int, float]]  # {site: {index of an active rank: score}}


class Allocation(Schedule):
    """Moves ranks in rounds. New rows of A are drawn from the step number, so that all processes
    and resumed runs draw the same.

    gained: tensors of the sites that gained ranks in this step.
    """

    def __init__(self, adapters: Mapping[str, Any], first: int, every: int, rounds: int):
        self.adapters = adapters
        self.rounds = range(first, first + every * rounds, every)
        self.gained: list[str] = []

    def probe(self) -> float:  # type: ignore[override]
        raise ConfigError(
            "alora scores its ranks by the loss on a fixed batch, and no batch is set.",
            fix="train with lorica.train, or set driver.schedule.probe",
        )

    def after_step(self, t: int) -> None:
        for adapter in self.adapters.values():
            adapter.zero_inactive()
        self.gained = []
        if t in self.rounds:
            self.move_ranks(self.scores(), torch.Generator().manual_seed(t))

    def scores(self) -> Scores:
        """AB-LoRA: the loss without a rank, minus the loss with it alone; the lowest are pruned."""
        gates = {site: adapter.g.clone() for site, adapter in self.adapters.items()}
        none = {site: torch.zeros_like(gate) for site, gate in gates.items()}
        try:
            return {
                site: {
                    i: self._loss(gates, site, i, 0) - self._loss(none, site, i, 1)
                    for i in gate.nonzero().flatten().tolist()
                }
                for site, gate in gates.items()
            }
        finally:
            for site, adapter in self.adapters.items():
                adapter.g.copy_(gates[site])

    def _loss(self, gates: Mapping[str, Tensor], site: str, i: int, on: int) -> float:
        for name, adapter in self.adapters.items():
            adapter.g.copy_(gates[name])
        self.adapters[site].g[i] = on
        return self.probe()

    def move_ranks(self, scores: Scores, generator: torch.Generator) -> None:
        """Prune the ranks with the lowest scores, and activate as many at other sites."""
        room = {site: int((adapter.g == 0).sum()) for site, adapter in self.adapters.items()}
        pruned, gains = reallocated(scores, room)
        for site, i in pruned:
            self.adapters[site].g[i] = 0
        for site, adapter in self.adapters.items():
            adapter.zero_inactive()
            adapter.grow(gains.get(site, 0), generator)
        self.gained = [f"{site}.{key}" for site in gains for key in ("a", "b")]

    def fresh(self) -> list[str]:
        return self.gained

    def ranks(self) -> dict[str, int]:
        return {site: int(adapter.g.sum()) for site, adapter in self.adapters.items()}


def reallocated(
    scores: Scores, room: Mapping[str, int]
) -> tuple[list[tuple[str, int]], Mapping[str, int]]:
    """The (site, rank) to prune, and how many ranks each of the other sites gains.

    room: how many ranks each site can gain.
    """
    flat = [(score, site, i) for site, own in scores.items() for i, score in own.items()]
    lowest = [(site, i) for _, site, i in sorted(flat, key=lambda item: item[0])]
    for n in range(len(scores), 0, -1):
        losing = {site for site, _ in lowest[:n]}
        others = {site: own.values() for site, own in scores.items() if site not in losing}
        if sum(room[site] for site in others) >= n:
            means = {s: sum(own) / len(own) if own else -math.inf for s, own in others.items()}
            return lowest[:n], distributed(n, means, room)
    return [], {}


def distributed(n: int, means: Mapping[str, float], room: Mapping[str, int]) -> Mapping[str, int]:
    """n ranks, dealt one at a time to the sites that have room, the highest mean score first."""
    order = sorted(means, key=lambda site: -means[site])
    turns = sorted((turn, i) for i, site in enumerate(order) for turn in range(room[site]))
    return Counter(order[i] for _, i in turns[:n])
