"""Default learning rates: what every method declares, and what the base's width makes of it."""

import pytest

import lorica
from lorica.core.adapter import Method
from lorica.core.rate_by_size import LARGE, SMALL
from lorica.core.rates import default_rate
from lorica.core.state import adapter_state
from lorica.methods.prefix_tuning import PrefixTuning
from tests.laws.bases import small_llama

WIDTHS = (16, 64, 128, 256, 768, 2048, 4096, 8192)


@pytest.mark.parametrize("name", Method.names())
def test_every_method_declares_its_rates(name):
    method = lorica.method(name)
    small, large, sgd = method.rates
    assert 1 > small > large > 0, "small bases take larger rates"
    assert sgd > 0
    assert method.rate_source
    rates = [default_rate(method, "adamw", width) for width in WIDTHS]
    assert rates == sorted(rates, reverse=True)
    assert rates[:2] == [small, small]
    assert rates[-2:] == [large, large]
    assert default_rate(method, "paged_adamw", 256) == default_rate(method, "adamw", 256)
    assert {default_rate(method, "sgd", width) for width in WIDTHS} == {sgd}


def test_between_the_ends_the_rate_is_a_power_of_the_hidden_size():
    small, large, _ = lorica.Lora().rates
    middle = round((SMALL * LARGE) ** 0.5)
    want = (small * large) ** 0.5
    assert default_rate(lorica.Lora(), "adamw", middle) == pytest.approx(want, rel=0.05)
    assert default_rate(lorica.Lora(), "adamw", None) == large, "not known: the cautious end"


def test_settings_that_call_for_another_rate():
    plus = lorica.Lora(loraplus_lr_ratio=16)
    assert default_rate(plus, "adamw", LARGE) == pytest.approx(2e-4 / 4)
    network = PrefixTuning(reparametrisation=32)
    assert default_rate(network, "adamw", SMALL) == pytest.approx(0.1 * PrefixTuning().rates[0])


def test_a_loop_of_ones_own_gets_them_from_the_driver():
    model = lorica.adapt(small_llama(), lorica.Lora(r=2, loraplus_lr_ratio=4))
    driver = lorica.Driver(model, total=3)
    rates = driver.learning_rates()
    assert set(rates) == {k for k, t in adapter_state(model).items() if t.requires_grad}
    assert {(k[-1], r) for k, r in rates.items()} == {("a", 0.0035), ("b", 4 * 0.0035)}
    assert {*driver.learning_rates(1e-3).values()} == {1e-3, 4e-3}
    sgd = lorica.Lora().rates[2] / 2  # the ratio's root
    assert {*driver.learning_rates(optimizer="sgd").values()} == {sgd, 4 * sgd}
