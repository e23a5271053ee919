"""Parts of the report: numbers, axes, labels, thinning, differences of texts."""

import math
from itertools import pairwise

import pytest

from lorica.compare.report.curves import spread_over_seeds, windows
from lorica.compare.report.drawing import Drawing
from lorica.compare.report.heat import heat_map
from lorica.compare.report.labels import Box, place_labels
from lorica.compare.report.numbers import (
    BYTES,
    SECONDS,
    compact,
    decimals_of,
    unit_of,
    written,
    written_rates,
)
from lorica.compare.report.panels import cut_above, spread_out
from lorica.compare.report.samples import compare, sample
from lorica.compare.report.scale import scale
from lorica.compare.report.text import shortened, visible, visible_name


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0003, "0.0003"), (2.1e-5, "2.1e-5"), (20_000, "20,000"), (0, "0"), (-0.5, "−0.5")],
)
def test_numbers_of_axes_are_short(value, text):
    assert compact(value) == text


def test_numbers_of_a_column_share_unit_and_digits():
    assert written_rates([0.0021, 0.004, None]) == ["0.0021", "0.0040", "–"]
    assert written_rates([2.1e-7, 4e-6]) == ["2.1e-7", "4.0e-6"]
    assert unit_of([0.2, 0.3, 4.0], SECONDS).name == "ms"
    assert unit_of([2**21, 2**22, 2**31], BYTES).name == "MiB"
    assert decimals_of([0.0345, 0.9]) == 3
    assert decimals_of([1e-9, 120.0]) == 0
    assert written(-0.0001, 2, signed=True) == "0.00"
    assert written(float("nan"), 2) == written(None, 2) == "–"


@pytest.mark.parametrize(
    ("low", "high"), [(0.3, 5.7), (0.354, 0.5), (1e-5, 3.0), (-4, 12), (7, 7), (1e9, 3e9), (0, 0)]
)
def test_an_axis_has_round_numbers_that_do_not_touch(low, high):
    axis = scale([low, high], 40, 320)
    places = [axis(value) for value, _ in axis.ticks]
    assert 40 <= axis(low) <= axis(high) <= 320
    assert all(40 <= place <= 320 for place in places)
    labels = [label for _, label in axis.ticks]
    assert len(set(labels)) == len(labels) >= (2 if high > low else 1)
    for (left, a), (right, b) in pairwise(zip(places, labels, strict=True)):
        assert right - left > (len(a) + len(b)) / 2 * 6


def test_labels_cover_neither_markers_nor_one_another():
    points = [((60.0 + 7 * n, 60.0 + 3 * (n % 3)), str(n + 10), 0) for n in range(8)]
    markers = [Box(x - 6, y - 6, x + 6, y + 6) for (x, y), _, _ in points]
    drawing = Drawing(200, 120)
    place_labels(drawing, points, markers, Box(0, 0, 200, 120))
    boxes = []
    for part in drawing.parts:
        if part.startswith("<text"):
            x, y = (float(part.split(f'{key}="')[1].split('"')[0]) for key in ("x", "y"))
            boxes.append(Box(x - 6.5, y - 9, x + 6.5, y + 1))
    assert len(boxes) == 8
    for n, box in enumerate(boxes):
        assert all(box.overlap(other) < 12 for other in [*markers, *boxes[n + 1 :]])


def test_thinned_curves_keep_means_and_extremes():
    curves = [[(s, float(s)) for s in range(1, 101)], [(s, s + 10.0) for s in range(1, 61)]]
    parts = windows(curves, 10)
    points = spread_over_seeds(curves, parts)
    assert len(parts) == 10 and parts[0] == (1, 10)
    assert points[0].y == 10.5 and (points[0].low, points[0].high) == (5.5, 15.5)
    assert points[-1].y == points[-1].low == points[-1].high == 95.5  # the second one ended early
    assert windows([[]], 10) == []
    assert (
        spread_over_seeds([[(1, math.inf), (2, 3.0)]], windows([[(1, 0.0), (2, 0.0)]], 1))[0].y == 3
    )


def test_a_line_enters_a_cut_axis_where_it_crosses_it():
    assert cut_above([(0.0, -100.0), (10.0, 100.0), (20.0, 110.0)], 0.0) == [
        (5.0, 0.0),
        (10.0, 100.0),
        (20.0, 110.0),
    ]
    assert cut_above([(0.0, -5.0), (1.0, -1.0)], 0.0) == []
    assert cut_above([(0.0, 5.0)], 0.0) == [(0.0, 5.0)]


def test_labels_at_the_ends_of_lines_stand_apart():
    assert spread_out([10, 50, 90], 13, 0, 100) == [10, 50, 90]
    close = spread_out([50, 51, 52], 13, 0, 100)
    assert [b - a for a, b in pairwise(close)] == [13, 13]
    assert spread_out([98, 99, 100], 13, 0, 100)[-1] <= 100


def test_differences_of_texts_are_marked_word_by_word():
    runs, differing, missing = compare("the pump is red", "the pump leaks, and is red")
    assert (differing, missing) == (0, 2)
    assert "".join(text for text, _ in runs) == "the pump is red"
    runs, differing, _ = compare("a green pump", "a red pump")
    assert [text for text, differs in runs if differs] == ["green"] and differing == 1
    runs, differing, _ = compare(" ".join(map(str, range(2000))), "0 1")
    assert differing == 1998 and "".join(text for text, _ in runs).endswith(" 1999")


def test_equal_answers_stand_together_those_of_the_reference_first():
    names = [(0, "a"), (0, "b"), (1, "c"), (1, "d")]
    answers = [*zip(names, ["no", "yes", "no", ""], strict=True)]
    result = sample("?", "yes ", answers, 100)
    assert [[name for _, name in answer.names] for answer in result.answers] == [
        ["b"],
        ["a", "c"],
        ["d"],
    ]
    assert [answer.is_reference for answer in result.answers] == [True, False, False]
    assert [answer.summary for answer in result.answers] == [
        "as the reference",
        "1 word differs",
        "empty",
    ]


def test_ranks_are_means_over_seeds_by_kind_and_block():
    runs = [{"model.layers.0.q_proj": 2, "model.layers.1.v_proj": 0}, {"model.layers.0.q_proj": 5}]
    heat = heat_map("x", runs)
    assert heat.blocks == ["0", "1"] and heat.total == 3.5
    (q, (q0, q1)), (v, (v0, v1)) = heat.rows
    assert (q, v) == ("q_proj", "v_proj") and q1 is None and v0 is None
    assert (q0.text, q0.level, v1.text, v1.level) == ("3.5", 8, "0.0", 0)


def test_hidden_characters_are_written_out_and_scripts_keep_their_joiners():
    assert visible("a\u202eb\x00\r\n\t\ud800") == "a\\u{202e}b\\u{0}\\u{d}\n\t\\u{d800}"
    assert visible("می\u200cخواهم 👩\u200d👩") == "می\u200cخواهم 👩\u200d👩"
    assert visible_name("a\nb") == "a\\nb"
    assert shortened("abcdef", 4) == "abcd… (2 more characters)"
