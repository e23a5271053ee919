"""The simulation of waiting runs, and shows what the page says."""

from benchmarks.serve.fairness import simulate


def test_one_request_waits_for_one_answer_and_not_for_200():
    fair = simulate(4, 64, arrival=50, tenant="single")
    unfair = simulate(4, 64, arrival=50, tenant="many")
    assert fair.slot <= 64 < 1000 < unfair.slot
    assert fair.answer - fair.slot == unfair.answer - unfair.slot == 32
