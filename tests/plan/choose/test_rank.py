"""The rank follows from the label tokens, and stands beside the article's bands."""

import pytest

from lorica.plan.choose.rank import (
    RANKS,
    article_band,
    break_even,
    choose_rank,
    highest_rank,
    parameters_per_rank,
    ranks_of,
)
from lorica.plan.choose.situation import Base, Rows, Situation

WIDE = Base("wide", 1000, 10**8, [(1000, 1000)] * 10)  # 20,000 parameters for each rank


def rows(kind="prompt", tokens=0, classes=()):
    return Rows(kind, 1000, 950, 50, tokens, classes=dict.fromkeys(classes, 100))


def rank(tokens, kind="prompt", base=WIDE, goal="quality", classes=()):
    return choose_rank(Situation(rows(kind, tokens, classes), base, goal=goal))


@pytest.mark.parametrize(
    ("tokens", "r"),
    [(0, 4), (80_000, 4), (80_001, 8), (160_000, 8), (160_001, 16), (5_000_000, 256)],
)
def test_the_smallest_rank_that_reaches_the_label_tokens(tokens, r):
    assert rank(tokens).r == rank(tokens).wanted == r
    assert r * parameters_per_rank(WIDE) >= tokens


def test_no_rank_reaches_them():
    result = rank(5_120_001)
    assert (result.r, result.wanted, result.reached) == (256, None, False)
    assert result.reasons[0].why == (
        "no rank reaches the 5,120,001 label tokens: r=256 has 5,120,000 parameters"
    )


def test_a_small_base_has_a_lower_highest_rank():
    """A square layer of 64 inputs has 4,096 weights, and LoRA r=32 as many parameters."""
    base = Base("small", 64, 10**5, [(64, 64)] * 4)
    assert break_even(base) == 32 and ranks_of(base) == (4, 8, 16, 32)
    result = rank(10**6, base=base)
    assert result.r == 32 and "from r=32 on LoRA has more parameters than the layers" in (
        result.reasons[0].why
    )


def test_the_smallest_base_still_has_a_rank():
    assert ranks_of(Base("tiny", 4, 100, [(4, 4)])) == (RANKS[0],)


@pytest.mark.parametrize(("goal", "r"), [("quality", 64), ("small", 4), ("fast", 8)])
def test_a_goal_limits_the_rank(goal, r):
    result = rank(1_000_000, goal=goal)
    assert result.r == r and result.wanted == 64
    assert highest_rank(Situation(rows(), WIDE, goal=goal)) == {"quality": 256}.get(goal, r)


@pytest.mark.parametrize(
    ("kind", "classes", "band"),
    [
        ("label", "ab", "low (1 to 8)"),
        ("label", "abcdefgh", "moderate (8 to 32)"),
        ("prompt", "", "moderate (8 to 32)"),
        ("messages", "", "moderate (8 to 32)"),
        ("text", "", "high (32 and above)"),
    ],
)
def test_the_bands_of_the_article(kind, classes, band):
    assert article_band(Situation(rows(kind, 1, classes), WIDE)) == band


def test_it_says_where_the_article_agrees_and_differs():
    assert "agrees" in rank(200_000).reasons[-1].why
    assert "differs: the count of label tokens decides" in rank(1_000).reasons[-1].why


def test_classes_have_no_label_tokens_to_count():
    result = rank(0, "label", classes="ab")
    assert result.unknown and result.r == 8
    assert rank(0, "label", classes="abcdefgh").r == 16
