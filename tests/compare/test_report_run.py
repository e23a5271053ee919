"""The report of one run, from the files in its folder: whole, unfinished and damaged ones."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lorica.cli import run
from lorica.compare.report import run_page
from tests.compare.report_markup import Markup

RESULTS: dict[str, Any] = {
    "method": "adalora",
    "steps": 200,
    "train_loss": 0.31,
    "held_out_loss": {"before": 5.6816, "after": 0.4159},
    "seconds": 52.4,
    "peak_memory_bytes": 600 * 2**20,
    "parameters": {"trained": 224_256, "total": 4_951_296},
    "ranks": {f"model.layers.{n}.self_attn.{k}_proj": n for n in range(3) for k in "qv"},
    "predicted": {
        "memory_bytes": 630 * 2**20,
        "seconds": {"low": 40.0, "expected": 50.0, "high": 60.0},
        "adapter_bytes": 900_000,
    },
    "lines": ["shared prefixes are computed once"],
    "evaluation": {
        "data": "rows/test.jsonl",
        "rows": 60,
        "measures": {
            "loss": {
                "base": {"value": 5.65, "low": 5.595, "high": 5.704},
                "adapter": {"value": 0.2271, "low": 0.211, "high": 0.245},
                "difference": {"value": -5.4229, "low": -5.469, "high": -5.376},
                "verdict": "better",
            },
            "exact_match": {
                "base": {"value": 0.0, "low": 0.0, "high": 0.06},
                "adapter": {"value": 0.5, "low": 0.37, "high": 0.62},
                "difference": {"value": 0.5, "low": 0.36, "high": 0.62},
                "verdict": "better",
            },
        },
        "examples": [
            {
                "prompt": "A pump <leaks>.",
                "wanted": "pump leak",
                "base": "no",
                "adapter": "pump leak",
            }
        ],
        "lines": [],
    },
}


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    settings = "base: bundled\ndata:\n  path: rows.jsonl\nmethod:\n  name: adalora\n  r: 4\n"
    (folder / "config.yaml").write_text(settings)
    events = [{"event": "eval", "step": 0, "loss": 5.6816}]
    events += [{"event": "step", "step": n, "loss": 5 / n} for n in range(1, 201)]
    events += [{"event": "line", "text": "logged"}, {"event": "eval", "step": 200, "loss": 0.4159}]
    (folder / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    (folder / "results.json").write_text(json.dumps(RESULTS))
    return folder


def test_a_finished_run_has_every_section(folder):
    page = run_page(folder)
    rows = {row[0]: row[1:] for row in reversed(Markup(page).texts) if row}
    assert "In 200 steps the loss on held-out rows fell from 5.682 to 0.4159" in page
    assert "on 60 rows of test.jsonl: better in loss, exact match." in page
    assert "It took 52 s, used 600 MiB at its peak and trained 224,256 of 4,951,296" in page
    assert rows["loss"] == [
        "5.650 [5.595, 5.704]",
        "0.227 [0.211, 0.245]",
        "−5.423 [−5.469, −5.376]",
        "better",
    ]
    assert rows["exact match, %"][1] == "50.0 [37.0, 62.0]"
    assert rows["peak memory, MiB"] == ["630", "600", "+5.0 %"]
    assert rows["time, s"] == ["50.0 [40.0, 60.0]", "52.4", "−4.6 %"]
    assert rows["q_proj"] == ["0", "1", "2"]
    assert "Training: mean over 3 steps" in page
    assert "A pump &lt;leaks&gt;." in page
    assert "shared prefixes are computed once" in page
    assert "method:\n  name: adalora\n  r: 4" in page
    assert run_page(folder) == page


def test_a_run_that_is_not_finished_says_how_to_go_on(folder):
    (folder / "results.json").unlink()
    page = run_page(folder)
    assert "The run is not finished: it is at step 200." in page
    assert f"lorica train --resume {folder}" in page and ">logged<" in page
    (folder / "events.jsonl").unlink()
    assert "it is at step 0." in run_page(folder)


@pytest.mark.parametrize("wrong", [None, "text", [], {"value": "x"}, 1e999, -1, True])
def test_wrong_values_in_its_files_leave_a_page(folder, wrong):
    for key in RESULTS:
        (folder / "results.json").write_text(json.dumps(RESULTS | {key: wrong}))
        Markup(run_page(folder))
    for key, evaluation in RESULTS["evaluation"].items():
        del evaluation
        damaged = RESULTS["evaluation"] | {key: wrong}
        (folder / "results.json").write_text(json.dumps(RESULTS | {"evaluation": damaged}))
        Markup(run_page(folder))


def test_the_command_writes_beside_the_run_and_replaces_reports_alone(folder, capsys):
    assert run(["report", str(folder)]) == 0
    assert re.search(r"report\.html: \d+ KiB; open it in a browser", capsys.readouterr().out)
    assert run(["report", str(folder)]) == 0
    other = folder.parent / "other.html"
    other.write_text("mine")
    assert run(["report", str(folder), "--output", str(other)]) == 2
    assert other.read_text() == "mine"
    assert "other.html exists, and is not a report." in capsys.readouterr().err


def test_the_command_names_what_it_can_read(tmp_path, capsys):
    assert run(["report", str(tmp_path / "none")]) == 6
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "a.txt").write_text("")
    assert run(["report", str(tmp_path)]) == 6
    message = capsys.readouterr().err
    assert "is neither a run nor a study" in message and "a.txt" in message


def test_the_command_writes_the_report_of_a_study(tmp_path, capsys):
    from tests.compare.small_study import small_study

    result = small_study(tmp_path / "study")
    assert run(["report", str(tmp_path / "study")]) == 0
    page = (tmp_path / "study" / "report.html").read_text(encoding="utf-8")
    assert all(side.name in page for side in result.sides)
    assert "failed" in page
