"""The learning rate is the method's own for the base, and lower for ranks above 8."""

import pytest

import lorica
from lorica.core.rates import default_rate
from lorica.plan.choose.evidence import evidence
from lorica.plan.choose.flowchart import EDGES
from lorica.plan.choose.rate import BY_RANK, RESULT_OF, choose_rate
from lorica.plan.choose.situation import Base
from lorica.recipe.catalogue import methods

NAMES = sorted({edge.method for edge in EDGES})


def chosen(name, r, hidden):
    return choose_rate(name, methods()[name].facts, r, Base("base", hidden, 1, [])).value


@pytest.mark.parametrize("hidden", [None, 64, 288, 4096])
@pytest.mark.parametrize("name", NAMES)
def test_at_rank_8_it_is_the_default(name, hidden):
    assert chosen(name, 8, hidden) == default_rate(lorica.method(name), "adamw", hidden)


@pytest.mark.parametrize("name", sorted(BY_RANK))
def test_it_falls_with_the_root_of_the_rank(name):
    assert chosen(name, 32, 64) == pytest.approx(chosen(name, 8, 64) / 2, rel=0.02)
    assert chosen(name, 4, 64) == chosen(name, 8, 64)


def test_other_methods_keep_theirs():
    assert chosen("mora", 64, 64) == chosen("mora", 8, 64)


def test_every_method_cites_its_row():
    assert set(RESULT_OF) == set(NAMES) and set(RESULT_OF.values()) <= set(evidence())


def test_the_fall_agrees_with_the_row_that_it_cites():
    """At r=16 the better of the two rates that were tried is the closer one."""
    rate = chosen("lora", 16, 64)
    better, worse = 0.003, 0.01
    assert abs(rate / better - 1) < abs(worse / rate - 1)
