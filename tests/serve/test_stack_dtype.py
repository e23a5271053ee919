"""The dtype of stacked factors is measured, and only where there is a choice."""

import pytest
import torch

from lorica.core.site import sites_of
from lorica.serve import stack_dtype
from lorica.serve.stack_dtype import ROWS, float32_rows
from tests.laws.bases import Stack


def test_float32_layers_leave_no_choice():
    assert float32_rows(sites_of(Stack())) == 0 == float32_rows([])


@pytest.mark.parametrize(("faster_upto", "rows"), [(0, 0), (1, 1), (8, 8), (100, ROWS[-1])])
def test_float32_is_used_up_to_the_last_number_of_rows_at_which_it_is_faster(
    monkeypatch, faster_upto, rows
):
    def seconds(count, outputs, inputs, dtype, stacked):
        assert (outputs, inputs) in ((12, 20), (20, 12)) and dtype == torch.bfloat16
        return 0.5 if stacked == torch.float32 and count <= faster_upto else 1.0

    monkeypatch.setattr(stack_dtype, "_seconds", seconds)
    assert float32_rows(sites_of(Stack().bfloat16())) == rows


def test_it_can_be_measured():
    assert float32_rows(sites_of(Stack().bfloat16())) in (0, *ROWS)
