"""The rules and the page of benchmarks/claims; nothing is trained."""

import json
import math
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import lorica
from benchmarks.claims import on_text, packing, pairs
from benchmarks.claims.claim import LADDER, TUNING, Claim, Column, Place, Run, Side, grid, paired
from benchmarks.claims.page import page
from benchmarks.claims.run import BEYOND, CLAIMS, Bench, judged, settle
from benchmarks.claims.variants import OpenGates, UnitPrompts
from benchmarks.claims.verdict import (
    FAILS,
    HOLDS,
    NOT_SHOWN,
    SEEDS,
    Part,
    interval,
    judge,
    together,
    within,
)
from lorica.base.load import load
from lorica.core.state import adapter_state


def test_interval_by_hand():
    low, high = interval([1, 2, 3])  # mean 2, standard deviation 1
    assert low == pytest.approx(2 - 4.303 / math.sqrt(3))
    assert high == pytest.approx(2 + 4.303 / math.sqrt(3))
    with pytest.raises(ValueError, match="2 values"):
        interval([1, 2])


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([1.0, 1.1, 0.9], HOLDS),
        ([-1.0, -1.1, -0.9], FAILS),
        ([1.0, 2.0, 3.0], NOT_SHOWN),  # all above zero, and too far apart
        ([1.0, -1.0, 0.1], NOT_SHOWN),
        ([0.0, 0.0, 0.0], NOT_SHOWN),
        ([0.5, 0.5, 0.5], HOLDS),
        ([1.0, None, 1.0], NOT_SHOWN),
        ([], NOT_SHOWN),
    ],
)
def test_a_difference_is_judged_by_its_interval(values, verdict):
    assert judge(values) == verdict


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.0, 1e-12, -1e-11], HOLDS),
        ([0.0, 0.0, -1e-9], FAILS),
        ([1e-9, None, 0.0], FAILS),
        ([0.0, None, 0.0], NOT_SHOWN),
        ([None, None, None], NOT_SHOWN),
    ],
)
def test_what_should_be_zero_is_judged_by_its_bound(values, verdict):
    assert within(values, 1e-10) == verdict
    assert Part("x", values, bound=1e-10).verdict == verdict


def test_a_claim_is_what_the_worst_of_its_parts_is():
    part = {v: {"verdict": v, "counts": True} for v in (HOLDS, NOT_SHOWN, FAILS)}
    beside = {"verdict": FAILS, "counts": False}
    assert together([part[HOLDS], part[HOLDS], beside]) == HOLDS
    assert together([part[HOLDS], part[NOT_SHOWN]]) == NOT_SHOWN
    assert together([part[NOT_SHOWN], part[FAILS], part[HOLDS]]) == FAILS
    assert together([beside]) == NOT_SHOWN


class Asked:
    """Stands for the runs: the score is a function of the rate, and what was asked is kept."""

    def __init__(self, score: Any):
        self.score, self.asked = score, []

    def __call__(self, side: Side, rate: Any, seed: int, also: tuple[str, ...]) -> "Future[Run]":
        self.asked.append((rate, seed, also))
        future: Future[Run] = Future()
        score = self.score(rate)
        future.set_result(
            {"seed": seed, "score": score}
            if score is not None
            else {"seed": seed, "score": None, "stopped": "it rose"}
        )
        return future


def side(rates: tuple[float, ...] = grid(3e-3)) -> Side:
    return Side("one", pairs.run, {}, rates, ("turns",))


def test_the_best_rate_is_run_with_other_seeds():
    start = Asked(lambda rate: abs(math.log(rate / 1e-2)))
    found = settle(side(), start)
    assert found["rate"] == 1e-2
    assert list(found["swept"]) == ["0.001", "0.003", "0.01", "0.03"]
    swept, reported = start.asked[:4], start.asked[4:]
    assert all(seed == TUNING and not also for _, seed, also in swept)
    assert reported == [(1e-2, seed, ("turns",)) for seed in SEEDS]
    assert TUNING not in SEEDS


@pytest.mark.parametrize(("sign", "best"), [(-1, 0.3), (1, 1e-4)])
def test_an_edge_that_is_the_best_is_gone_past(sign, best):
    start = Asked(lambda rate: sign * rate)
    found = settle(side(), start)
    assert found["rate"] == best
    assert len(found["swept"]) == 4 + BEYOND
    start = Asked(lambda rate: sign * rate)
    assert len(settle(side(), start, quick=True)["swept"]) == 2


def test_a_rate_that_is_stopped_is_never_the_best():
    found = settle(side(), Asked(lambda rate: None if rate > 5e-3 else rate**-1))
    assert found["rate"] == 3e-3
    assert found["swept"]["0.01"] is None
    found = settle(side(), Asked(lambda rate: None))
    assert found["rate"] is None
    assert [run["seed"] for run in found["runs"]] == list(SEEDS)
    assert all("no rate" in run["stopped"] for run in found["runs"])


