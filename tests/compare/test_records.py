"""results.jsonl: appended to, read after any kill, and always the same result from one folder."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from lorica.compare.assemble import study_result, write_results
from lorica.compare.records import RECORDS, Records, locked
from lorica.errors import FileError, ResourceError
from tests.compare.small_study import LEVELS, SEEDS, small_study


def test_the_result_of_a_study_has_every_unit(tmp_path: Path):
    result = small_study(tmp_path)
    assert [side.name for side in result.sides] == list(LEVELS)
    assert result.reference == "lora r=2"
    assert [final.seed for final in result.sides[0].finals] == list(SEEDS)
    assert result.sides[0].cost is not None and result.sides[0].cost.trained_parameters == 2048
    assert "learning_rate: 0.007" in result.sides[1].recipe
    assert result.sides[2].finals[-1].error and not result.sides[2].finals[-1].scores
    assert result.missing == []


def test_one_folder_always_gives_the_same_file(tmp_path: Path):
    small_study(tmp_path)
    write_results(tmp_path)
    first = (tmp_path / "results.json").read_bytes()
    write_results(tmp_path)
    assert (tmp_path / "results.json").read_bytes() == first


@pytest.mark.parametrize("cut", (1, 20, 300))
def test_a_line_cut_short_is_skipped_and_the_next_one_is_whole(tmp_path: Path, cut: int):
    small_study(tmp_path)
    path = tmp_path / RECORDS
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:-cut])
    records = Records(tmp_path)
    assert len(records.of("final")) == len(LEVELS) * len(SEEDS) - (cut > 1)
    records.append([json.loads(lines[-1])])
    assert asdict(study_result(tmp_path)) == asdict(small_study(tmp_path / "whole"))


def test_of_several_lines_of_a_unit_the_last_counts(tmp_path: Path):
    small_study(tmp_path)
    records = Records(tmp_path)
    final = records.of("final", side="lora r=2", seed=1)[0]
    records.append([{**final, "forgotten": 9.0}])
    side = study_result(tmp_path).sides[0]
    assert [f.forgotten == 9.0 for f in side.finals] == [False, True, False]


def test_what_was_not_run_is_named(tmp_path: Path):
    small_study(tmp_path)
    path = tmp_path / RECORDS
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [
        line
        for line in lines
        if not (line["kind"] == "final" and line["seed"] > 0 and line["side"] == "lora r=8")
        and not (line["kind"] in ("rate", "final", "cost") and line["side"] == "ia3")
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in kept))
    missing = study_result(tmp_path).missing
    assert missing == [
        "lora r=8: 2 of 3 final runs are missing (seeds 1, 2)",
        "ia3: its learning rate was not chosen, and no final run was made",
    ]


def test_a_folder_without_records_is_no_study(tmp_path: Path):
    with pytest.raises(FileError, match="is no study"):
        study_result(tmp_path)


def test_two_processes_never_write_one_study(tmp_path: Path):
    with locked(tmp_path), pytest.raises(ResourceError, match="another process"), locked(tmp_path):
        pass
