"""What a study shows, of studies whose truth is known."""

import math
import re

import numpy as np
import pytest

from benchmarks.compare_rates import losses
from lorica.compare.results import MeasureScores
from lorica.compare.verdict import verdict_of
from lorica.evaluation.task import Task
from tests.compare.simulated_study import COST, scores, side, study


def simulated(shifts, *, generator=None, seeds=(0, 1, 2), **settings):
    """A study of sides a, b, c ...; shifts: what is added to the losses of each."""
    table = losses(generator or np.random.default_rng(0), len(shifts), seeds=len(seeds), **settings)
    return study(
        [
            side(chr(97 + k), {s: scores(table[k, i] + shift) for i, s in enumerate(seeds)})
            for k, shift in enumerate(shifts)
        ]
    )


def test_a_clear_difference_is_shown_and_signed():
    verdict = verdict_of(simulated([0.0, -0.5, 0.5, 0.0], seed=0.01))
    by_name = {c.side: c for c in verdict.comparisons["loss"]}
    assert [by_name[n].verdict for n in "bcd"] == ["better", "worse", "no difference shown"]
    assert verdict.ranking[0] == "b"
    assert verdict.ranking[-1] == "c"
    assert verdict.may_be_best == ("b",)
    difference = by_name["b"].difference
    assert difference.value == pytest.approx(-0.5, abs=0.05)
    for interval in (difference.over_rows, difference.over_seeds, difference.over_both):
        assert interval.low < difference.value < interval.high < 0
    assert by_name["b"].p <= by_name["b"].p_holm < 0.05


def test_the_interval_over_both_is_wider_than_that_over_rows():
    verdict = verdict_of(simulated([0.0, 0.0, 0.0], seed=0.2))
    figure = verdict.sides["a"]["loss"].figure
    assert figure.over_both.low < figure.over_rows.low
    assert figure.over_both.high > figure.over_rows.high


def test_half_intervals_add_as_squares():
    (one, _) = verdict_of(simulated([0.0, 0.1, 0.0], seed=0.1)).comparisons["loss"]
    half = [i.high - i.value for i in vars(one.difference).values() if i != one.difference.value]
    assert half[2] == pytest.approx(math.hypot(half[0], half[1]))
    assert one.p < 0.05 if one.difference.over_both.side else one.p > 0.05
    at_bound = one.variance.p(half[2])
    assert at_bound == pytest.approx(0.05, rel=1e-3)


def test_the_same_side_twice_has_no_difference():
    rows = {s: scores(np.arange(1.0, 9.0) + s) for s in range(3)}
    (comparison,) = verdict_of(study([side("a", rows), side("b", rows)])).comparisons["loss"]
    assert (comparison.p, comparison.p_holm) == (1.0, 1.0)
    assert comparison.verdict == "no difference shown"


def test_three_sentences_say_it():
    verdict = verdict_of(simulated([0.0, -0.5, 0.0], seed=0.01))
    first, second, third = verdict.sentences
    assert first.startswith("b is best with 95 % confidence: b has the lowest mean loss, 1.")
    assert "b is better than the reference a" in second
    assert "c is not shown to differ from the reference a" in second
    assert "b takes 10 ms a step, 256 MiB, a file of 16 KiB, a 10 ms a step" in third
    assert re.search(
        r"; to distinguish a from c \(a difference of 0\.\d+\) takes [\d,]+ test rows", third
    )


def test_without_a_difference_no_side_is_called_the_best():
    generator = np.random.default_rng(1)
    verdict = verdict_of(simulated([0.0, 0.0, 0.0], generator=generator, seed=0.02))
    assert set(verdict.may_be_best) == {"a", "b", "c"}
    assert "but is not shown to be the best" in verdict.sentences[0]
    assert verdict.sentences[1].startswith("It cannot be distinguished from ")


def hits(count, rows=20):
    return scores([1.0] * count + [0.0] * (rows - count), "higher")


