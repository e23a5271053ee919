"""The actions of a method around optimizer steps: penalties, pruning, freezing, growing.

For each optimizer step t = 1, 2, ..., total the trainer runs:

    loss + penalty(t), backward, clip, before_step(t), optimizer.step, after_step(t), zero grad

A schedule sees optimizer steps, never micro-batches. With several processes, the gradients that it
sees are already the mean over all of them.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor

Probe = Callable[[], float]


class Schedule:
    """The schedule of one run. Override what the method needs.

    probe: returns the mean loss (nats per label token) of the current adapters on a fixed batch of
        training rows, without gradients. The trainer sets it before the first step. The rows are
        the same at every call of a run, and of a resumed one.
    """

    probe: Probe

    def penalty(self, t: int) -> Tensor | None:
        """A scalar that is added to the loss of step t; None: nothing."""
        return None

    def before_step(self, t: int) -> None:
        """The gradients are clipped, and the weights not yet updated."""

    def after_step(self, t: int) -> None:
        """The weights are updated, and the gradients of the step not yet cleared."""

    def live(self) -> Mapping[str, Tensor]:
        """Which elements weight decay acts on: {"<site>.<parameter>": bool, broadcastable}.

        A tensor that is not in it decays everywhere.
        """
        return {}

    def fresh(self) -> Collection[str]:
        """Tensors ("<site>.<parameter>") whose optimizer state is reset after this step."""
        return ()

    def ranks(self) -> dict[str, int]:
        """The rank in use at each site now; empty: the method does not change ranks."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """What a resume needs beside the state of the adapters."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned. Raises: KeyError if something is missing."""

    def facts(self) -> dict[str, Any]:
        """Numbers for the report of the run."""
        return {}
