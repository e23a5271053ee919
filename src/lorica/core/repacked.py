"""Quantised layers that an adapter makes for itself: of a layer's original weight less a product.

A start that goes with other codes than the base's (inits.loftq) needs them, and the base is never
written to.
"""

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

from lorica.errors import ConfigError


class Repacked:
    """One layer, made when it is first asked for, and anew when what it follows from changed."""

    def __init__(self) -> None:
        self.version: Hashable = None
        self.layer: Any = None

    def of(self, layer: Any, a: Tensor, b: Tensor, scale: float) -> nn.Module:
        """A quantised layer as `layer` is, of its original weight less scale b a.

        a: (R, I), b: (O, R). Raises: ConfigError if the original weight is not known.
        """
        version = tuple((t._version, t.data_ptr()) for t in (a, b))
        if version == self.version:
            return self.layer
        read = getattr(layer, "original_weight", None)
        if read is None:
            raise ConfigError(
                "this adapter goes with codes of its own (loftq_iters), which are made from the "
                "base's float weights, and only quantised ones are known.",
                fix="load the base from its float files with quantisation",
            )
        with torch.no_grad():
            self.layer = layer.requantised(read().to(b) - scale * b @ a)
        self.version = version
        return self.layer