def test_equal_sides_are_not_called_the_highest():
    sides = [side(n, {s: hits(0) for s in range(3)}, measure="exact_match") for n in "abc"]
    first, second, third = verdict_of(study(sides, goal="exact_match")).sentences
    assert first == "No side differs in exact_match: the mean of each of the 3 is 0."
    assert second == "b, c are not shown to differ from the reference a."
    assert third.endswith("; a and b are equal here; another measure may tell them apart.")


def test_sides_that_share_the_first_place_are_all_named():
    counts = {"a": 4, "b": 8, "c": 8}
    sides = [
        side(n, {s: hits(k) for s in range(3)}, measure="exact_match") for n, k in counts.items()
    ]
    first = verdict_of(study(sides, goal="exact_match")).sentences[0]
    assert first.startswith("b, c share the highest mean exact_match, 0.4 ")
    assert first.endswith("but none is shown to be the best.")


def test_a_side_that_diverged_loses_by_name():
    good = {s: scores([1.0, 2.0, 3.0, 4.0 + s]) for s in range(3)}
    bad = side("wild", {}, errors=dict.fromkeys(range(3), "the loss is not finite at step 7"))
    nan = side("nan", {s: scores([1.0, math.nan, 2.0, 2.0]) for s in range(3)})
    verdict = verdict_of(study([side("calm", good), bad, nan]))
    assert verdict.ranking == ("calm", "wild", "nan")
    by_name = {c.side: c for c in verdict.comparisons["loss"]}
    assert by_name["wild"].verdict == by_name["nan"].verdict == "failed"
    assert by_name["wild"].reason == "the loss is not finite at step 7"
    assert "wild has no result: the loss is not finite at step 7" in verdict.notices
    assert "nan has no result: its loss is not a finite number" in verdict.notices
    assert verdict.sentences[0].startswith("calm alone has a result")
    assert "wild, nan came to no result" in verdict.sentences[0]
    assert "nan" not in verdict.sides


def test_a_reference_that_failed_leaves_no_verdict():
    good = {s: scores([1.0, 2.0, 3.0]) for s in range(3)}
    result = study([side("ref", {}, errors={0: "out of memory"}), side("b", good)])
    (comparison,) = verdict_of(result).comparisons["loss"]
    assert comparison.verdict == "no verdict"
    assert comparison.reason == "the reference ref has no result: out of memory"


def test_a_side_that_was_not_run_did_not_fail():
    good = {s: scores([1.0, 2.0, 3.0]) for s in range(3)}
    verdict = verdict_of(study([side("a", good), side("later", {})]))
    (comparison,) = verdict.comparisons["loss"]
    assert (comparison.verdict, comparison.reason) == ("no verdict", "it was not run")


def test_failed_seeds_are_left_out_of_the_pair_and_named():
    table = losses(np.random.default_rng(1), 2)
    first = side("a", {s: scores(table[0, s]) for s in range(3)})
    second = side("b", {s: scores(table[1, s]) for s in (0, 2)}, errors={1: "diverged"})
    verdict = verdict_of(study([first, second]))
    (comparison,) = verdict.comparisons["loss"]
    assert comparison.seeds == (0, 2)
    expected = (table[1, [0, 2]] - table[0, [0, 2]]).mean()
    assert comparison.difference.value == pytest.approx(expected)
    assert "b, seed 1 failed: diverged" in verdict.notices
    better = side("b", {s: scores(table[1, s] - 1) for s in (0, 2)}, errors={1: "diverged"})
    assert ", without seed 1, which failed" in verdict_of(study([first, better])).sentences[0]
    assert any("b has no result with seed 1" in notice for notice in verdict.notices)


@pytest.mark.parametrize(("rows", "seeds"), [(2, 3), (5, 1)])
def test_too_few_rows_or_seeds_give_no_verdict(rows, seeds):
    table = losses(np.random.default_rng(2), 2, rows=rows, seeds=seeds)
    sides = [
        side(n, {s: scores(table[k, s] + k) for s in range(seeds)}) for k, n in enumerate("ab")
    ]
    (comparison,) = verdict_of(study(sides)).comparisons["loss"]
    assert comparison.verdict == "no verdict"
    assert comparison.reason == (
        f"{rows} rows and {seeds} common seeds; a verdict needs 3 rows and 2 seeds"
    )


