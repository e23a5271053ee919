"""Routes cut a tensor into segments and put it together again, and choose positions."""

import pytest
import torch

from lorica.core.route import BASE, ByRow, BySegment, Everywhere, Segment
from lorica.errors import ConfigError

CPU = torch.device("cpu")
PACKED = BySegment((Segment(("a",)), Segment(), Segment(("b", "a"))), (2, 1, 4))


@pytest.mark.parametrize("route", [BASE, Everywhere.of(["a", "b"]), PACKED])
def test_join_of_split_is_the_tensor(route):
    x = torch.randn(1, 7, 3)
    assert torch.equal(route.join(x, list(route.split(x, "layer"))), x)


def test_rows_of_one_adapter_are_a_segment_and_those_of_the_base_stay():
    route = ByRow.of(["a", None, "b", "a"], CPU)
    x = torch.arange(8.0).view(4, 2)
    assert [segment.adapters for segment in route.segments] == [("a",), ("b",)]
    first, second = route.split(x, "layer")
    assert torch.equal(first, x[[0, 3]]) and torch.equal(second, x[[2]])
    joined = route.join(x, [first + 10, second + 20])
    assert (joined - x)[:, 0].tolist() == [10, 0, 20, 10]


@pytest.mark.parametrize(
    ("route", "names"),
    [(BASE, ()), (Everywhere.of("aba"), ("a", "b")), (PACKED, ("a", "b"))],
    ids=["base", "everywhere", "packed"],
)
def test_every_adapter_is_named_once(route, names):
    assert route.names == names


def test_a_choice_of_positions_keeps_the_segments():
    chosen = PACKED.at(torch.tensor([1, 3, 4, 6]))
    assert chosen == BySegment(PACKED.segments, (1, 0, 3))
    assert BASE.at(torch.tensor([1])) is BASE


@pytest.mark.parametrize("shape", [(1, 6, 3), (7, 3), (2, 7, 3)], ids=str)
def test_other_tokens_than_those_of_the_packed_batch_are_refused(shape):
    with pytest.raises(ConfigError, match=r"layer model.q_proj received .* has 7 tokens") as error:
        PACKED.split(torch.zeros(shape), "model.q_proj")
    assert error.value.fix


def test_another_number_of_rows_is_refused():
    route = ByRow.of(["a", None], CPU)
    with pytest.raises(ConfigError, match=r"2 rows, and the batch has 3 \(at layer q_proj\)"):
        route.split(torch.zeros(3, 2), "q_proj")
