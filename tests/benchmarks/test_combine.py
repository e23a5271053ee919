"""Sums by `lorica combine` are those written out by hand, and PEFT's where PEFT is right."""

import pytest

from benchmarks import combine


@pytest.mark.slow
def test_sums_beside_peft():
    table = combine.measure()
    for sums in table.values():
        assert all(row["lorica"] < 2e-6 for row in sums.values())
    for kind in ("LoRA", "ranks by pattern", "scales by pattern"):
        assert all(row["PEFT cat"] < 1e-6 for row in table[kind].values())
    assert table["rsLoRA"]["1.0 a"]["PEFT cat"] > 0.1, "PEFT has mended it: say so in the docs"
