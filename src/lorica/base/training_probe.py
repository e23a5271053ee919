"""Layers that text goes through in training, and layers that it does not.

A model of text and images has a tower that text never enters; some blocks take a layer's weight and
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
"""Draws that are tried where a base draws at random without a change."""


@torch.no_grad()
def uncalled(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Those of the layers `names` that a training pass over text does not call.

    Experts that no token chose count as called. None are found where the pass fails.
    """
    foreign: Any = model
    called: set[nn.Module] = set()
    every = dict(model.named_modules())
    handles = [
        module.register_forward_pre_hook(lambda module, *_: called.add(module))
        for module in every.values()
    ]
    try:
        with use(model), in_mode(model, training=True), drawing(0):
            foreign(input_ids=probe_ids(model, 6, 0).unsqueeze(0))
    except Exception:  # what keeps it from running is named when it is trained
        return []
    finally:
        for handle in handles:
            handle.remove()
    idle = [name for name in names if every[name] not in called]
    return [name for name in idle if not _chosen_among(name, every, called)]


def _chosen_among(name: str, every: dict[str, nn.Module], called: set[nn.Module]) -> bool:
    """The largest uncalled part of the model that the layer is in is one of several in a list."""
    parts = name.split(".")
    for i in range(1, len(parts) + 1):
        part = ".".join(parts[:i])
        if not any(module in called for module in every[part].modules()):
            return parts[i - 1].isdigit()
    return False


@torch.no_grad()
def draws_in_training(model: nn.Module) -> bool:
    """Whether what the base draws at random in training changes logits: dropout, noise at a router.

    A router may take another expert for one token in a hundred, so several draws are tried; but
    none where nothing is drawn.
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
                    drawn = [generator.get_state() for generator in generators]
                if first is not None and not torch.equal(first, logits):
                    return True
                if all(map(torch.equal, before, drawn)):
                    return False
                first = logits
    except Exception:  # what keeps it from running is named where it runs
        return False
    return False
