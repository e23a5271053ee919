"""A quantised layer that belongs to an adapter: the original weight minus s B A, quantised again.

LoftQ with several rounds (inits.loftq) needs it, because the base weights are never written to.
"""

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

from lorica.core.site import PackedLayer
from lorica.errors import ConfigError


class RequantisedLayer:
    """Builds the layer at the first use, and again when its factors have changed."""

    def __init__(self) -> None:
        self.version: Hashable = None
        self.layer: Any = None

    def build(self, layer: nn.Module, a: Tensor, b: Tensor, scale: float) -> nn.Module:
        """The original weight of `layer` minus scale b a, quantised as `layer` is.

        a: (R, I), b: (O, R). Raises: ConfigError if the original weight is not known.
        """
        version = tuple((t._version, t.data_ptr()) for t in (a, b))
        if version == self.version:
            return self.layer
        if not isinstance(layer, PackedLayer) or layer.original_weight is None:
            raise ConfigError(
                "loftq_iters needs the float weights of the base, which was saved quantised.",
                fix="load the base from its float files with quantisation",
            )
        with torch.no_grad():
            self.layer = layer.requantised(layer.original_weight().to(b) - scale * b @ a)
        self.version = version
        return self.layer
