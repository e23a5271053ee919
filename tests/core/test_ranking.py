"""Ranking components over all sites: exact counts, ties, growth, importances."""

import pytest
import torch

from lorica.core import ranking
from lorica.errors import ConfigError


def sites(**scores) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(values) for name, values in scores.items()}


def plain(masks) -> dict[str, list[int]]:
    return {site: [int(x) for x in mask] for site, mask in masks.items()}


def test_the_lowest_of_all_sites_go():
    out = ranking.lowest(sites(one=[0.3, 0.1, 0.9], two=[0.2, 0.5]), 3)
    assert plain(out) == {"one": [1, 1, 0], "two": [1, 0]}


def test_ties_take_no_more_than_was_asked_for():
    scores = sites(one=[0.5, 0.5, 0.5], two=[0.5, 0.1])
    assert plain(ranking.lowest(scores, 2)) == {"one": [1, 0, 0], "two": [0, 1]}
    zeros = {f"s{i}": torch.zeros(12) for i in range(40)}
    for n in (1, 7, 100, 479):
        assert sum(int(m.sum()) for m in ranking.lowest(zeros, n).values()) == n


@pytest.mark.parametrize("n, gone", [(-3, 0), (0, 0), (5, 5), (9, 5)])
def test_none_and_all(n, gone):
    out = ranking.lowest(sites(one=[0.3, 0.1, 0.9], two=[0.2, 0.5]), n)
    assert sum(int(m.sum()) for m in out.values()) == gone


def test_what_remains_is_the_update():
    a, b = torch.randn(4, 5), torch.randn(3, 4)
    e = torch.tensor([0.5, 0.0, -2.0, 0.0])
    small_a, small_b = ranking.active_factors(a, e, b)
    assert small_a.shape == (2, 5)
    torch.testing.assert_close(small_b @ small_a, b @ torch.diag(e) @ a)
    small_a, small_b = ranking.active_factors(a, torch.zeros(4), b)
    assert small_a.shape == (0, 5)
    assert torch.equal(small_b @ small_a, torch.zeros(3, 5))


def test_growth_goes_to_the_highest_scores_and_stops_at_the_maximum():
    ranks, scores = {"x": 1, "y": 1, "z": 1}, {"x": 0.1, "y": 0.3, "z": 0.2}
    max_ranks = {"x": 4, "y": 2, "z": 4}
    assert ranking.grown(ranks, max_ranks, scores, 1) == {"x": 1, "y": 2, "z": 1}
    assert ranking.grown(ranks, max_ranks, scores, 2) == {"x": 1, "y": 2, "z": 2}
    assert ranking.grown(ranks, max_ranks, scores, 5) == {"x": 3, "y": 2, "z": 3}
    assert ranking.grown(ranks, max_ranks, scores, 99) == max_ranks
    assert ranking.grown(ranks, max_ranks, dict.fromkeys(ranks, 0.0), 1) == {"x": 2, "y": 1, "z": 1}
    assert ranks == {"x": 1, "y": 1, "z": 1}


def test_importance_by_hand():
    w = torch.nn.Parameter(torch.tensor([0.5]))
    importance = ranking.Importance({"w": w}, 0.85, 0.85)
    w.grad = torch.tensor([-0.2])
    importance.update()
    torch.testing.assert_close(importance.averages["w"].flatten(), torch.tensor([0.015, 0.01275]))
    torch.testing.assert_close(importance["w"], torch.tensor([1.9125e-4]))
    w.grad = torch.tensor([0.6])
    importance.update()
    torch.testing.assert_close(
        importance.averages["w"].flatten(), torch.tensor([0.05775, 0.047175])
    )
    torch.testing.assert_close(importance["w"], torch.tensor([2.7243563e-3]))


def test_a_tensor_without_a_gradient_counts_as_zero_and_all_without_is_an_error():
    used, unused = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    importance = ranking.Importance({"used": used, "unused": unused}, 0.5, 0.5)
    with pytest.raises(ConfigError, match="gradients") as error:
        importance.update()
    assert "after_step" in error.value.fix
    used.grad = torch.ones(2)
    importance.update()
    assert importance["used"].tolist() == [0.125, 0.125]
    assert importance["unused"].tolist() == [0, 0]


def test_orthonormality_loss_by_hand():
    q, right = torch.tensor([[1.0, 1], [0, 1]]), torch.eye(2)
    assert ranking.orthonormality_loss([q], squared=False).item() == pytest.approx(3**0.5)
    assert ranking.orthonormality_loss([q, right], squared=False).item() == pytest.approx(
        3**0.5 / 2, abs=1e-6
    )
    assert ranking.orthonormality_loss([q, right], squared=True).item() == pytest.approx(3)


def test_the_slope_of_the_orthonormality_loss_is_finite_at_orthonormal_rows():
    q = torch.eye(3, requires_grad=True)
    ranking.orthonormality_loss([q], squared=False).backward()
    assert q.grad is not None
    assert q.grad.isfinite().all()


@pytest.mark.parametrize(
    "total, want",
    [
        (50_000, (5_000, 25_000, 100)),
        (4_000, (400, 2_000, 8)),
        (1_000, (100, 500, 2)),
        (100, (10, 50, 1)),
        (3, (0, 2, 1)),
        (2, (0, 1, 1)),
        (1, (0, 1, 1)),
    ],
)
def test_the_phases_follow_the_run(total, want):
    phases = ranking.Phases.of(total, None, None, None)
    assert (phases.start, phases.end, phases.every) == want


def test_given_phases_stand():
    phases = ranking.Phases.of(1000, 100, 200, 10)
    assert (phases.start, phases.end, phases.every) == (100, 800, 10)
    assert [t for t in range(1, 1001) if phases.is_due(t)] == list(range(110, 801, 10))
    assert [t for t in range(95, 131) if ranking.Phases.of(1000, 100, 876, 9).is_due(t)] == [
        108,
        117,
        124,
    ]
    assert ranking.Phases.of(1000, 900, None, None).end == 950
    assert ranking.Phases.of(1000, None, 900, None).start == 20
    assert ranking.Phases.of(1000, None, 0, 1).is_due(1000)


@pytest.mark.parametrize("tinit, tfinal", [(600, 400), (1000, None), (2000, None), (None, 1000)])
def test_phases_that_do_not_fit(tinit, tfinal):
    with pytest.raises(ConfigError, match="none of the 1000 steps") as error:
        ranking.Phases.of(1000, tinit, tfinal, None)
    assert "1000" in error.value.fix
