"""AFLoRA: whole runs, what freezes, resuming, the phases and the settings."""

import copy

import pytest
import torch
from torch import nn

import lorica
from lorica import Driver
from lorica.core.state import load_adapter_state
from lorica.errors import ConfigError
from lorica.methods.aflora import Aflora
from lorica.methods.aflora.schedule import Freezing
from tests.laws.bases import Stack, move
from tests.methods.aflora.driving import GOAL, SHORT, TOTAL, Loop, X, bits, one, scaled
from tests.training.rows import adapter as saved
from tests.training.rows import interrupt, same, settings


def test_what_is_frozen_stays_frozen_to_the_bit():
    loop = Loop(lorica.adapt(Stack(), Aflora(**SHORT)))
    before, values, counts = set(), {}, []
    for t in range(1, TOTAL + 1):
        old = bits(loop.model)
        loop.steps(1)
        now, frozen = bits(loop.model), loop.frozen()
        assert before <= frozen, "for good"
        if t <= 4:
            assert not frozen
        elif frozen - before:
            assert t % 2 == 0, "at the end of a window"
            values |= {name: old[name] for name in frozen - before}
        for name, tensor in now.items():
            if name in frozen:
                assert torch.equal(tensor, values[name]), f"{name} moved in step {t}"
            elif t > 2:
                assert not torch.equal(tensor, old[name]), f"{name} stood still in step {t}"
        before, _ = frozen, counts.append(len(frozen))
        for name, parameter in loop.named.items():
            assert parameter.requires_grad == (name not in frozen)
            assert parameter.grad is None
    assert counts[-1] == 8 and counts[-1] == counts[22], "all, from T - tfinal on"
    assert len(set(counts)) > 2, "not all at once"


def test_the_optimizer_gets_no_gradient_of_what_is_frozen():
    loop = Loop(lorica.adapt(Stack(), Aflora(**SHORT)))
    loop.steps(23)
    (loop.model(X) - GOAL).square().mean().backward()
    assert {n for n, p in loop.named.items() if p.grad is not None} == {
        f"{site}.{key}" for site in scaled(loop.model) for key in "dv"
    }
    assert not loop.schedule._averages, "nothing is kept for them"
    assert lorica.trainable_parameters(loop.model).trainable == 4 * 3 + 2 * (12 + 20)


def test_a_matrix_of_equal_scores_is_frozen_in_the_end_as_well():
    model, adapter = one(3, 2, r=1, tinit=1, tfinal=5, deltaT=1)
    driver = Driver(model, total=10)
    schedule: Freezing = driver.schedule  # type: ignore[assignment]
    for t in range(1, 11):
        for key in ("a", "b"):
            matrix = getattr(adapter, key)
            matrix.grad = torch.ones_like(matrix) if matrix.requires_grad else None
        driver.before_step()
        driver.after_step()
        assert set(schedule.frozen_at.values()) == ({0} if t <= 5 else {6})


def test_activating_does_not_thaw():
    model = lorica.adapt(Stack(), Aflora(**SHORT))
    loop = Loop(model)
    loop.steps(25)
    lorica.adapt(model, lorica.Lora(r=1), name="other")
    lorica.activate(model, "default")
    assert not any(loop.named[name].requires_grad for name in loop.frozen())
    lorica.detach(model, "other")


def test_a_run_that_goes_on_is_the_same_to_the_bit():
    whole = Loop(lorica.adapt(Stack(), Aflora(**SHORT)))
    whole.steps(TOTAL)
    steps = sorted(set(whole.schedule.frozen_at.values()))
    assert steps[0] > 4 and len(steps) > 2
    for at in (3, steps[0], steps[1] + 1, 22, 25):  # in a window, after a freeze, between, the end
        first = Loop(lorica.adapt(Stack(), Aflora(**SHORT)))
        first.steps(at)
        second = Loop(lorica.adapt(Stack(), Aflora(**SHORT), seed=9))
        load_adapter_state(second.model, bits(first.model))
        second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
        second.driver.load_state({k: t.clone() for k, t in first.driver.state().items()})
        assert second.frozen() == first.frozen()
        assert all(p.requires_grad == (n not in second.frozen()) for n, p in second.named.items())
        first.steps(1)  # what was loaded is a copy
        second.steps(TOTAL - at)
        assert same(bits(whole.model), bits(second.model)), at
        assert second.schedule.facts() == whole.schedule.facts()


def test_a_state_that_lacks_something_is_refused():
    loop = Loop(lorica.adapt(Stack(), Aflora(**SHORT)))
    loop.steps(3)
    state = loop.driver.state()
    state.pop("layers.0.up.b")
    with pytest.raises(lorica.LoricaError, match=r"layers\.0\.up\.b"):
        Loop(lorica.adapt(Stack(), Aflora(**SHORT))).driver.load_state(state)


def test_the_facts_of_a_run():
    loop = Loop(lorica.adapt(Stack(), Aflora(**SHORT)))
    trained = 0
    for _ in range(TOTAL):
        loop.steps(1)  # after before_step: what this step trained
        trained += lorica.trainable_parameters(loop.model).trainable
    facts = loop.schedule.facts()
    assert facts["matrices"] == facts["frozen"] == sum(facts["frozen_at_step"].values()) == 8
    assert facts["average_trained"] == pytest.approx(trained / TOTAL, abs=0.06)
    assert [*facts["frozen_at_step"]] == sorted(facts["frozen_at_step"])
    assert all(4 < step <= 23 for step in facts["frozen_at_step"])
    assert loop.schedule.ranks() == {}


