"""Run a base as it trains, to see which layers are called and whether it draws random numbers.

A model of text and images has a tower that text never enters; some blocks read a layer's weight and
never call the layer (Mamba's dt_proj, Gemma 3n in training). An adapter there would learn nothing.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from lorica.base.batching import probe_ids
from lorica.core.attach import use
from lorica.core.draws import drawing, generators_of
from lorica.core.modes import in_mode

DRAWS = 24
"""Seeds that are tried if a base draws random numbers and its logits stay the same."""


@torch.no_grad()
def layers_not_called(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Those of the layers `names` that a training pass over text does not call.

    Experts that no token was routed to count as called. Empty if the pass fails.
    """
    foreign: Any = model
    called: set[nn.Module] = set()
    modules = dict(model.named_modules())
    handles = [
        module.register_forward_pre_hook(lambda module, *_: called.add(module))
        for module in modules.values()
    ]
    try:
        with use(model), in_mode(model, training=True), drawing(0):
            foreign(input_ids=probe_ids(model, 6, 0).unsqueeze(0))
    except Exception:  # training reports why the pass fails
        return []
    finally:
        for handle in handles:
            handle.remove()
    idle = [name for name in names if modules[name] not in called]
    return [name for name in idle if not _is_expert(name, modules, called)]


def _is_expert(name: str, modules: dict[str, nn.Module], called: set[nn.Module]) -> bool:
    """Whether the largest uncalled module around the layer is an item of a module list."""
    parts = name.split(".")
    for i in range(1, len(parts) + 1):
        around = modules[".".join(parts[:i])]
        if not any(module in called for module in around.modules()):
            return parts[i - 1].isdigit()
    return False


@torch.no_grad()
def is_random_in_training(model: nn.Module) -> bool:
    """Whether random numbers change the logits in training: dropout, noise at a router.

    A router may choose another expert for one token in a hundred, so several seeds are tried,
    unless no random number is drawn.
    """
    foreign: Any = model
    ids = probe_ids(model, 12, 0).unsqueeze(0)
    try:
        with use(model), in_mode(model, training=True):
            first = None
            for seed in range(DRAWS):
                with drawing(seed, ids.device):
                    generators = generators_of(ids.device)
                    before = [generator.get_state() for generator in generators]
                    logits = foreign(input_ids=ids).logits
                    after = [generator.get_state() for generator in generators]
                if first is not None and not torch.equal(first, logits):
                    return True
                if all(map(torch.equal, before, after)):
                    return False
                first = logits
    except Exception:  # training reports why the pass fails
        return False
    return False
