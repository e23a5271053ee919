"""The settings of a study: every mistake with its line, before anything is trained."""

from pathlib import Path
from typing import Any

import pytest

from lorica.compare.sides import expand
from lorica.compare.study import check_unchanged, plain_study, read_study, resolved
from lorica.errors import ConfigError

STUDY = """\
base: bundled
data:
  path: train.jsonl
  validation: valid.jsonl
test: test.jsonl
measures: [loss, exact_match]
goal: loss
reference: lora r=4
seeds: [0, 1]
rates: {factors: [0.3, 1, 3], rungs: 2}
train:
  max_steps: 20
  micro_batch_size: 4
sides:
  lora:
    method: {name: lora}
    ranks: [4, 8]
  qlora: {method: {name: lora, r: 8}, quantisation: nf4}
  full: {method: full}
"""


def write(folder: Path, *changes: tuple[str, str]) -> Path:
    text = STUDY
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / "study.yaml"
    path.write_text(text)
    return path


def sides_of(path: Path) -> list[Any]:
    return expand(*read_study(path))


def test_a_side_for_each_rank(tmp_path: Path):
    sides = sides_of(write(tmp_path))
    assert [(side.name, side.rank) for side in sides] == [
        ("lora r=4", 4),
        ("lora r=8", 8),
        ("qlora", 8),
        ("full", None),
    ]
    assert [side.config.method.get("r") for side in sides] == [4, 8, 8, None]
    assert [side.config.quantisation for side in sides] == [None, None, "nf4", None]
    assert all(side.config.max_steps == 20 for side in sides)


def test_rates_are_multiples_of_the_methods_own(tmp_path: Path):
    lora, *_, full = sides_of(write(tmp_path))
    assert lora.rates([0.3, 1, 3]) == [6.3e-4, 2.1e-3, 6.3e-3]
    assert full.rates([1]) == [full.centre] and full.centre < lora.centre
    given = ("  full: {method: full}", "  full: {method: full, learning_rate: 0.5}")
    assert sides_of(write(tmp_path, given))[-1].rates([1, 2]) == [0.5, 1.0]


def test_a_recipe_says_what_is_given_and_no_more(tmp_path: Path):
    settings = sides_of(write(tmp_path))[1].settings()
    assert settings == {
        "base": "bundled",
        "data": {"path": "train.jsonl", "validation": "valid.jsonl"},
        "method": {"name": "lora"},  # r=8 is its default
        "max_steps": 20,
        "micro_batch_size": 4,
    }


def test_a_side_replaces_steps_by_epochs(tmp_path: Path):
    change = ("  full: {method: full}", "  full: {method: full, epochs: 2}")
    full = sides_of(write(tmp_path, change))[-1].config
    assert (full.max_steps, full.epochs) == (None, 2)


def test_a_study_is_read_back_as_it_was(tmp_path: Path):
    study, _ = read_study(write(tmp_path))
    path = tmp_path / "resolved.yaml"
    path.write_text(resolved(study))
    assert read_study(path)[0] == study
    check_unchanged(plain_study(study), plain_study(read_study(path)[0]), tmp_path)


def test_another_study_is_not_resumed(tmp_path: Path):
    then = plain_study(read_study(write(tmp_path))[0])
    now, _ = read_study(write(tmp_path, ("seeds: [0, 1]", "seeds: [0, 2]")))
    with pytest.raises(ConfigError, match=r"\[0, 1\] -> \[0, 2\]"):
        check_unchanged(then, plain_study(now), tmp_path)


