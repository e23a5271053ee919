"""A difference that is planted between two sides is shown, and a rate beyond the grid is found."""

import random
from pathlib import Path

import pytest

from lorica.compare.verdict import verdict_of
from tests.compare.study_files import fix_costs, run, write_lines, write_study

COLORS = ("red", "blue", "green", "black", "white", "brown", "pink", "grey")
THINGS = ("cat", "dog", "bird", "fish", "tree", "house", "river", "stone", "cloud", "field")


@pytest.mark.slow
def test_a_planted_better_side_is_found(
    small_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """One side may change the first block only, with rank 1; the other one all, with rank 8. The
    rate that is given is too low, so that the search must go beyond its grid."""
    fix_costs(monkeypatch)
    path = write_study(
        tmp_path,
        small_base,
        rates={"factors": [0.1, 1.0], "rungs": 2},
        seeds=[0, 1, 2],
        train={"max_steps": 30, "micro_batch_size": 8, "learning_rate": 4e-4},
        sides={
            "planted": {"method": {"name": "lora", "r": 8}},
            "weak": {"method": {"name": "lora", "r": 1}, "layers_to_transform": [0]},
        },
        reference="weak",
    )
    draw = random.Random(5)
    rows = []
    while len(rows) < 260:
        a, b, n = draw.choice(COLORS), draw.choice(THINGS), draw.randrange(100)
        row = {"prompt": f"{n} {a} {b} =", "completion": f" {b} {a} {a}"}
        rows += [row] if row not in rows else []
    for name, start, stop in (("train", 0, 180), ("valid", 180, 210), ("test", 210, 260)):
        write_lines(tmp_path / f"{name}.jsonl", rows[start:stop])
    result = run(path, tmp_path / "out")
    verdict = verdict_of(result)
    planted = next(side for side in result.sides if side.name == "planted")
    assert all(final.learning_rate > 4e-4 for final in planted.finals)
    assert verdict.ranking[0] == "planted"
    (comparison,) = verdict.comparisons["loss"]
    assert comparison.verdict == "better"
