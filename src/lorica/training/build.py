"""Build a run: load the base, adapt it, place it, plan the steps, and resume from a checkpoint.

The order is load -> quantise -> adapt -> place -> optimizer -> checkpoint; nothing is trained here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lorica.base.fingerprint import Fingerprint
from lorica.base.load import LoadedModel
from lorica.core.drive import Driver
from lorica.core.rates import rates_of
from lorica.data.load import Data
from lorica.training import checkpoint as ckpt
from lorica.training import optim
from lorica.training.adapter import (
    TrainedAdapter,
    add_adapter,
    initialize_adapter,
    trained_adapter,
)
from lorica.training.base_model import exact_fingerprint
from lorica.training.config import TrainConfig
from lorica.training.display import Display
from lorica.training.placement import Placement
from lorica.training.plan import Plan, make_plan
from lorica.training.processes import check_alike, facts_of
from lorica.training.resume import continue_from
from lorica.training.run import Run
from lorica.training.state import RunState
from lorica.training.trackers import start_tracker
from lorica.training.validation import probe


@dataclass(frozen=True)
class SharedBase:
    """A loaded base on which several runs train, each with an adapter of its own."""

    base: LoadedModel
    fingerprint: Fingerprint


def build_run(
    config: TrainConfig,
    data: Data,
    run: Run,
    placement: Placement,
    *,
    show: bool,
    notices: Sequence[str] = (),
    shared: SharedBase | None = None,
    name: str = "default",
) -> RunState:
    """The state of a run before its next step; a run with checkpoints continues from the newest.

    config: with a learning rate. show: progress on the screen. notices: on the settings. shared: a
    base that other runs train on too; None: it is loaded. name: of the adapter on the base.

    Raises: what `train` raises before the first step.
    """
    base = shared.base if shared else placement.load(config, data.labels)
    adapter_notices = add_adapter(base, config, data, name, placement)
    placement.place(base.model)
    fingerprint = shared.fingerprint if shared else exact_fingerprint(base, config)
    saved = ckpt.load_newest(run.checkpoints)
    adapter_notices += initialize_adapter(
        base, config, data, None if saved is None else saved.adapter, name
    )
    adapter = trained_adapter(base.model, name)
    processes = placement.processes if saved is None else saved.origin.processes
    plan, plan_notices = make_plan(base, config, data, name, placement, processes=processes)
    run.notices += [*notices, *base.notices, *adapter_notices, *data.notices, *plan_notices]
    state = RunState(
        config=config,
        run=run,
        data=data,
        base=base,
        fingerprint=fingerprint,
        adapter=adapter,
        plan=plan,
        updater=_make_updater(config, data, base, adapter, plan, placement),
        placement=placement,
        progress=ckpt.Progress(),
    )
    check_alike(placement, facts_of(state, saved))
    if saved is not None:
        continue_from(state, saved)
    if run.is_writer:
        _add_followers(state, show=show, title=run.folder.name if shared else "")
    return state


def _make_updater(
    config: TrainConfig,
    data: Data,
    base: LoadedModel,
    adapter: TrainedAdapter,
    plan: Plan,
    placement: Placement,
) -> optim.Updater:
    model, name = base.model, adapter.name
    driver = Driver(
        model, total=plan.total, epoch=plan.epoch, name=name, schedule=placement.schedule(config)
    )
    driver.schedule.probe = probe(model, data.train, name)
    assert config.learning_rate is not None
    optimizer = optim.make_optimizer(
        adapter.tensors,
        rates_of(model, config.learning_rate, name),
        kind=config.optimizer,
        decay=config.weight_decay,
        masked=driver.schedule.live().keys(),
    )
    return optim.Updater(optimizer, driver)


def _add_followers(state: RunState, *, show: bool, title: str) -> None:
    """Let the display and the trackers of the settings follow the run's events. In place."""
    run, config = state.run, state.config
    if show:
        display = Display(state.plan.total, title)
        run.followers.append(display)
        run.closing.callback(display.close)
    plain = config.model_dump(mode="json")
    run.followers += [start_tracker(name, run.folder, plain) for name in config.report_to]
