"""The report of a study: complete, small, the same when made again, and safe with hostile text."""

import base64
import hashlib
import re
from dataclasses import replace
from html import escape

import numpy as np
import pytest

from lorica.compare.report import study_page
from lorica.compare.report.page import MAX_BYTES
from lorica.compare.verdict import verdict_of
from tests.compare.example_study import example_study
from tests.compare.report_markup import Markup

HOSTILE = (
    "</script><script>alert(1)</script><b onload='x'>\"&lt;\x00\x1b[2J\u202egnp.exe\ud800 שלום"
)


def page_of(result):
    return study_page(result, verdict_of(result))


@pytest.fixture(scope="module")
def page() -> str:
    return page_of(example_study())


@pytest.fixture(scope="module")
def markup(page) -> Markup:
    return Markup(page)


def test_36_runs_are_far_below_1_mib_and_the_page_is_well_formed(page, markup):
    assert len(page.encode()) < MAX_BYTES / 4
    assert markup.open == []
    ids = [attributes["id"] for _, attributes in markup.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_made_again_it_is_the_same(page):
    assert page_of(example_study()) == page


def test_it_loads_nothing_and_its_policy_allows_its_own_script_and_style_alone(page, markup):
    policy = next(m["content"] for m in markup.named("meta") if "http-equiv" in m)
    for tag in ("script", "style"):
        digest = hashlib.sha256(markup.inside[tag].encode()).digest()
        assert f"{tag}-src 'sha256-{base64.b64encode(digest).decode()}'" in policy
    assert "default-src 'none'" in policy
    for tag, attributes in markup.elements:
        assert "src" not in attributes and "style" not in attributes, tag
        assert attributes.get("href", "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"https?:|url\(|@import|innerHTML|eval\(|fetch\(", page)


def test_the_table_has_every_side_the_best_first_with_the_numbers_of_the_verdict(markup):
    result = example_study()
    verdict = verdict_of(result)
    rows = [row for row in markup.texts if len(row) == 11]
    head, sides = rows[0], rows[1:-1]
    assert [row[0] for row in sides] == list(verdict.ranking)
    titles = [
        "Side",
        "Rate",
        "loss",
        "Difference",
        "Verdict",
        "Forgotten",
        "Time",
        "Speed",
        "Memory",
        "File",
        "Trained",
    ]
    assert all(cell.startswith(title) for cell, title in zip(head, titles, strict=True))
    by_side = {row[0]: row for row in sides}
    comparison = next(c for c in verdict.comparisons["loss"] if c.side == "llama_adapter")
    row = by_side["llama_adapter"]
    figure = verdict.sides["llama_adapter"]["loss"].figure
    assert row[2].startswith(f"{figure.value:.3f}")
    assert f"rows [{figure.over_rows.low:.3f}, {figure.over_rows.high:.3f}]" in row[2]
    assert f"seeds [{figure.over_seeds.low:.3f}, {figure.over_seeds.high:.3f}]" in row[2]
    assert f"+{comparison.difference.value:.3f}" in row[3]
    assert row[4].startswith("worse")
    assert row[10] == "8,500"
    assert by_side["lora r=8"][4] == "reference"
    assert rows[-1][0] == "base alone"


def test_numbers_of_a_column_have_the_same_digits(markup):
    rows = [row for row in markup.texts if len(row) == 11][1:-1]
    for column in (1, 2, 6, 7, 8, 9):
        decimals = {len(re.match(r"[^r]*?[\d,]+(\.\d*)?", row[column])[1] or ".") for row in rows}
        assert len(decimals) == 1, [row[column] for row in rows]


def test_every_section_is_there(page, markup):
    sections = {attributes.get("id") for attributes in markup.named("section")}
    wanted = "verdict table forgetting costs curves rates ranks samples failures recipes machine"
    assert set(wanted.split()) <= sections
    for sentence in verdict_of(example_study()).sentences:
        assert escape(sentence, quote=True).replace("&quot;", "&#34;") in page
    assert "qlora r=16, seed 2: the budget of 30 min was used up" in page
    assert "diverged in the search, at learning rate 0.021" in page
    assert page.count('class="code"') == 13  # 12 recipes and the study


def test_rates_have_a_marker_for_each_trial_and_a_ring_at_the_chosen_one(page):
    section = page.partition('id="rates"')[2].partition("</section>")[0]
    first = sum(
        t.steps == 50 and t.loss is not None for s in example_study().sides for t in s.trials
    )
    assert section.count('class="on s') == first + 6  # beside the name of each of 6 series
    assert section.count('class="ring"') == 12
    assert section.count('class="cross') == 2  # dora's three ranks at one rate, and full


def test_sides_that_were_not_run_have_not_failed():
    study = example_study()
    sides = [
        replace(side, finals=[], cost=None) if n < 2 else side for n, side in enumerate(study.sides)
    ]
    rows = {
        row[0]: row for row in Markup(page_of(replace(study, sides=sides))).texts if len(row) == 11
    }
    assert rows["lora r=4"][4] == "not run" and rows["lora r=4"][2] == "–"


def test_every_chart_has_a_text_alternative(markup):
    for svg in markup.named("svg"):
        assert svg.get("aria-hidden") == "true" or (svg["role"] == "img" and svg["aria-label"])


def test_hostile_text_stays_text():
    study = example_study()
    sides = []
    for n, side in enumerate(study.sides):
        final = replace(
            side.finals[0],
            samples=[(HOSTILE, HOSTILE + "a", HOSTILE + str(n))],
            notices=[HOSTILE],
            error=HOSTILE if n == 3 else None,
            ranks={f"{HOSTILE}.{n}.{HOSTILE}": 3},
        )
        finals = [final, *side.finals[1:]]
        name = side.name if n else HOSTILE
        sides.append(replace(side, name=name, recipe=HOSTILE, finals=finals))
    result = replace(
        study,
        name=HOSTILE,
        reference=HOSTILE,
        sides=sides,
        study={"base": HOSTILE, "data": {HOSTILE: HOSTILE, "path": HOSTILE}},
        versions={HOSTILE: HOSTILE},
        machine=HOSTILE,
        notices=[HOSTILE + "!"],
        missing=[HOSTILE],
    )
    page = page_of(result)
    markup = Markup(page)
    assert len(markup.named("script")) == 1 and "b" not in {tag for tag, _ in markup.elements}
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", page)
    assert "\\u{202e}gnp.exe" in page and "\\u{0}" in page and "שלום" in page
    assert markup.open == []
    page.encode()


def test_a_study_in_which_all_went_wrong_has_a_page():
    study = example_study()
    failed = [
        replace(
            side,
            trials=[replace(trial, loss=None) for trial in side.trials],
            finals=[replace(f, scores={}, samples=(), error="it diverged") for f in side.finals],
            cost=None,
        )
        for side in study.sides
    ]
    page = page_of(replace(study, sides=failed, base={}))
    assert page.count(">failed<") == 12
    assert "it diverged" in page
    empty = page_of(replace(study, sides=[], base={}, versions={}, study={}))
    assert "No run failed." in empty and 'id="costs"' not in empty


def test_one_seed_has_values_and_no_intervals():
    study = example_study()
    sides = [replace(side, finals=side.finals[:1], trials=()) for side in study.sides]
    page = page_of(replace(study, sides=sides))
    assert "nan" not in page.partition("<script>")[0]
    assert 'id="rates"' not in page


@pytest.mark.slow
def test_long_runs_and_long_texts_still_fit():
    study = example_study()
    draw = np.random.default_rng(1)
    curve = [(step, float(value)) for step, value in enumerate(draw.random(20_000))]
    words = " ".join(f"word{n}" for n in range(2000))
    sides = [
        replace(
            side,
            finals=[
                replace(
                    final,
                    curve=curve,
                    samples=[(words + str(i), words, words + str(n)) for i in range(12)],
                )
                for final in side.finals
            ],
        )
        for n, side in enumerate(study.sides)
    ]
    page = page_of(replace(study, sides=sides))
    assert len(page.encode()) <= MAX_BYTES
    assert re.search(r"Each point is the mean over \d{3} steps", page)
    assert re.search(r"… \([\d,]+ more characters\)", page)
