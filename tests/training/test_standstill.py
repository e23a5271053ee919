"""A run whose loss hardly moves says so, and one that had nothing to learn does not."""

import pytest
import torch
from torch import nn

import lorica
from lorica.training.optim import make_optimizer, persistence
from lorica.training.watch import PERSISTENT, notices_of_standstill
from tests.training.rows import settings


def losses(first: float, last: float, steps: int = 100, noise: float = 0.05) -> list[float]:
    """A straight line from one to the other, with noise on it."""
    draw = torch.randn(steps, generator=torch.Generator().manual_seed(0)) * noise
    return (torch.linspace(first, last, steps) + draw).tolist()


CASES = {  # what it is: (losses, agreement of the gradients, whether there is a notice)
    "too low a rate": (losses(5.18, 5.12), 0.8, True),
    "too low, noisy rows": (losses(5.18, 5.0, noise=0.5), 0.8, True),
    "it learned": (losses(5.18, 3.7), 0.3, False),
    "slow, but it learns": (losses(5.18, 4.6), 0.8, False),
    "a base that knows the rows": (losses(2.70, 2.69), 0.06, False),
    "a base that knows them by heart": (losses(0.05, 0.049, noise=0.01), 0.05, False),
    "it rose: another notice says so": (losses(5.0, 6.0), 0.8, False),
    "too few steps to tell": (losses(5.18, 5.17, steps=12), 0.8, False),
    "sgd at a tiny rate": (losses(5.18, 5.12), None, True),
}


@pytest.mark.parametrize("case", CASES)
def test_a_standstill_is_a_notice(case):
    curve, agreement, is_noticed = CASES[case]
    notices = notices_of_standstill(curve, agreement, 2e-4, 0.3)
    assert len(notices) == is_noticed
    if is_noticed:
        assert "raise learning_rate, now 0.0002 (the method's own is 0.3 here)" in notices[0]


def test_sgd_at_the_methods_own_rate_gives_no_notice():
    assert notices_of_standstill(losses(2.7, 2.69), None, 1.0, 1.0) == []


def test_gradients_of_noise_agree_little_and_constant_ones_wholly():
    tensors = {"x": nn.Parameter(torch.ones(40, 40))}
    draw = torch.Generator().manual_seed(0)
    for kind, low, high in (("noise", 0.03, 0.08), ("constant", 0.99, 1.01), ("both", 0.3, 0.7)):
        optimizer = make_optimizer(tensors, {"x": 1e-9}, kind="adamw", decay=0.0)
        for _ in range(200):
            noise = torch.randn(40, 40, generator=draw)
            grads = {"noise": noise, "constant": torch.ones(40, 40), "both": 1 + noise}
            tensors["x"].grad = grads[kind]
            optimizer.step()
        assert low < persistence(optimizer) < high
    assert persistence(make_optimizer(tensors, {"x": 1e-9}, kind="sgd", decay=0.0)) is None
    assert 0.08 < PERSISTENT < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("method", ["prompt_tuning", "lora"])
def test_a_real_run_at_a_tiny_rate(small_base, tmp_path, method, capsys):
    """Its notice names the rate to take; a resumed run counts from its real beginning."""
    changed = {"method": method, "max_steps": 24, "learning_rate": 1e-6, "warmup_ratio": 0.0}
    result = lorica.train(**settings(small_base, tmp_path, **changed))
    assert "the training loss hardly moved" in capsys.readouterr().err, "it is printed"
    own = lorica.method(method).rates[0]
    assert any("hardly moved" in n and f"own is {own:g}" in n for n in result.notices), (
        result.notices
    )
    assert result.figures["lines"] == result.notices
    fine = settings(small_base, tmp_path / "b", **changed | {"learning_rate": own})
    assert not any("hardly moved" in n for n in lorica.train(**fine, show=False).notices)
