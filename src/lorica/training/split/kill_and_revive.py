"""Kill and revive: which adapters of a split run take part in a step.

After Gao & Zhang, 2024, arXiv:2404.05182, of which only the abstract is verified; criterion,
period and shares are our own:

    S <- 0.9 S + 0.1 sqrt(|grad A|^2 + |grad B|^2) / (|B A|_F + 1e-8)      while a site is active

Every `interval` steps the sites with the highest S stay, a share `active` of all; a random
tenth of the killed ones comes back for one interval, in place of the lowest. A killed adapter
computes nothing, sends nothing and adds nothing; its weights and its optimizer state keep still,
and are taken up again when it is revived.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lorica.core.adapter import Adapter
from lorica.core.schedule import Schedule
from lorica.errors import ConfigError

KEEP, TINY, REVIVED = 0.9, 1e-8, 0.1


class KillAndRevive(Schedule):
    """adapters: by site. active: the set of sites that take part, changed in place."""

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
        self.keep = max(round(share * len(adapters)), 1)
        self.sites = list(adapters)
        self.score = torch.zeros(len(adapters))

    def before_step(self, t: int) -> None:
        for i, (site, adapter) in enumerate(self.adapters.items()):
            found = adapter.factors()
            if site not in self.active or found is None:
                continue
            size = sum(p.grad.square().sum() for p in adapter.parameters() if p.grad is not None)
            a, b = (f.detach() for f in found)
            update = ((b.T @ b) * (a @ a.T)).sum().clamp_min(0).sqrt()  # |B A|_F
            now = torch.as_tensor(size).sqrt() / (update + TINY)
            self.score[i] = KEEP * self.score[i] + (1 - KEEP) * now.cpu()

    def after_step(self, t: int) -> None:
        if self.keep == len(self.sites) or t % self.interval:
            return
        order = self.score.argsort(descending=True, stable=True).tolist()
        staying, killed = order[: self.keep], order[self.keep :]
        back = min(round(REVIVED * len(killed)), self.keep - 1)
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + t)
        some = torch.randperm(len(killed), generator=draw)[:back].tolist()
        staying = staying[: self.keep - back] + [killed[i] for i in some]
        self._take_part({self.sites[i] for i in staying})

    def _take_part(self, sites: set[str]) -> None:
        self.active.clear()
        self.active |= sites
        for site, adapter in self.adapters.items():
            for parameter in adapter.parameters():
                parameter.requires_grad_(site in sites)
                if site not in sites:
                    parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        taking = torch.tensor([site in self.active for site in self.sites])
        return {"score": self.score, "active": taking}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.score = state["score"].clone()
        pairs = zip(self.sites, state["active"].tolist(), strict=True)
        self._take_part({site for site, on in pairs if on})

    def facts(self) -> dict[str, Any]:
        return {"sites": len(self.sites), "active_sites": sorted(self.active)}
