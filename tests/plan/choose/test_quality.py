"""What is wrong with the rows stands on top, the worst first, with numbers."""

from dataclasses import replace

import pytest

from lorica.plan.choose.quality import findings
from lorica.plan.choose.situation import Rows

GOOD = Rows("prompt", 2_000, 1_900, 100, 50_000, longest=80, max_length=512)


def test_good_rows_have_no_findings():
    assert findings(GOOD) == []


@pytest.mark.parametrize(
    ("changes", "level", "what"),
    [
        ({"duplicates": 100}, "warning", "100 of 2,000 rows (5.0 %) repeat an earlier row"),
        ({"duplicates": 3}, "note", "3 of 2,000 rows (0.1 %) repeat an earlier row"),
        ({"empty": 40}, "warning", "40 of 2,000 rows (2.0 %) have an empty answer"),
        ({"conflicting": (20, 60)}, "warning", "20 prompts have several different answers"),
        ({"overlong": 9, "longest": 900}, "error", "longer than the limit of 512 tokens"),
        ({"overlong": 90, "policy": "truncate"}, "warning", "their ends are cut off"),
        ({"overlong": 90, "policy": "drop"}, "warning", "they are left out"),
        ({"train": 40}, "warning", "40 training rows: too few"),
        (
            {"rows": 200, "train": 140, "validation": 60},
            "warning",
            "140 training rows of 200, after 60 were split off for validation: too few",
        ),
        ({"validation": 25}, "note", "uncertain by 20 points"),
        ({"notices": ("9 rows hold characters that the tokenizer cannot write",)}, "warning", "9"),
        ({"notices": ("2 rows are tokenised in pieces",)}, "note", "in pieces"),
        ({"conflicting": (400, 1_800)}, "note", "400 prompts have several different answers"),
        ({"validation": 0}, "warning", "no validation rows"),
        ({"problems": ("no row has an answer",)}, "error", "no row has an answer"),
        (
            {"kind": "label", "classes": {"spam": 1_950, "ham": 50}},
            "warning",
            "always answering spam is right in 98 %",
        ),
        (
            {"kind": "label", "classes": {"a": 9, "b": 9}, "conflicting": (30, 60)},
            "warning",
            "30 texts have several classes",
        ),
    ],
)
def test_each_finding(changes, level, what):
    (finding,) = findings(replace(GOOD, **changes))
    assert finding.level == level and what in finding.what and finding.fix


def test_the_worst_comes_first():
    rows = replace(GOOD, duplicates=3, empty=900, overlong=1)
    assert [finding.level for finding in findings(rows)] == ["error", "warning", "note"]


def test_a_file_of_text_is_not_a_few_rows():
    assert findings(replace(GOOD, kind="text", rows=1, train=30, validation=0)) == []
