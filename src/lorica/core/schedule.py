"""What a method does around optimizer steps: penalties, pruning, freezing, growing.

The trainer calls, for each optimizer step t = 1, 2, ..., total:

    loss + penalty(t), backward, clip, before_step(t), optimizer.step, after_step(t), zero grad

A schedule sees real optimizer steps only, never micro-batches; under several processes the
gradients that it sees are already the mean of all.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor

Probe = Callable[[], float]


class Schedule:
    """The schedule of one run. Override what the method needs.

    probe: the mean loss (nats per label token) on a fixed batch of training rows, as the
        adapters are now, without gradients; set by the trainer before the first step. The
        rows are the same at every call of a run, and of a resumed one.
    """

    probe: Probe

    def penalty(self, t: int) -> Tensor | None:
        """A scalar that is added to the loss of step t; None: nothing."""
        return None

    def before_step(self, t: int) -> None:
        """Gradients are final (clipped), weights still old."""

    def after_step(self, t: int) -> None:
        """Weights are new, the gradients of the step still there."""

    def live(self) -> Mapping[str, Tensor]:
        """Which numbers weight decay may act on: {"<site>.<parameter>": bool, broadcastable}.

        A tensor that is not named decays as usual.
        """
        return {}

    def fresh(self) -> Collection[str]:
        """Tensors ("<site>.<parameter>") whose optimizer state starts anew after this step."""
        return ()

    def ranks(self) -> dict[str, int]:
        """The rank that is in use at each site now; empty: the method has none to speak of."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Everything that resuming needs and the adapters' own state does not hold."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave. Raises: KeyError if something is missing."""

    def facts(self) -> dict[str, Any]:
        """Plain numbers for the run's report."""
        return {}
