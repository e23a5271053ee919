"""Quantised layers that an adapter keeps for itself: the original weight minus a product, packed.

An initialization with codes of its own (inits.loftq) needs them, because the base is never written
to.
"""

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

from lorica.core.site import PackedLayer
from lorica.errors import ConfigError


class Repacked:
    """One such layer: built at the first use, and again when its factors have changed."""

    def __init__(self) -> None:
        self.version: Hashable = None
        self.layer: Any = None

    def of(self, layer: nn.Module, a: Tensor, b: Tensor, scale: float) -> nn.Module:
        """A layer packed as `layer` is, with its original weight minus scale b a.

        a: (R, I), b: (O, R). Raises: ConfigError if the original weight is not known.
        """
        version = tuple((t._version, t.data_ptr()) for t in (a, b))
        if version == self.version:
            return self.layer
        if not isinstance(layer, PackedLayer) or layer.original_weight is None:
            raise ConfigError(
                "loftq_iters quantises the base's float weights again, and this base was saved "
                "quantised: it has none.",
                fix="load the base from its float files with quantisation",
            )
        with torch.no_grad():
            self.layer = layer.requantised(layer.original_weight().to(b) - scale * b @ a)
        self.version = version
        return self.layer