def test_a_run_that_is_written_down_is_not_made_again(tmp_path):
    def task(settings, rate, seed, also, place) -> Run:
        made.append(seed)
        if rate is None:
            raise RuntimeError("it broke")
        return {"seed": seed, "score": rate}

    made: list[int] = []
    one, place, done = Side("one", task, {"r": 2}), Place(tmp_path, tmp_path, False), tmp_path / "d"
    for _ in range(2):  # the second time from the file
        with ThreadPoolExecutor(1) as pool:
            bench: Any = Bench(pool, place, done)  # type: ignore[arg-type]
            assert [bench(one, 0.1, seed, ()).result()["seed"] for seed in (0, 1, 0)] == [0, 1, 0]
            with pytest.raises(RuntimeError):
                bench(one, None, 7, ()).result()
    assert made == [0, 1, 7, 7]


def test_a_side_without_rates_is_run_as_it_is():
    start = Asked(lambda rate: 1.0)
    found = settle(side(()), start)
    assert found["swept"] == {} and len(found["runs"]) == len(SEEDS)
    assert start.asked == [(None, seed, ("turns",)) for seed in SEEDS]


def claim(name: str) -> Claim:
    return Claim(
        id=name,
        title=f"title of {name}",
        source="a paper: 7",
        how="as follows.",
        sides=[side(), side()],
        columns=[Column("loss", "loss")],
        parts=lambda runs: [
            Part("one − two", paired(runs, "one", "two", "loss")),
            Part("two − one", paired(runs, "two", "one", "loss"), counts=False),
        ],
    )


def results(more: float, last: Run | None = None, smoke: bool = False) -> dict[str, Any]:
    """Results of one claim, through JSON: side one is `more` above side two."""
    sides = []
    for name, start in (("one", 2.0 + more), ("two", 2.0)):
        runs: list[Run] = [{"seed": s, "loss": start + 0.1 * s, "trained": 1234} for s in SEEDS]
        swept = {"0.001": 2.5, "0.003": 2.25, "0.01": None}
        sides.append({"name": name, "swept": swept, "rate": 3e-3, "runs": runs})
    if last is not None:
        sides[0]["runs"][2] = last
    return json.loads(json.dumps(judged(claim("C1"), sides, smoke)))


def written(found: dict[str, Any]) -> str:
    claims = {name: claim(name) for name in ("C1", "C2")}
    return page(claims, {"claims": {"C1": found}, "versions": "torch 0"})


def test_the_page_says_what_was_found():
    text = written(results(0.5))
    assert "| C1 | title of C1 | holds |" in text
    assert "| C2 | title of C2 | not run |" in text
    assert "## C2" not in text
    assert "Source: a paper: 7" in text
    tried = "0.001: 2.500, **0.003: 2.250**, 0.01: stopped"
    assert f"| one | 1,234 | {tried} | 2.600 ± 0.100 |" in text
    assert "| one − two | +0.500, +0.500, +0.500 | +0.500 | +0.500 to +0.500 | holds |" in text
    assert "| two − one | -0.500, -0.500, -0.500 | -0.500 | -0.500 to -0.500 | (does not" in text
    assert "**Holds.**" in text
    assert "moke" not in text


def test_the_page_says_when_a_claim_fails():
    text = written(results(-0.5))
    assert "| C1 | title of C1 | does not hold |" in text
    assert "**Does not hold.**" in text and "**Holds.**" not in text


def test_a_run_that_was_stopped_is_named_and_shows_nothing():
    text = written(results(0.5, last={"seed": 2, "score": None, "stopped": "the loss rose"}))
    assert "- one, seed 2: the loss rose" in text
    assert "2.550 ± 0.071 (2 of 3 runs)" in text
    assert "| one − two | +0.500, +0.500, stopped | none | none | not shown |" in text
    assert "**Not shown.**" in text


def test_a_smoke_test_says_that_it_is_one():
    assert written(results(0.5, smoke=True)).count("Smoke test") == 2


def test_the_ten_claims():
    assert list(CLAIMS) == [f"C{i}" for i in range(1, 11)]
    for one in CLAIMS.values():
        names = [side.name for side in one.sides]
        assert len(set(names)) == len(names)
        for each in one.sides:
            assert set(each.rates) <= set(LADDER)
            assert len(each.rates) == len(one.sides[0].rates)  # as many tries for every side
        assert one.id in ("C5", "C9") or one.sides[0].rates


