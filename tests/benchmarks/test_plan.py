"""The bars of `lorica plan`, on the runs that were measured, and the case of the article."""

import pytest

from benchmarks.plan import article, page, predicted
from benchmarks.plan.grid import CASES, OTHERS
from benchmarks.plan.run import RESULTS, read
from lorica.plan.devices import device_named
from lorica.recipe.catalogue import methods

LINES = {line["name"]: line for line in read(RESULTS)}


def test_all_runs_are_there_and_cover_what_they_should():
    assert {case.name for case in (*CASES, *OTHERS)} == LINES.keys()
    assert len(CASES) == 30
    assert {case.base for case in CASES} == {"260K", "5M", "58M"}
    assert {case.rows for case in CASES} == {2, 8}
    assert {case.checkpointing for case in CASES} == {True, False}
    assert {case.quantisation for case in CASES} == {None, "nf4"}
    assert {case.method for case in CASES} == methods().keys()


def test_memory_is_within_a_tenth_for_27_of_30_and_never_5_percent_below():
    errors = page.memory_errors([LINES[case.name] for case in CASES])
    assert sum(abs(error) <= 0.10 for error in errors) >= 27
    assert min(errors) > -0.05


def test_memory_holds_for_shapes_on_which_nothing_was_chosen():
    errors = page.memory_errors([LINES[case.name] for case in OTHERS])
    assert min(errors) > -0.06
    assert sum(abs(error) <= 0.10 for error in errors) >= len(errors) - 1


def test_three_steps_give_the_time_within_15_percent():
    errors = page.time_errors([LINES[case.name] for case in CASES])
    assert sum(abs(error) <= 0.15 for error in errors) >= 27


def test_time_planned_without_measuring_is_within_its_range():
    inside = 0
    for case in CASES:
        low, expected, high = predicted.planned_step(LINES[case.name])
        assert low < expected < high
        inside += low <= LINES[case.name]["step_seconds"] <= high
    assert inside >= 20


@pytest.fixture(scope="module")
def planned():
    return {case.side.name: case for case in article.planned()}


@pytest.mark.parametrize(("name", "gigabytes"), [("LoRA", 21), ("LLaMA-Adapter", 22)])
def test_the_memory_of_the_article(planned, name, gigabytes):
    case = planned[name]
    assert case.side.gigabytes == gigabytes
    assert case.memory.weights == 2 * 6_738_415_616
    assert case.memory_as_there.total / 1e9 == pytest.approx(gigabytes, rel=0.15)
    assert case.memory.total < case.memory_as_there.total  # shared prefixes, no padding


@pytest.mark.parametrize(("name", "minutes"), [("LoRA", 192), ("LLaMA-Adapter", 162)])
def test_the_time_of_the_article(planned, name, minutes):
    case = planned[name]
    assert case.side.minutes == minutes
    assert case.run_as_there.low / 60 < minutes < case.run_as_there.high / 60
    assert case.run_as_there.expected / 60 == pytest.approx(minutes, rel=0.3)
    assert case.run.expected < case.run_as_there.expected


def test_full_fine_tuning_of_7b_fits_on_no_card_of_80_gb(planned):
    full = planned["full fine-tuning"].memory
    assert full.adapter + full.optimizer == (16 + 2) * 6_738_415_616
    assert full.total > 1.5 * device_named("a100-80").memory_bytes


def test_rows_of_the_article_are_shorter_packed_than_padded():
    ours, there = article.counts(padded=False), article.counts(padded=True)
    assert there.mean.tokens > 1.8 * ours.mean.tokens
    assert there.largest.tokens == 4 * article.LONGEST