@pytest.mark.parametrize(
    ("unsteady", "advice"), [(0, "compare with a steadier reference"), (2, "add seeds")]
)
def test_a_side_that_seeds_upset_is_named(unsteady, advice):
    table = losses(np.random.default_rng(6), 5, seed=0.01)
    table[unsteady] += np.array([-1.0, 0.0, 1.0])[:, None]
    sides = [side(f"s{k}", {s: scores(table[k, s]) for s in range(3)}) for k in range(5)]
    (notice,) = verdict_of(study(sides)).notices
    assert notice.startswith(f"s{unsteady} differs from seed to seed by ")
    assert advice in notice
    assert not verdict_of(study(sides[:3])).notices


def test_a_side_that_seeds_upset_leaves_the_verdicts_on_the_others():
    """Its own has the seeds of this pair alone, and no more degrees of freedom than these have."""
    table = losses(np.random.default_rng(6), 5, seed=0.01)
    table[1] -= 0.1
    steady = {f"s{k}": {s: scores(table[k, s]) for s in range(3)} for k in range(4)}
    upset = {s: scores(table[4, s] + 2 + 0.3 * (s - 1)) for s in range(3)}
    sides = [side(name, runs) for name, runs in steady.items()]
    verdict = verdict_of(study([*sides, side("s4", upset)]))
    by_name = {c.side: c for c in verdict.comparisons["loss"]}
    assert by_name["s1"].verdict == "better" and by_name["s4"].verdict == "worse"
    assert by_name["s4"].variance.seed_df == 2 and by_name["s1"].variance.seed_df == 4
    alone = {c.side: c for c in verdict_of(study(sides)).comparisons["loss"]}
    assert by_name["s1"].variance.seeds == pytest.approx(alone["s1"].variance.seeds, rel=0.2)


def test_weights_decide_the_mean_and_its_variance():
    """Ten tokens in one row count as ten rows of one token do: the value, and the error too."""
    generator = np.random.default_rng(3)
    weights = generator.integers(1, 40, 100)
    table = losses(generator, 2, rows=100)
    sides = [
        side(n, {s: scores(table[k, s], weights=weights) for s in range(3)})
        for k, n in enumerate("ab")
    ]
    verdict = verdict_of(study(sides))
    figure = verdict.sides["a"]["loss"].figure
    assert figure.value == pytest.approx(np.average(table[0].mean(axis=0), weights=weights))
    draws = []
    for _ in range(2000):
        picked = generator.integers(0, 100, 100)
        draws.append(np.average(table[0].mean(axis=0)[picked], weights=weights[picked]))
    width = math.log(figure.over_rows.high / figure.over_rows.low) * figure.value
    assert width == pytest.approx(2 * 1.98 * np.std(draws), rel=0.15)


def test_a_corpus_measure_varies_with_its_rows():
    """A ratio of sums has the same intervals from its statistics and from weighted rows."""
    generator = np.random.default_rng(4)
    hits, words = generator.integers(0, 10, (2, 3, 80)), generator.integers(10, 20, 80)
    as_statistics, as_rows = [], []
    for k, name in enumerate("ab"):
        ratio = {s: scores(hits[k, s] / words, "higher", words) for s in range(3)}
        as_rows.append(side(name, ratio, measure="score"))
        corpus = {
            s: type(r)(
                r.value, "higher", r.rows, (), np.stack([hits[k, s], words], axis=1).tolist()
            )
            for s, r in ratio.items()
        }
        as_statistics.append(side(name, corpus, measure="score"))
    combine = {"score": lambda sums: sums[..., 0] / sums[..., 1]}
    first = verdict_of(study(as_statistics, goal="score"), combine).comparisons["score"][0]
    second = verdict_of(study(as_rows, goal="score")).comparisons["score"][0]
    assert first.difference.value == pytest.approx(second.difference.value)
    assert first.variance.rows == pytest.approx(second.variance.rows)
    assert verdict_of(study(as_statistics, goal="score"), {}).notices[0] == (
        "a has no statistics of score: nothing combines its statistics to a value"
    )