def test_square_layers_may_be_fixed_from_the_start(tmp_path):
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 9), nn.Linear(9, 6))

    torch.manual_seed(0)
    base = make()
    model = lorica.adapt(copy.deepcopy(base), Aflora(r=2, freeze_square=True))
    square, wide, _ = scaled(model).values()
    assert [n for n, _ in square.named_parameters()] == ["d", "v"]
    assert [n for n, _ in square.named_buffers()] == ["a", "b"]
    assert [n for n, _ in wide.named_parameters()] == ["a", "b", "d", "v"]
    assert lorica.trainable_parameters(model).trainable == (2 + 6) + 30 + (2 + 9) + 30 + (2 + 6)
    plain = lorica.adapt(copy.deepcopy(base), Aflora(r=2))
    assert torch.equal(next(iter(scaled(plain).values())).a, square.a), "the same start"
    facts = Driver(model, total=100).schedule.facts()
    assert facts["matrices"] == 4 and facts["average_trained"] == 8 + 11 + 8 + 60
    move(model)
    lorica.save(model, tmp_path / "adapter")
    fresh = copy.deepcopy(base)
    assert lorica.load(fresh, tmp_path / "adapter") == []
    x = torch.ones(6)
    assert torch.equal(fresh(x), model(x)) and not torch.equal(fresh(x), base(x))


def test_a_base_of_square_layers_has_nothing_to_freeze():
    model = lorica.adapt(nn.Sequential(nn.Linear(6, 6)), Aflora(r=2, freeze_square=True))
    driver = Driver(model, total=10)
    for _ in range(10):
        model(torch.ones(6)).sum().backward()
        driver.before_step()
        driver.after_step()
    assert driver.schedule.facts()["matrices"] == 0


def test_the_trainer_freezes_and_goes_on_to_the_bit(small_base, tmp_path, monkeypatch):
    run = {
        "method": {"name": "aflora", "tinit": 1, "tfinal": 2, "deltaT": 1, "dropout": 0.1},
        "max_steps": 6,
        "save_steps": 1,
        "learning_rate": 0.02,
        "weight_decay": 0.1,
        "target_modules": ["q_proj", "down_proj"],
        "micro_batch_size": 4,
    }
    whole = lorica.train(**settings(small_base, tmp_path / "a", **run), show=False)
    facts = whole.figures["schedule"]
    assert facts["matrices"] == facts["frozen"] == 8 and len(facts["frozen_at_step"]) > 1
    assert whole.figures["held_out_loss"]["after"] < whole.figures["held_out_loss"]["before"]
    cut = settings(small_base, tmp_path / "b", **run)
    interrupt(monkeypatch, 4, **cut)
    again = lorica.train(resume=cut["output"], show=False)
    assert same(saved(whole.folder), saved(again.folder))
    assert again.figures["schedule"] == facts


def phases(total: int, epoch: int, **changed) -> tuple[int, int, int]:
    """tinit, T - tfinal, deltaT."""
    schedule = Driver(one(3, 2, **changed)[0], total=total, epoch=epoch).schedule
    assert isinstance(schedule, Freezing)
    return schedule.phases.start, schedule.phases.end, schedule.phases.every


def test_the_phases():
    assert phases(2000, 100) == (100, 600, 10), "20 epochs, as in the paper: one, and fourteen"
    assert phases(1000, 100) == (100, 300, 10), "10 epochs: one, and seven"
    assert phases(300, 100) == (30, 90, 10), "where an epoch is long, a tenth of the run"
    assert phases(30, 100) == (3, 9, 2)
    assert phases(2, 100) == (0, 1, 1)
    assert phases(1, 1) == (0, 1, 1)
    assert phases(100, 10, tinit=0, tfinal=0, deltaT=50) == (0, 100, 50)


@pytest.mark.parametrize(
    "total, changed",
    [
        (100, {"tinit": 30}),
        (100, {"tinit": 50, "tfinal": 50}),
        (100, {"tfinal": 100}),
        (100, {"deltaT": 31}),
        (8, {"tfinal": 8}),
    ],
    ids=str,
)
def test_phases_that_do_not_fit(total, changed):
    with pytest.raises(ConfigError, match=f"{total} steps") as error:
        phases(total, 10, **changed)
    assert error.value.fix and {"tinit", "tfinal", "deltaT"} <= error.value.facts.keys()


@pytest.mark.parametrize(
    "changed",
    [
        {"r": 0},
        {"r": None},
        {"r": 1.5},
        {"tinit": -1},
        {"tfinal": -1},
        {"tfinal": 0.7},
        {"deltaT": 0},
        {"beta1": 1.0},
        {"beta2": -0.1},
        {"beta2": float("nan")},
        {"dropout": 1.0},
        {"d_initial": 0.0},
        {"d_initial": float("nan")},
        {"d_initial": float("inf")},
    ],
    ids=str,
)
def test_settings_out_of_range(changed):
    with pytest.raises(ConfigError, match=rf"aflora\.{next(iter(changed))} ") as error:
        Aflora(**changed)
    assert error.value.fix