@pytest.mark.parametrize("name", list(CLAIMS))
def test_a_claim_whose_runs_were_all_stopped_is_not_shown(name):
    one = CLAIMS[name]
    runs = [{"seed": seed, "score": None, "stopped": "the loss rose"} for seed in SEEDS]
    sides = [{"name": s.name, "swept": {}, "rate": None, "runs": runs} for s in one.sides]
    found = judged(one, sides, False)
    assert found["verdict"] == NOT_SHOWN
    assert {part["verdict"] for part in found["parts"]} == {NOT_SHOWN}
    assert f"| {name} | {one.title} | not shown |" in page(CLAIMS, {"claims": {name: found}})


def runs_of(**figures: Any) -> list[Run]:
    """Three runs alike."""
    return [{"seed": seed, **figures} for seed in SEEDS]


def test_what_dora_and_lora_lose_with_the_rank():
    losses = {"lora": {1: 3.0, 2: 2.8, 4: 2.6, 8: 2.5}, "dora": {1: 2.7, 2: 2.9, 4: 2.5, 8: 2.4}}
    found = on_text.c2(
        {
            f"{name} r={r}": runs_of(loss=loss)
            for name, of in losses.items()
            for r, loss in of.items()
        }
    )
    first, *beside = found
    assert first.values == pytest.approx([0.2] * 3) and first.verdict == HOLDS
    assert [part.values[0] for part in beside] == pytest.approx([0.3, -0.1, 0.1, 0.1])
    assert first.counts and not any(part.counts for part in beside)


def test_correlations_have_the_sign_that_the_paper_found():
    found = on_text.c10(
        {
            "full": runs_of(query_value=-0.6, all_sites=-0.5),
            "dora": runs_of(query_value=-0.3, all_sites=0.2),
            "lora": runs_of(query_value=0.8, all_sites=0.7),
        }
    )
    counted = {part.what: part.verdict for part in found if part.counts}
    assert counted == {
        "−correlation of dora, query and value": HOLDS,
        "correlation of lora, query and value": HOLDS,
    }
    assert [p.verdict for p in found if p.what == "−correlation of dora, all linear layers"] == [
        FAILS
    ]


def test_steps_saved_are_counted_to_a_loss_that_both_reach():
    slow = runs_of(steps=[0, 10, 20], losses=[5.0, 4.0, 3.0], loss=3.0)
    fast = runs_of(steps=[0, 10, 20], losses=[5.0, 3.0, 2.0], loss=2.0)
    found = on_text.c8({"ratio 1": slow, "ratio 4": fast, "ratio 16": slow})
    saved = {part.what: part.values for part in found if part.counts}
    assert list(saved.values()) == [pytest.approx([10.0] * 3), pytest.approx([0.0] * 3)]


def test_steps_to_a_loss():
    run = {"steps": [0, 10, 20, 30], "losses": [5.0, 3.0, 3.5, 2.0]}
    assert on_text.reached(run, 4.0) == pytest.approx(5)
    assert on_text.reached(run, 3.0) == pytest.approx(10)
    assert on_text.reached(run, 2.75) == pytest.approx(25)
    assert on_text.reached(run, 6.0) == 0
    assert on_text.reached(run, 1.0) is None


def test_letters_that_are_right():
    wanted = " ".join("abcdefghklmn")
    assert pairs.right(" " + wanted, wanted) == 1
    assert pairs.right("abc", wanted) == pytest.approx(3 / 12)
    assert pairs.right("b c d", wanted) == 0  # each in its place
    assert pairs.right("", wanted) == 0


def test_pairs_follow_from_the_seed():
    assert pairs.pairs(1) == pairs.pairs(1) != pairs.pairs(2)
    assert len({key for key, _ in pairs.pairs(1)}) == pairs.PAIRS


def test_int4_is_within_half_a_step():
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    weight[0] = 0.0
    weight[1] = 0.0  # a block of zeros
    found = packing.int4(weight)
    steps = weight.view(-1, 64).abs().amax(1, keepdim=True) / 7
    apart = (found - weight).view(-1, 64).abs()
    assert bool((apart <= steps / 2 + 1e-6).all()) and apart.max() > 0
    assert all(len(block.unique()) <= 15 for block in found.view(-1, 64))


def test_the_starts_that_lorica_does_not_have(stories: Path):
    model = load(str(stories)).model
    gates = [
        t for k, t in adapter_state(lorica.adapt(model, OpenGates())).items() if k[-2:] == ".g"
    ]
    assert gates and all(bool((gate == 1).all()) for gate in gates)
    lorica.detach(model)
    lorica.adapt(model, UnitPrompts(num_virtual_tokens=100))
    (vectors,) = adapter_state(model).values()
    assert vectors.std().item() == pytest.approx(1, abs=0.05)
