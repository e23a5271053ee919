"""Kill and revive: choose which adapters of a split run are active in a step.

After Gao & Zhang, 2024, arXiv:2404.05182, of which only the abstract is verified; criterion,
period and shares are our own:

    S <- 0.9 S + 0.1 sqrt(|grad A|^2 + |grad B|^2) / (|B A|_F + 1e-8)      while a layer is active

Every `interval` steps the sites with the highest S stay, a share `active` of all; a random
tenth of the killed ones comes back for one interval, in place of the lowest. A killed adapter
computes nothing, sends nothing and adds nothing; its weights and its optimizer state keep still,
and are used again when it is revived.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lorica.core.adapter import Adapter
from lorica.core.schedule import Schedule
from lorica.errors import ConfigError

DECAY, EPSILON, REVIVED = 0.9, 1e-8, 0.1


class KillAndRevive(Schedule):
    """adapters: by layer. active: the layers that take part, changed in place.
    share: of all layers. interval: optimizer steps between choices.
    """

    def __init__(
        self,
        adapters: Mapping[str, Adapter],
        active: set[str],
        *,
        share: float,
        interval: int,
        seed: int,
    ):
        if not 0 < share <= 1:
            raise ConfigError(f"active_share is {share}; it lies in (0, 1].", fix="try 0.125")
        self.adapters, self.active, self.interval, self.seed = adapters, active, interval, seed
        self.count = max(round(share * len(adapters)), 1)
        self.sites = list(adapters)
        self.score = torch.zeros(len(adapters))

    def before_step(self, t: int) -> None:
        for i, (site, adapter) in enumerate(self.adapters.items()):
            factors = adapter.factors()
            if site not in self.active or factors is None:
                continue
            size = sum(p.grad.square().sum() for p in adapter.parameters() if p.grad is not None)
            a, b = (factor.detach() for factor in factors)
            update = ((b.T @ b) * (a @ a.T)).sum().clamp_min(0).sqrt()  # |B A|_F
            now = torch.as_tensor(size).sqrt() / (update + EPSILON)
            self.score[i] = DECAY * self.score[i] + (1 - DECAY) * now.cpu()

    def after_step(self, t: int) -> None:
        if self.count == len(self.sites) or t % self.interval:
            return
        order = self.score.argsort(descending=True, stable=True).tolist()
        kept, killed = order[: self.count], order[self.count :]
        revived = min(round(REVIVED * len(killed)), self.count - 1)
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + t)
        chosen = torch.randperm(len(killed), generator=draw)[:revived].tolist()
        kept = kept[: self.count - revived] + [killed[i] for i in chosen]
        self._set_active({self.sites[i] for i in kept})

    def _set_active(self, sites: set[str]) -> None:
        self.active.clear()
        self.active |= sites
        for site, adapter in self.adapters.items():
            for parameter in adapter.parameters():
                parameter.requires_grad_(site in sites)
                if site not in sites:
                    parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        active = torch.tensor([site in self.active for site in self.sites])
        return {"score": self.score, "active": active}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.score = state["score"].clone()
        pairs = zip(self.sites, state["active"].tolist(), strict=True)
        self._set_active({site for site, on in pairs if on})

    def facts(self) -> dict[str, Any]:
        return {"sites": len(self.sites), "active_sites": sorted(self.active)}
