"""The training loop: the order in which things happen, the same for one run and for several.

next_step_input -> Stepper (forward, backward) -> apply_update -> evaluate_and_checkpoint
"""

import time
from collections.abc import Sequence
from contextlib import nullcontext

from lorica.base.packing import packed
from lorica.core.peak_memory import peak_memory
from lorica.training import watch
from lorica.training.finish import finish, pause
from lorica.training.plan import row_order
from lorica.training.restart import launch
from lorica.training.resume import save_checkpoint
from lorica.training.run import Result
from lorica.training.signals import Signals, stopped_by
from lorica.training.state import RunState
from lorica.training.step import Outcome, StepInput, Stepper, stepper_for
from lorica.training.validation import evaluate


def train_to_end(state: RunState) -> Result:
    """Train from where the run is to its last step, and write the result. Raises: as `train`."""
    try:
        stepper = stepper_for([state])
        state.shard()
        with Signals() as signals:
            begin(state, stepper)
            while not (state.is_done or state.is_paused):
                began = time.perf_counter()
                (outcome,) = compute_gradients([state], stepper)
                apply_update(state, outcome, time.perf_counter() - began)
                evaluate_and_checkpoint(state, signals)
        return pause(state) if state.is_paused else finish(state)
    finally:
        state.close()


def begin(state: RunState, stepper: Stepper) -> None:
    """Log how the run starts; evaluate a new one before its first step."""
    run, step, config = state.run, state.progress.step, state.config
    first = state.data.train[: config.micro_batch_size]
    run.notices += stepper.notices(first, state.plan.limit)
    by = {} if (launcher := launch()) is None else {"launch": launcher}
    run.log("resume" if step else "start", step=step, total=state.plan.total, **by)
    for text in [str(state.adapter.count), *run.notices]:
        run.log("line", text=text)
    if not step:
        evaluate(state)


def compute_gradients(
    states: Sequence[RunState], stepper: Stepper, *, routed: bool = False
) -> list[Outcome]:
    """One forward and backward pass over the next rows of every run.

    routed: the tokens of a run go through its adapter alone; otherwise the active ones act.
    """
    first = states[0]
    first.base.model.train()
    with packed(first.base.model) if first.plan.packed else nullcontext():
        return stepper([next_step_input(state, routed=routed) for state in states])


def next_step_input(state: RunState, *, routed: bool) -> StepInput:
    """The rows and settings of the next step. Changes nothing."""
    config, plan, step = state.config, state.plan, state.progress.step
    train = state.data.train
    seen, mixture = state.progress.rows, state.data.mixture
    indices = row_order(len(train), config.seed, seen, plan.rows_per_step, mixture)
    return StepInput(
        [train[i] for i in indices],
        plan.limit.rows,
        state.adapter.tensors,
        config.max_grad_norm,
        state.updater.driver.penalty,
        state.adapter.name if routed else None,
        config.seed * 1_000_003 + state.placement.seed(step),
        plan.limit.tokens,
    )


def apply_update(state: RunState, outcome: Outcome, seconds: float) -> None:
    """Check the gradients of a step, update the adapter with them, and log the step.

    seconds: that the gradients took. Raises: TrainingError if a watch stops the run.
    """
    progress, plan, updater, began = state.progress, state.plan, state.updater, time.perf_counter()
    if outcome.limit != plan.limit:
        state.run.notice(*plan.lower_limit(outcome.limit, progress.step + 1))
    watch.check_step(state, outcome)
    updater.step(state.adapter.tensors, plan.lr_factor(progress.step))
    progress.step += 1
    progress.rows += plan.rows_per_step
    progress.tokens += outcome.tokens
    seconds += time.perf_counter() - began
    progress.seconds += seconds
    state.run.log(
        "step",
        step=progress.step,
        loss=outcome.loss,
        lr=state.learning_rate_at(progress.step - 1),
        **({"penalty": outcome.penalty} if updater.driver.scheduled else {}),
        grad_norm=outcome.norm,
        tokens=progress.tokens,
        tokens_per_second=outcome.tokens / seconds,
        memory=peak_memory(state.placement.device),
        **state.placement.step_facts(),
    )
    watch.check_rise(progress, outcome.loss, state.config.loss_limit)


def evaluate_and_checkpoint(state: RunState, signals: Signals) -> None:
    """After an update: evaluate and save where it is due. Raises: Stopped after a signal."""
    step, plan = state.progress.step, state.plan
    received = int(state.placement.agree(signals.received))
    ends = state.is_done or state.is_paused
    if plan.evaluates_after(step) or plan.saves_after(step) or received or ends:
        watch.check_weights(state)
    if plan.evaluates_after(step) or state.is_paused:
        evaluate(state)
    if plan.saves_after(step) or received or ends:
        save_checkpoint(state)
    if received:
        raise stopped_by(received, f"{step} of {plan.total}", state.run.folder)
