"""lorica choose --try: what the results of a study make of a choice."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from lorica.cli.durations import seconds_of
from lorica.cli.tried import (
    _announced,
    _hold_out,
    _steps,
    _what_was_tried,
    decide,
    ranks_to_try,
    tried_choice,
    try_choice,
    with_tried,
)
from lorica.compare.results import Final, MeasureScores, SideResult, StudyResult, Trial
from lorica.errors import ConfigError, DataError
from lorica.plan.choose.choice import choose
from lorica.plan.choose.situation import Base, Rows, Situation
from lorica.recipe.method_settings import method_from_source
from lorica.training.config import read

BASE = Base("base", 64, 10**6, [(64, 64)] * 100)
CHOICE = choose(Situation(Rows("prompt", 2000, 1900, 100, 100_000), BASE))
R = CHOICE.settings["method"]["r"]
RATE = CHOICE.settings["learning_rate"]


def side(rank, losses, trials=((RATE, 40, 2.0), (RATE * 3, 40, 1.8), (RATE * 3, 20, 1.0))):
    """losses: of the test rows; None: no final run."""
    finals = []
    if losses is not None:
        scores = MeasureScores(sum(losses) / len(losses), "lower", losses, [1.0] * len(losses))
        finals = [Final(0, RATE * 3, {"loss": scores})]
    return SideResult(f"lora r={rank}", "lora", rank, "", [Trial(*t) for t in trials], finals, None)


def decided(*sides):
    return decide(StudyResult("", {}, "loss", "", sides, {}, {}, ""), CHOICE, 40)


ROWS = [2.0 + (i % 7) / 10 for i in range(100)]


def test_a_rank_that_is_clearly_better_is_taken():
    better = [loss - 0.1 - (i % 3) / 100 for i, loss in enumerate(ROWS)]
    tried = decided(side(R // 2, ROWS), side(R, ROWS), side(2 * R, better))
    assert tried.r == 2 * R and "better beyond the uncertainty" in tried.reasons[0].why
    settings = with_tried(CHOICE.settings, tried)
    assert settings["method"]["r"] == 2 * R and settings["method"]["alpha"] == 4 * R


def test_a_rank_that_may_be_better_is_not_taken():
    noise = [loss + (0.5 if i % 2 else -0.52) for i, loss in enumerate(ROWS)]
    tried = decided(side(R, ROWS), side(2 * R, noise))
    assert tried.r == R and "cannot tell them apart" in tried.reasons[0].why


def test_the_rate_is_the_best_of_those_that_went_furthest():
    tried = decided(side(R, ROWS))
    assert tried.rate == RATE * 3 and len(tried.reasons) == 1


def test_a_study_that_ended_early_changes_what_it_knows():
    tried = decided(side(R // 2, None), side(R, None))
    assert (tried.r, tried.rate) == (R, RATE * 3)
    assert "the time ended before the ranks were compared" in tried.reasons[0].why


def test_without_a_trial_the_default_stays():
    tried = decided(side(R, None, trials=((RATE, 20, None),)))
    assert tried.rate == RATE and "the default stays" in tried.reasons[0].why


def study(*sides):
    return StudyResult("", {}, "loss", "", sides, {}, {}, "")


def test_it_says_what_was_tried():
    text = _what_was_tried(study(side(R // 2, ROWS), side(R, ROWS), side(2 * R, None, ())), 90)
    assert text.startswith(f"Tried: r={R // 2} and r={R}, each at up to 3 rates")
    assert "one seed" in text and "small differences cannot be told" in text
    text = _what_was_tried(study(side(R, None, ((RATE, 20, None),)), side(2 * R, None, ())), 90)
    assert text.startswith("Tried: nothing.") and "about 90 s are needed" in text


def test_it_says_before_how_much_time_is_needed(monkeypatch):
    cost = SimpleNamespace(step=0.3, start=6.0)
    monkeypatch.setattr("lorica.plan.measure.measure", lambda config: cost)
    config = read(None, {"base": "bundled", "data": "a.jsonl"}, check_method=method_from_source)
    for sides in (1, 3):
        steps, needed = _steps(CHOICE, config, 1900, 40, sides)
        assert steps == 20 and needed == pytest.approx(6 + sides * 4 * 20 * 0.3 / 0.6)
    text = _announced([4, 8, 16], needed, 40)
    assert "at r=4, r=8 and r=16 and 3 rates" in text
    assert "they need about 2 min here, and have 40 s" in text
    assert "need" not in _announced([], 30, 40)


def test_a_try_that_is_far_too_short_is_not_begun(monkeypatch, tmp_path):
    """Nothing is trained, and all of the choice stays."""
    rows = [{"prompt": f"{i} and", "completion": " on"} for i in range(120)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = str(tmp_path / "rows.jsonl")
    config = read(None, {"base": "bundled", "data": data}, check_method=method_from_source)
    monkeypatch.setattr("lorica.plan.measure.measure", lambda _: SimpleNamespace(step=9.0, start=6))
    monkeypatch.setattr("lorica.compare.runner.run_study", None)
    tried = try_choice(CHOICE, config, [R], 120, 40)
    assert (tried.r, tried.rate, tried.reasons) == (R, RATE, ())
    assert tried.what.startswith("Tried: nothing. --try has 40 s, and about 20 min are needed")


def test_ranks_to_try():
    assert ranks_to_try(CHOICE, 256) == [R // 2, R, 2 * R]
    assert ranks_to_try(CHOICE, R) == [R // 2, R]
    low = replace(CHOICE, settings={**CHOICE.settings, "method": {"name": "lora", "r": 4}})
    assert ranks_to_try(low, 256) == [4, 8]
    full = replace(CHOICE, settings={**CHOICE.settings, "method": {"name": "full"}})
    assert ranks_to_try(full, 256) == []


def test_the_choice_keeps_its_other_reasons(monkeypatch):
    tried = replace(decided(side(R, ROWS)), what="Tried: r=8.")
    monkeypatch.setattr("lorica.cli.tried.try_choice", lambda *given: tried)
    gathered = SimpleNamespace(data={}, situation=Situation(Rows("prompt", 9, 9, 0, 9), BASE))
    config = read(None, {"base": "bundled", "data": "a.jsonl"}, check_method=method_from_source)
    choice = tried_choice(CHOICE, config, gathered, 60)
    assert next(r for r in choice.reasons if r.what == "alpha").value == 2 * R
    assert choice.settings["learning_rate"] == RATE * 3
    assert {r.what for r in choice.reasons} == {r.what for r in CHOICE.reasons}
    assert choice.tried == "Tried: r=8."
    assert "learning_rate" not in {doubt.what for doubt in choice.doubts}


def test_held_out_rows_are_not_trained_on(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion\n" + "".join(f"what is {i},a box {i}\n" for i in range(300)))
    config = read(None, {"base": "bundled", "data": str(path)}, check_method=method_from_source)
    train, test = (set(file.read_text().splitlines()) for file in _hold_out(config, tmp_path))
    assert (len(train), len(test)) == (270, 30) and not train & test


def test_text_is_cut_at_its_end(tmp_path):
    path = tmp_path / "story.txt"
    path.write_text("a ball. " * 1000)
    config = read(None, {"base": "bundled", "data": str(path)}, check_method=method_from_source)
    train, test = (file.read_text() for file in _hold_out(config, tmp_path))
    assert 8.5 < len(train) / len(test) < 9.1


def test_few_rows_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n' * 20)
    config = read(None, {"base": "bundled", "data": str(path)}, check_method=method_from_source)
    with pytest.raises(DataError, match="20 rows; --try holds some of them out"):
        _hold_out(config, tmp_path)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10min", 600), ("1.5 h", 5400)])
def test_durations(text, seconds):
    assert seconds_of(text, "--try") == seconds


@pytest.mark.parametrize("text", ["", "10", "0s", "soon", "-1min"])
def test_no_durations(text):
    with pytest.raises(ConfigError, match=r"--try is .*, which is no duration"):
        seconds_of(text, "--try")
