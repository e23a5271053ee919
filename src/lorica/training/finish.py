"""Finish a run: its last notices, its adapter folder, results.json and plots."""

from lorica.core.peak_memory import peak_memory
from lorica.formats import commit
from lorica.formats.peft.layouts import peft_notices
from lorica.formats.save import save
from lorica.training import optim, watch
from lorica.training.adapter import restore_best
from lorica.training.base_model import absolute_if_local
from lorica.training.figures import card_rows, figures
from lorica.training.plots import RANKS, plot_loss, plot_ranks
from lorica.training.prepare import default_learning_rate
from lorica.training.run import RESULTS, Result, losses_of
from lorica.training.state import RunState


def finish(state: RunState) -> Result:
    """Write what the run produced. Raises: TrainingError if no trained tensor moved."""
    model, run = state.base.model.eval(), state.run
    adapter_step = _settle(state)
    driver = state.updater.driver
    run.notice(*driver.unfinished(adapter_step), *peft_notices(model, state.adapter.name))
    results = figures(state, adapter_step)
    if run.is_writer:
        _write(state, results)
    state.placement.wait()
    return Result(run.folder, results, run.notices)


def pause(state: RunState) -> Result:
    """The result of a run that stops before its end, with a checkpoint: it has no adapter yet."""
    return Result(state.run.folder, {}, state.run.notices)


def _settle(state: RunState) -> int:
    """Make the adapter final: the best one where training went past it. In place.

    Returns: the step that it is of.
    """
    adapter, progress, run = state.adapter, state.progress, state.run
    trained = {name: adapter.tensors[name] for name in adapter.initial}
    run.notice(
        *watch.check_moved(
            adapter.initial,
            trained,
            state.updater.driver.schedule.live(),
            state.placement.any_process,
            steps=progress.step,
        ),
        *watch.notices_of_rise(progress, adapter.best, state.config.init_from),
        *watch.notices_of_standstill(
            losses_of(run.folder),
            optim.persistence(state.updater.optimizer),
            state.learning_rate,
            default_learning_rate(state.config),
        ),
        *state.placement.settle(),
    )
    if adapter.best is None:
        return progress.step
    if progress.best_step < progress.step:
        if run.is_writer:
            restore_best(adapter, state.base.model)
        run.notice(f"the adapter is that of step {progress.best_step}, the best one")
    return progress.best_step


def _write(state: RunState, results: dict) -> None:
    run, data, config = state.run, state.data, state.config
    save(
        state.base.model,
        run.adapter,
        state.adapter.name,
        tokenizer=state.base.tokenizer,
        base_path=absolute_if_local(config.base),
        prompt_format=data.prompt_format,
        labels=data.labels,
        with_tokenizer=bool(config.data.add_tokens),
        trained=card_rows(state, results),
        warn=False,
    )
    results["peak_memory_bytes"] = peak_memory(state.placement.device)  # saving takes some, too
    commit.write_json(run.folder / RESULTS, results)
    run.log("end", step=state.progress.step)
    plot_loss(run.folder)
    if ranks := results.get("ranks"):
        plot_ranks(ranks, run.folder / RANKS)