def test_a_corpus_measure_is_combined_by_the_task_of_its_name():
    pytest.importorskip("sacrebleu")
    right = [["the cat sat on the mat today"], ["a dog ran over the green hill"], ["it rains"]] * 4
    written = {"good": [r[0] for r in right], "poor": ["the cat", "a dog ran over", "rain"] * 4}
    sides = []
    for name, answers in written.items():
        bleu = Task.named("bleu")().score(answers, right)
        run = MeasureScores(bleu.value, "higher", bleu.rows.tolist(), (), bleu.statistics.tolist())
        sides.append(side(name, dict.fromkeys(range(3), run), measure="bleu"))
    verdict = verdict_of(study(sides, goal="bleu"))
    assert verdict.sides["good"]["bleu"].figure.value == pytest.approx(100)
    (comparison,) = verdict.comparisons["bleu"]
    assert comparison.verdict == "worse"
    assert -100 < comparison.difference.over_both.high < 0


def test_a_corpus_score_above_1_is_no_share():
    """BLEU goes to 100, and the BLEU of single rows may be 0 in all of them."""
    rows = [0.0] * 6
    statistics = [[1.0, 2.0], [0.0, 2.0], [1.0, 3.0]] * 2
    run = MeasureScores(100 * 4 / 14, "higher", rows, (), statistics)
    result = study([side("a", dict.fromkeys(range(3), run), measure="bleu")], goal="bleu")
    combine = {"bleu": lambda sums: 100 * sums[..., 0] / sums[..., 1]}
    interval = verdict_of(result, combine).sides["a"]["bleu"].figure.over_rows
    assert interval.low < 28.6 < interval.high < 100


def test_hits_that_never_differ_prove_nothing_with_few_rows():
    def hits(values):
        return {s: scores(values, "higher") for s in range(3)}

    def p(first, second):
        sides = [side("a", hits(first), measure="hit"), side("b", hits(second), measure="hit")]
        return verdict_of(study(sides, goal="hit")).comparisons["hit"][0].p

    assert p([0, 0, 0], [1, 1, 1]) > 0.05
    assert p([0] * 12, [1] * 12) < 0.01
    assert p([0] * 100, [1] + [0] * 99) > 0.2


def test_learned_against_forgotten_and_the_fronts():
    table = losses(np.random.default_rng(5), 3, rows=50)
    base = scores(table[0, 0] + 1)
    sides = []
    for k, name in enumerate("abc"):
        one = side(name, {s: scores(table[k, s]) for s in range(3)})
        finals = [
            type(f)(
                f.seed, 1e-3, f.scores, before_scores=scores(table[k, f.seed] + 0.2), forgotten=0.2
            )
            for f in one.finals
        ]
        cost = type(COST)(0.01 * (k + 1), 1.0, 2**20 * (3 - k), 1024, 10, 100)
        sides.append(type(one)(name, "lora", None, "", one.trials, finals, cost))
    verdict = verdict_of(study(sides, base={"loss": base}))
    assert [t.side for t in verdict.tradeoffs] == ["a", "b", "c"]
    for tradeoff in verdict.tradeoffs:
        assert tradeoff.forgotten.value == pytest.approx(0.2)
        assert tradeoff.learned.over_both.low > 0.8
    third = verdict.sentences[2]
    words = f'the loss of {verdict.ranking[0]} on the rows of "before" rose by 0.2 (of the others'
    assert third.count(words + ": 0.2); ") == 1
    quality = {name: verdict.sides[name]["loss"].figure.value for name in "abc"}
    assert verdict.fronts["time"][0] == "a"
    assert verdict.fronts["memory"][0] == "c"
    assert verdict.fronts["file size"] == (min(quality, key=quality.__getitem__),)


def test_it_is_the_same_every_time():
    assert verdict_of(simulated([0, -0.1, 0.1])) == verdict_of(simulated([0, -0.1, 0.1]))
