"""What articles say, tested by the studies that ship: claims have their sides and verdicts."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.studies.checks import Alike, Better, Costs, Measured, SavesMoreMemory, Steady
from benchmarks.studies.claims import CLAIMS
from benchmarks.studies.page import outcomes_of, study_page, worst
from lorica.compare.sides import expand
from lorica.compare.study import read_study
from tests.compare.small_study import small_study

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs/studies"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    return Measured.of(small_study(tmp_path_factory.mktemp("study") / "small"))


@pytest.mark.parametrize("name", CLAIMS)
def test_the_sides_of_each_claim_are_in_the_study(name: str):
    study, settings = read_study(ROOT / f"studies/{name}.yaml")
    sides = {side.name for side in expand(study, settings)}
    for claim in CLAIMS[name]:
        for test in claim.tests:
            values = [getattr(test, field, "") for field in ("side", "other", "first", "second")]
            names = [n for v in values for n in ([v] if isinstance(v, str) else v) if n]
            assert set(names) <= sides, claim.says


@pytest.mark.parametrize(
    ("test", "verdict"),
    [
        (Better("lora r=8", "lora r=2"), "holds"),
        (Better("lora r=2", "lora r=8"), "does not hold"),
        (Better("ia3", "lora r=2"), "not shown"),
        (Better("lora r=8", "lora r=2", "exact_match"), "not shown"),
        (Alike("lora r=8", "lora r=2"), "does not hold"),
        (Alike("lora r=8", "lora r=2", 0.2), "holds"),
        (Alike("lora r=8", "lora r=2", 0.1), "not shown"),
        (Costs("time", "lora r=8", "lora r=2", 1.02), "holds"),
        (Costs("memory", "lora r=8", "lora r=2", 1.5), "does not hold"),
        (Costs("file", "lora r=2", "lora r=8", 0, 0.25), "holds"),
        (SavesMoreMemory(("lora r=2", "lora r=2"), ("lora r=8", "lora r=2")), "holds"),
        (SavesMoreMemory(("lora r=8", "lora r=2"), ("lora r=2", "lora r=2")), "does not hold"),
        (Steady(), "holds"),
        (Steady(1e-6), "does not hold"),
    ],
)
def test_a_verdict_follows_from_the_numbers(measured: Measured, test, verdict: str):
    assert test.outcome(measured).verdict == verdict


def test_a_claim_gets_the_worst_verdict_of_its_tests(measured: Measured):
    tests = (Better("lora r=8", "lora r=2"), Better("ia3", "lora r=2"))
    assert worst([test.outcome(measured) for test in tests]) == "not shown"


@pytest.mark.parametrize("name", CLAIMS)
def test_the_pages_have_every_claim(name: str):
    """A claim that is new or has other words: write the pages again."""
    index, page = (PAGES / "README.md").read_text(), (PAGES / f"{name}.md").read_text()
    for claim in CLAIMS[name]:
        assert claim.says in index and claim.says in page


def test_a_page_has_the_sides_and_the_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "small"
    result = small_study(folder)
    (folder / "results.json").touch()
    claim = replace(CLAIMS["ranks"][0], tests=(Better("lora r=8", "lora r=2"),))
    monkeypatch.setitem(CLAIMS, "small", (claim,))
    assert [worst(outcomes) for outcomes in outcomes_of(result).values()] == ["holds"]
    page = study_page(folder, result)
    assert "**holds**" in page and "| ia3 |" in page and "seed 2 failed" in page
