"""The cache of tokenised rows: the same rows from it, rebuilt when anything changes or breaks."""

import json
import os

import pytest

from lorica.base.load import load_tokenizer
from lorica.data import cache
from lorica.data.config import DataConfig
from lorica.data.load import load_data


@pytest.fixture
def tokenizer():
    return load_tokenizer("bundled")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "MIN_FILE_BYTES", 0)
    return tmp_path / "cache/lorica/rows"


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"Say {i % 50}. ", "completion": f"{i % 50} ü."} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig(path=str(path), validation=0.2)


def rows(config, tokenizer, seed=0):
    return load_data(config, tokenizer, seed=seed, max_length=None)


def entries(home):
    return [path for path in home.iterdir() if path.is_dir()]


def test_the_same_rows_come_from_the_cache(config, tokenizer, home, monkeypatch):
    first = rows(config, tokenizer)
    assert home.stat().st_mode & 0o777 == 0o700 and len(entries(home)) == 1
    monkeypatch.setattr("lorica.data.pipeline._Job.run", None)  # not called again
    again = rows(config, tokenizer)
    assert (again.train, again.validation) == (first.train, first.validation)
    assert (again.notices, again.digest) == (first.notices, first.digest)


def test_each_input_of_the_rows_changes_the_key(config, tokenizer, home):
    rows(config, tokenizer)
    rows(config, tokenizer, seed=1)
    rows(config.model_copy(update={"completion_only": False}), tokenizer)
    rows(config.model_copy(update={"limit": 9}), tokenizer)
    with open(config.path, "a") as file:
        file.write(json.dumps({"prompt": "New. ", "completion": "Yes."}) + "\n")
    rows(config, tokenizer)
    assert len(entries(home)) == 5
    rows(config.model_copy(update={"validation": 0.5, "overlong": "drop"}), tokenizer)
    assert len(entries(home)) == 5


@pytest.mark.parametrize("name", ["ids", "starts", "runs", "key", "places", "meta.json"])
@pytest.mark.parametrize("how", ["changed", "cut", "gone"])
def test_a_damaged_entry_is_rebuilt(config, tokenizer, home, name, how):
    before = rows(config, tokenizer)
    first = list(before.train), list(before.validation)  # copies of what is damaged
    (entry,) = entries(home)
    path = entry / name
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if how == "cut" else bytes([data[0] ^ 1]) + data[1:])
    again = rows(config, tokenizer)
    assert (list(again.train), list(again.validation)) == first
    assert any("damaged" in line for line in again.notices)
    assert list(rows(config, tokenizer).train) == first[0]


@pytest.mark.parametrize("mode", [0o755, 0o777])
def test_a_folder_that_others_can_read_is_not_used(config, tokenizer, home, mode):
    home.mkdir(parents=True)
    os.chmod(home, mode)
    data = rows(config, tokenizer)
    assert len(data.train) > 0 and not entries(home)
    assert any("are not cached" in line for line in data.notices)


def test_the_cache_is_bounded(config, tokenizer, home, monkeypatch):
    monkeypatch.setattr(cache, "MAX_BYTES", 1)
    for seed in range(3):
        rows(config, tokenizer, seed=seed)
    assert len(entries(home)) == 1
