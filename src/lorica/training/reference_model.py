"""The base under an adapted model, as the reference model of a preference trainer (TRL's DPO).

    DPOTrainer(model, ref_model=lorica.ReferenceModel(model), ...)

Without it TRL loads the base a second time from its path, as it does for any model that is not
PEFT's. This one is the model itself, run without its adapters (`lorica.use`).
"""

from typing import Any

from torch import nn

from lorica.core.attach import use
from lorica.core.bank import bank_of
from lorica.core.site import ADAPTERS
from lorica.errors import ConfigError


class ReferenceModel(nn.Module):
    """The base of an adapted model. It has no parameters of its own, and gives no gradients.

    A trainer's eval mode does not reach it: what dropout the base itself has follows the model.

    Raises: ConfigError if the model has no adapter.
    """

    adapted: nn.Module

    def __init__(self, model: nn.Module):
        super().__init__()
        if not bank_of(model).specs:
            raise ConfigError("the model has no adapter.", fix="adapt() or load() one first")
        self.config: Any = model.config
        # Not a submodule: a trainer puts its reference into eval mode, and must not so the model.
        object.__setattr__(self, "adapted", model)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self(*args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the base gives. TRL replaces `forward` of a model; the one it replaced in the
        adapted model runs here, so this method does not go through `forward`."""
        with use(self.adapted):
            return self.adapted(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The base's tensors: TRL names its cache of reference log-probabilities by them."""
        state = self.adapted.state_dict(*args, **kwargs)
        return {key: tensor for key, tensor in state.items() if ADAPTERS not in key.split(".")}
