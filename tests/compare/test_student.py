"""Student's t and Holm's correction against published values."""

import math

import pytest

from lorica.compare.student import holm, quantile, two_sided_p


@pytest.mark.parametrize(
    ("p", "df", "t"),
    [  # Abramowitz & Stegun, table 26.10
        (0.05, 1, 12.706),
        (0.05, 2, 4.303),
        (0.01, 2, 9.925),
        (0.001, 4, 8.610),
        (0.05, 9, 2.262),
        (0.001, 30, 3.646),
        (0.001, 120, 3.373),
        (0.05, 1e6, 1.960),
    ],
)
def test_students_t_has_the_published_points(p, df, t):
    assert quantile(p, df) == pytest.approx(t, abs=6e-4)
    assert two_sided_p(t, df) == pytest.approx(p, rel=2e-3)


@pytest.mark.parametrize("t", [0.0, 0.3, 2.0, 40.0])
def test_two_degrees_of_freedom_have_a_closed_form(t):
    assert two_sided_p(t, 2) == pytest.approx(1 - t / math.sqrt(t * t + 2), abs=1e-12)
    assert two_sided_p(-t, 1) == pytest.approx(1 - 2 / math.pi * math.atan(t), abs=1e-12)


def test_holm_corrects_by_the_number_that_is_left():
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
