"""results.jsonl that was edited, cut or emptied: named with file and line, before anything runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorica.compare import runner
from lorica.compare.assemble import study_result
from lorica.compare.records import RECORDS, Records
from lorica.compare.runner import prepare
from lorica.compare.study import STUDY, read_study
from lorica.errors import FileError
from tests.compare.small_study import small_study
from tests.compare.study_files import run

KINDS = ("start", "side", "base", "trial", "rate", "final", "cost")
Lines = list[Any]


def rewrite(folder: Path, change: Callable[[Lines], None]) -> None:
    """Change the records of a study, given as plain data; text is written as it is."""
    lines: Lines = [json.loads(line) for line in (folder / RECORDS).read_text().splitlines()]
    change(lines)
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / RECORDS).write_text("".join(f"{text}\n" for text in texts))


def index_of(lines: Lines, kind: str) -> int:
    return next(i for i, line in enumerate(lines) if line["kind"] == kind)


def refused(folder: Path) -> str:
    """The message with which the records of a folder are refused."""
    with pytest.raises(FileError) as raised:
        study_result(folder)
    assert raised.value.fix
    return raised.value.what


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_that_is_wrong_is_named_with_its_line(tmp_path: Path, kind: str):
    small_study(tmp_path)
    whole = (tmp_path / RECORDS).read_bytes()
    lines = [json.loads(line) for line in whole.splitlines()]
    index = index_of(lines, kind)
    for key in [key for key in lines[index] if key != "kind"]:
        for wrong in ({"a": [1]}, [[]], True):
            if type(wrong) is dict and key in ("settings", "scores"):
                wrong = "text"
            (tmp_path / RECORDS).write_bytes(whole)
            rewrite(tmp_path, lambda lines, k=key, w=wrong: lines[index].update({k: w}))
            assert f"{RECORDS}:{index + 1}: the record is damaged: {key}" in refused(tmp_path)


REQUIRED = {
    "start": ("settings", "digests", "base", "versions", "name", "machine", "notices"),
    "side": ("name", "method", "rank", "settings"),
    "base": ("scores",),
    "trial": ("side", "learning_rate", "steps", "loss"),
    "rate": ("side", "learning_rate"),
    "final": ("side", "seed", "learning_rate", "scores", "sizes"),
    "cost": ("side", "seconds_per_step", "tokens_per_second"),
}


@pytest.mark.parametrize("kind", REQUIRED)
def test_a_field_that_is_missing_or_unknown_is_refused(tmp_path: Path, kind: str):
    small_study(tmp_path)
    whole = (tmp_path / RECORDS).read_bytes()
    index = index_of([json.loads(line) for line in whole.splitlines()], kind)
    for change in (*(lambda line, k=key: line.pop(k) for key in REQUIRED[kind]), _add_unknown):
        (tmp_path / RECORDS).write_bytes(whole)
        rewrite(tmp_path, lambda lines, change=change: change(lines[index]))
        assert f"{RECORDS}:{index + 1}: " in refused(tmp_path)


def _add_unknown(line: dict[str, Any]) -> None:
    line["extra"] = 1


def _shorten(key: str) -> Callable[[Lines], None]:
    def change(lines: Lines) -> None:
        lines[index_of(lines, "final")]["scores"]["loss"][key].pop()

    return change


def _shorten_measure(lines: Lines) -> None:
    """One run of a side has a row less than the others, and nothing else says so."""
    lines[index_of(lines, "final") + 1]["scores"]["exact_match"]["rows"].pop()


def _set(kind: str, /, **values: Any) -> Callable[[Lines], None]:
    return lambda lines: lines[index_of(lines, kind)].update(values)


DAMAGE = {
    "a line that is no JSON": lambda lines: lines.insert(3, '{"kind": "fin'),
    "an empty line": lambda lines: lines.insert(3, ""),
    "a list": lambda lines: lines.insert(3, "[1]"),
    "the last line, ended": lambda lines: lines.append('{"kind": "fin'),
    "an unknown kind": _set("rate", kind="rat"),
    "no kind": lambda lines: lines[3].pop("kind"),
    "no start": lambda lines: lines.pop(0),
    "a side that is no side": _set("trial", side="loha"),
    "fewer rows": _shorten("rows"),
    "fewer weights": _shorten("weights"),
    "a run with fewer rows": _shorten_measure,
    "NaN": _set("trial", loss=float("nan")),
    "infinity": _set("rate", learning_rate=float("inf")),
    "a key that is there twice": lambda lines: lines.insert(3, '{"kind": "rate", "kind": "rate"}'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_with_its_line(tmp_path: Path, damage: str):
    small_study(tmp_path)
    rewrite(tmp_path, DAMAGE[damage])
    assert refused(tmp_path).startswith(f"{tmp_path / RECORDS}:")


def test_records_that_were_emptied_are_refused(tmp_path: Path):
    small_study(tmp_path)
    (tmp_path / RECORDS).write_text("")
    assert "has no records" in refused(tmp_path)
    (tmp_path / "runs").mkdir()
    assert "has no records" in refused(tmp_path)


def test_a_study_without_its_settings_is_refused(tmp_path: Path):
    small_study(tmp_path)
    (tmp_path / STUDY).unlink()
    assert f"has no {STUDY}" in refused(tmp_path)


def test_a_torn_line_is_gone_after_the_next_record(tmp_path: Path):
    small_study(tmp_path)
    count = len((tmp_path / RECORDS).read_bytes().splitlines())
    with (tmp_path / RECORDS).open("a") as file:
        file.write('{"kind": "fin')
    Records(tmp_path).append([{"kind": "spent", "sides": ["ia3"], "seconds": 1.0}])
    lines = (tmp_path / RECORDS).read_bytes().splitlines()
    assert len(lines) == count + 1 and json.loads(lines[-1])["kind"] == "spent"
    study_result(tmp_path)


def test_a_record_longer_than_a_line_of_a_log_is_read(tmp_path: Path):
    small_study(tmp_path)
    notices = ["a notice"] * 400_000
    rewrite(tmp_path, _set("final", notices=notices))
    assert len(study_result(tmp_path).sides[0].finals[0].notices) == len(notices)


def test_nothing_is_recorded_that_could_not_be_read_again(tmp_path: Path):
    small_study(tmp_path)
    before = (tmp_path / RECORDS).read_bytes()
    with pytest.raises(ValueError, match="seconds of the spent is missing"):
        Records(tmp_path).append([{"kind": "spent", "sides": ["ia3"]}])
    assert (tmp_path / RECORDS).read_bytes() == before


def test_a_resume_and_a_dry_run_refuse_what_a_report_refuses(
    tmp_path: Path, small_base: Path, monkeypatch: pytest.MonkeyPatch
):
    """Before the sides are even built."""
    small_study(tmp_path)
    rewrite(tmp_path, _set("trial", loss="low"))
    monkeypatch.setattr(runner, "expand", None)
    with pytest.raises(FileError, match=r"results\.jsonl:\d+: .* loss of the trial"):
        run(tmp_path / STUDY, tmp_path, resume=True)
    with pytest.raises(FileError, match=r"results\.jsonl:\d+: .* loss of the trial"):
        prepare(*read_study(tmp_path / STUDY), tmp_path)
