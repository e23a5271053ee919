"""Drive a method's schedule through the optimizer steps of a run.

The trainer does; in a loop of your own:

    driver = lorica.Driver(model, total=1000)
    rates, tensors = driver.learning_rates(), lorica.core.state.adapter_state(model)
    optimizer = AdamW([{"params": [tensors[key]], "lr": rate} for key, rate in rates.items()])
    driver.schedule.probe = loss_on_a_fixed_batch      # a function without arguments; for alora
    loss = model(...).loss + driver.penalty()
    loss.backward(); clip
    driver.before_step(); optimizer.step(); driver.after_step(); optimizer.zero_grad()

The optimizer state of the tensors in `driver.schedule.fresh()` is then reset, and weight decay acts
only where `live()` allows it: lorica.training.optim does both.

An adapter that was trained without the schedule of its method is not saved.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lorica.core.bank import attached, bank_of, parameter_sums, spec_of
from lorica.core.rates import default_rate, rates_of
from lorica.core.schedule import Schedule
from lorica.core.site import hidden_size_of
from lorica.errors import ConfigError, FileError

STEP = "step"


class Driver:
    """The schedule of adapter `name`, and where in the run it is.

    total: optimizer steps of the run; epoch: those of one pass over the rows.
    schedule: one to drive in place of the method's own.

    Raises: ConfigError if there is no such adapter, or its phases do not fit into `total`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        total: int,
        epoch: int = 1,
        name: str = "default",
        schedule: Schedule | None = None,
    ):
        self.total, self.t, self._name, self._bank = total, 0, name, bank_of(model)
        self._model = model
        own = attached(model, name)
        driven = schedule or own.method.schedule(own.adapters, total, max(epoch, 1))
        self.scheduled = driven is not None
        self.schedule = driven or Schedule()

    def learning_rates(
        self, rate: float | None = None, *, optimizer: str = "adamw"
    ) -> dict[str, float]:
        """The peak learning rate of every trained tensor, by its name in adapter_state.

        rate: that of the run; None: the method's own for `optimizer` and the model's hidden size.
        """
        method = spec_of(self._model, self._name).method
        own = default_rate(method, optimizer, hidden_size_of(self._model))
        return rates_of(self._model, own if rate is None else rate, self._name)

    def penalty(self) -> Tensor | float:
        """The term that is added to the loss of the next step."""
        penalty = self.schedule.penalty(self.t + 1)
        return 0.0 if penalty is None else penalty

    def before_step(self) -> None:
        """After clipping, before the optimizer's step."""
        if self.t == self.total:
            raise ConfigError(
                f"the schedule ends after {self.total} steps, and this is step {self.t + 1}.",
                fix="pass the real number of steps: Driver(model, total=...)",
            )
        self.schedule.before_step(self.t + 1)

    def after_step(self) -> None:
        """After the optimizer's step, before the gradients are cleared."""
        self.t += 1
        self.schedule.after_step(self.t)
        self._bank.driven.add(self._name)

    def unfinished(self, step: int) -> list[str]:
        """A notice if the adapter is that of `step`, before the end of the schedule."""
        if not self.scheduled or step >= self.total:
            return []
        return [f"the method's schedule is not finished: it was at step {step} of {self.total}"]

    def state(self) -> dict[str, Tensor]:
        """The state that a resume needs."""
        return {**self.schedule.state(), STEP: torch.tensor(self.t)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore `state`. Raises: FileError if it is of another schedule."""
        try:
            self.t = int(state[STEP])
            self.schedule.load_state({k: t for k, t in state.items() if k != STEP})
            if self.t:
                self._bank.driven.add(self._name)
        except KeyError as error:
            raise FileError(f"the schedule's state lacks {error}.") from None


def check_driven(model: nn.Module, name: str) -> None:
    """Raises: ConfigError if the method has a schedule, and the adapter was trained without it."""
    bank, own = bank_of(model), attached(model, name)
    if name in bank.driven or own.method.schedule(own.adapters, 10**9, 1) is None:
        return
    now, method = parameter_sums(own.adapters.values()), own.method.name
    if any(a.item() != b.item() for a, b in zip(bank.start[name], now, strict=True)):
        raise ConfigError(
            f"adapter {name!r} was trained, but the schedule of {method} was never driven.",
            fix="train with lorica.train, or call lorica.Driver in your own loop",
        )
