"""The studies that ship: short, valid, and they start."""

import subprocess
import sys
from pathlib import Path

import pytest

from lorica import cli
from lorica.compare.sides import expand
from lorica.compare.study import read_study

ROOT = Path(__file__).parents[2]
STUDIES = sorted((ROOT / "studies").glob("*.yaml"))
PARTS = {"train": 40, "valid": 6, "test": 6}


def test_there_are_five_studies():
    names = ["articles-table", "learn-forget", "practice", "ranks", "which-variant"]
    assert [path.stem for path in STUDIES] == names


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_is_short_and_says_what_it_asks_and_how_to_run_it(path: Path):
    text = path.read_text()
    assert text.startswith("# ") and len(text.splitlines()) < 40
    assert f"lorica compare studies/{path.name}" in text


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_its_sides_are_valid(path: Path):
    study, settings = read_study(path)
    sides = expand(study, settings)
    assert study.reference in {side.name for side in sides}


@pytest.mark.slow
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_it_starts(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    study, _ = read_study(path)
    kind, command = Path(study.data.path).parent.name, [sys.executable, "-m", "world.write"]
    for seed, (name, count) in enumerate(PARTS.items()):
        out = tmp_path / f"runs/{kind}/{name}.jsonl"
        out.parent.mkdir(parents=True, exist_ok=True)
        options = ["--rows", str(count), "--seed", str(seed), "--out", str(out)]
        task = kind.partition("-")[0]  # tickets-480 are tickets
        subprocess.run([*command, task, *options], check=True, cwd=ROOT)
    monkeypatch.chdir(tmp_path)
    assert cli.run(["compare", str(path), "--dry-run"]) == 0
    assert "40 training rows, 6 test rows" in capsys.readouterr().out