LORA, FULL = "    ranks: [4, 8]", "  full: {method: full}"
BROKEN = {
    "unknown method": (FULL, "  full: {method: fall}", 19, "no method 'fall'; closest full"),
    "rank 0": (LORA, "    ranks: [4, 0]", 17, r"\[4, 0\]; it must be a list of whole numbers"),
    "one rank twice": (LORA, "    ranks: [4, 4]", 17, "one rank twice"),
    "ranks of a method without r": (FULL, "  full: {method: ia3, ranks: [4]}", 19, "has no r"),
    "rank for ranks": (
        LORA,
        "    rank: [4]",
        17,
        "rank is not a setting of a side; closest ranks",
    ),
    "a rank that is text": (LORA, '    ranks: ["4"]', 17, "whole numbers"),
    "one seed twice": ("seeds: [0, 1]", "seeds: [1, 1]", 9, "seeds has 1 twice"),
    "no seed": ("seeds: [0, 1]", "seeds: []", 9, "seeds is"),
    "the seed of the search": ("rungs: 2", "rungs: 2, seed: 1", 10, "rates.seed is 1"),
    "no factor": ("[0.3, 1, 3]", "[]", 10, "rates.factors"),
    "a factor of 0": ("[0.3, 1, 3]", "[0, 1]", 10, "rates.factors"),
    "no validation rows": ("validation: valid.jsonl", "validation: 0", 4, "data.validation is 0"),
    "unknown measure": ("exact_match]", "exact_mtch]", 6, "closest exact_match"),
    "a goal that is not measured": ("goal: loss", "goal: bleu", 7, "goal is 'bleu'"),
    "unknown reference": ("lora r=4", "lora r=5", 8, "reference is 'lora r=5', which is no side"),
    "no test rows": ("test: test.jsonl\n", "", None, "test was not given"),
    "unknown setting": ("goal: loss", "gaol: loss", 7, "gaol is not a setting; closest goal"),
    "a setting of all runs": ("  max_steps: 20", "  max_steps: -2", 12, "max_steps is -2"),
    "a setting of a side": ("quantisation: nf4", "quantisation: nf5", 18, "closest nf4"),
    "a setting that the study sets": (FULL, "  full: {method: full, seed: 3}", 19, "seed is set"),
    "a setting of a method": ("{name: lora, r: 8}", "{name: lora, rr: 8}", 18, "rr is not"),
    "equal sides": (FULL, "  full: {method: {name: lora, r: 8}}", 19, "have the same settings"),
    "one side name twice": (FULL, "  lora r=4: {method: full}", 19, "two sides have the name"),
    "no side": (STUDY[STUDY.index("sides:") :], "sides: {}", 14, "sides is"),
    "a side that is null": (
        FULL,
        "  full: null",
        19,
        "^[^\n]*sides.full is null; it must be a map",
    ),
    "a side that is a word": (FULL, "  full: full", 19, 'sides.full is "full"'),
    "a rank beyond every layer": (LORA, "    ranks: [4, 100000]", 17, "r of at most 4096"),
    "too many ranks": (LORA, f"    ranks: {[*range(1, 102)]}", 17, "has 101 ranks"),
    "too many seeds": ("[0, 1]", str([*range(10_000)]), 9, "seeds has 10,000 seeds"),
    "a name of a method without it": (FULL, "  ia3: {}", 19, "would be lora under the name of ia3"),
    "an empty name": (FULL, '  "": {method: full}', 19, "the name ''"),
    "a blank name": (FULL, '  " ": {method: full}', 19, "the name ' '"),
    "a name of two lines": (FULL, '  "a\\nb": {method: full}', 19, r"the name 'a\\nb'"),
    "a name that clears a line": (FULL, '  "a\\e[2K": {method: full}', 19, r"'a\\x1b\[2K'"),
    "a name that runs backwards": (FULL, '  "\\u202eab": {method: full}', 19, r"'\\u202eab'"),
    "a long name": (FULL, f"  {'a' * 121}: {{method: full}}", 19, "a name of 121 characters"),
    "a conflict": (FULL, "  full: {method: full, quantisation: nf4}", 19, "trains float weights"),
    "a key twice": ("goal: loss", "goal: loss\ngoal: loss", 8, "set twice"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_mistake_is_reported_with_its_line(case: str, tmp_path: Path):
    old, new, line, message = BROKEN[case]
    path = write(tmp_path, (old, new))
    place = f"{path}:{line}: " if line else str(path)
    with pytest.raises(ConfigError, match=message) as raised:
        sides_of(path)
    assert place in str(raised.value)


def test_a_name_beside_others_is_kept(tmp_path: Path):
    """Letters of any script, and the method's own name, are names."""
    names = (FULL, "  volle Größe: {method: full}\n  ia3: {method: ia3}\n  العربية: {method: vera}")
    assert [side.name for side in sides_of(write(tmp_path, names))][-3:] == [
        "volle Größe",
        "ia3",
        "العربية",
    ]


def test_all_mistakes_are_reported_at_once(tmp_path: Path):
    path = write(tmp_path, (LORA, "    ranks: [0]"), (FULL, "  full: {method: fall}"))
    with pytest.raises(ConfigError, match=r"(?s)2 settings are wrong.*:17: .*:19: "):
        sides_of(path)
