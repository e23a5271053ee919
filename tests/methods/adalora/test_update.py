"""AdaLoRA: the update by hand, its start, its penalty and its settings."""

import math

import pytest
import torch
from torch import nn

import lorica
from lorica.core.bank import adapted_layers, attached
from lorica.core.drive import Driver
from lorica.core.state import adapter_state
from lorica.errors import ConfigError
from lorica.methods.adalora import Adalora
from tests.laws.bases import Stack
from tests.methods.adalora.driving import PHASES
from tests.methods.driving import Run


def test_the_branch_by_hand():
    layer = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(layer.weight)
    model = lorica.adapt(nn.Sequential(layer), Adalora(r=2, target_r=1, alpha=6))
    (adapter,) = attached(model, "default").adapters.values()
    with torch.no_grad():
        adapter.a.copy_(torch.tensor([[1.0, 2], [3, 4]]))
        adapter.e.copy_(torch.tensor([0.5, -1]))
        adapter.b.copy_(torch.tensor([[1.0, 0], [2, 1]]))
    want = 6 / (2 + 1e-5) * torch.tensor([1.5, 3 - 7])  # A x = (3, 7)
    torch.testing.assert_close(model(torch.ones(2)), want)


def test_the_scale_is_that_of_the_reference_and_of_the_start_rank():
    assert Adalora(r=12, alpha=8).scale == 8 / (12 + 1e-5)
    assert Adalora().scale == pytest.approx(2, abs=1e-5)
    run = Run(Adalora(r=6, target_r=2, **PHASES), 30).to(30)
    assert {a.scale for a in run.adapters.values()} == {12 / (6 + 1e-5)}
    assert any(rank < 6 for rank in run.schedule.ranks().values())


def test_starts():
    model = lorica.adapt(nn.Sequential(nn.Linear(400, 300)), Adalora(r=16))
    (adapter,) = attached(model, "default").adapters.values()
    for tensor in (adapter.a, adapter.b):
        assert abs(tensor.std().item() - 0.02) < 0.001
        assert abs(tensor.mean().item()) < 0.001
    assert adapter.e.tolist() == [0] * 16
    x = torch.randn(3, 400)
    with lorica.use(model):
        base = model(x)
    assert torch.equal(model(x), base)


def test_in_the_first_step_the_task_moves_e_alone():
    model = lorica.adapt(Stack(), Adalora(r=4))
    driver = Driver(model, total=10)
    model(torch.randn(3, 12)).square().sum().backward()
    for adapter in attached(model, "default").adapters.values():
        assert adapter.a.grad.abs().max() == adapter.b.grad.abs().max() == 0
        assert (adapter.e.grad != 0).all()
    model.zero_grad()
    driver.penalty().backward()
    for adapter in attached(model, "default").adapters.values():
        assert (adapter.a.grad != 0).all()
        assert (adapter.b.grad != 0).all()
        assert adapter.e.grad is None


def test_the_penalty_by_hand():
    for mode, want in (("frobenius_mean", 0.3 * (math.sqrt(3) + 0) / 2), ("squared_sum", 0.3 * 3)):
        model = lorica.adapt(
            nn.Sequential(nn.Linear(2, 2)), Adalora(r=2, orth_mode=mode, orth_reg_weight=0.3)
        )
        driver = Driver(model, total=10)
        (adapter,) = attached(model, "default").adapters.values()
        with torch.no_grad():
            adapter.a.copy_(torch.tensor([[1.0, 1], [0, 1]]))
            adapter.b.copy_(torch.eye(2))
        assert driver.penalty().item() == pytest.approx(want, abs=1e-6)
    free = lorica.adapt(nn.Sequential(nn.Linear(2, 2)), Adalora(r=2, orth_reg_weight=0))
    assert Driver(free, total=10).penalty() == 0


def test_the_penalty_makes_rows_orthonormal():
    run = Run(Adalora(r=4, target_r=4, orth_reg_weight=1.0), 400, lr=0.01)
    first = run.driver.penalty().item()
    run.to(400)
    assert run.driver.penalty().item() < 0.1 * first


def test_ranks_of_single_sites():
    for target_r, total in ((None, 3 * 4 + 2), (3, 3 * 3 + 2)):
        method = Adalora(r=6, target_r=target_r, **PHASES)
        pattern = {r"layers\.0\.up": 3 if target_r is None else 2}
        run = Run(method, 40, rank_pattern=pattern).to(40)
        assert sum(run.schedule.ranks().values()) == total
        assert run.adapters["layers.0.up"].scale == pytest.approx(2, abs=1e-4)


def test_dropout_acts_in_training_alone():
    model = Run(Adalora(r=4, dropout=0.5), 10).to(5).model
    x = torch.ones(4, 12)
    assert torch.equal(model.eval()(x), model(x))
    assert not torch.equal(model.train()(x), model(x))


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"r": 0}, "adalora.r is"),
        ({"r": 2.5}, "adalora.r is"),
        ({"target_r": 0}, "target_r"),
        ({"r": 4, "target_r": 5}, "target_r is 5.*at most r, 4"),
        ({"target_r": 1.5}, "target_r"),
        ({"alpha": 0}, "alpha"),
        ({"alpha": math.inf}, "alpha"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": math.nan}, "dropout"),
        ({"mode": "grow"}, "decrease or increase"),
        ({"tinit": -1}, "tinit"),
        ({"tfinal": -1}, "tfinal"),
        ({"deltaT": 0}, "deltaT"),
        ({"tinit": 2.5}, "tinit"),
        ({"beta1": 0}, "beta1"),
        ({"beta2": 1}, "beta2"),
        ({"beta1": math.nan}, "beta1"),
        ({"orth_reg_weight": -0.1}, "orth_reg_weight"),
        ({"orth_reg_weight": math.inf}, "orth_reg_weight"),
        ({"orth_mode": "l2"}, "frobenius_mean or"),
    ],
    ids=str,
)
def test_settings_out_of_range(settings, words):
    with pytest.raises(ConfigError, match=words) as error:
        Adalora(**settings)
    assert error.value.fix


def test_the_default_target_is_two_thirds():
    for r, target in ((12, 8), (6, 4), (4, 3), (1, 1), (48, 32)):
        model = lorica.adapt(nn.Sequential(nn.Linear(3, 3)), Adalora(r=r))
        (adapter,) = attached(model).adapters.values()
        assert adapter.target == target


def test_phases_that_leave_no_step():
    model = lorica.adapt(Stack(), Adalora(r=3, tinit=60, tfinal=40))
    with pytest.raises(ConfigError, match="leaves none of the 100 steps"):
        Driver(model, total=100)
    assert Driver(model, total=101).scheduled


def test_every_site_is_linear():
    model = lorica.adapt(Stack(), Adalora(r=3))
    assert len(list(adapted_layers(model))) == 4
    assert all(t.dtype == torch.float32 for t in adapter_state(model).values())


def test_autocast_and_half_precision():
    run, x = Run(Adalora(r=4), 10).to(5), torch.randn(4, 12)
    with torch.no_grad():
        want = run.model(x)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(run.model(x), want, atol=0.1, rtol=0.1, check_dtype=False)
    half = lorica.adapt(Stack().bfloat16(), Adalora(r=4))
    half(x).sum().backward()
    for adapter in attached(half, "default").adapters.values():
        assert adapter.e.dtype == adapter.e.grad.dtype == torch.float32
