"""Several files in one training: their rows in one store, and the weights in the order of rows."""

import json
from collections import Counter

import numpy as np
import pytest

from lorica.base.load import load_tokenizer
from lorica.cli.measured_rows import rows_of
from lorica.data import uncached
from lorica.data.config import DataConfig
from lorica.data.load import load_data
from lorica.data.mixture import Mixture
from lorica.errors import ConfigError, DataError
from lorica.training.config import read
from lorica.training.plan import row_order
from lorica.training.resume import changed_settings


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("bundled")


def write(path, rows, first=0):
    path.parent.mkdir(exist_ok=True)
    rows = [{"prompt": f"{path.name} {i}", "completion": f" {i}."} for i in range(first, rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def files(tmp_path):
    return [write(tmp_path / "a.jsonl", 40), write(tmp_path / "b.jsonl", 10)]


def load(paths, tokenizer, **settings):
    return load_data(DataConfig(path=paths, **settings), tokenizer, seed=0, max_length=None)


@pytest.mark.parametrize("memory", [0, 1 << 20])
def test_a_mixture_has_the_rows_of_its_files(files, tokenizer, memory, monkeypatch):
    monkeypatch.setattr(uncached, "MAX_MEMORY", memory)
    alone = [load(path, tokenizer, validation=0.2) for path in files]
    data = load(files, tokenizer, validation=0.2)
    assert list(data.train) == [row for part in alone for row in part.train]
    assert list(data.validation) == [row for part in alone for row in part.validation]
    assert data.epoch_rows == len(data.train) == 40
    assert data.train.label_counts.tolist() == [n for p in alone for n in p.train.label_counts]


def test_one_file_of_a_list_is_that_file(files, tokenizer):
    one, alone = load(files[:1], tokenizer), load(files[0], tokenizer)
    assert list(one.train) == list(alone.train)
    order = [row_order(len(x.train), 3, 17, 99, x.mixture) for x in (one, alone)]
    assert order[0] == order[1]


def test_weights_decide_how_often_an_epoch_uses_a_row(files, tokenizer):
    weighted = [{"path": files[0], "weight": 0.25}, {"path": files[1], "weight": 2.5}]
    data = load(weighted, tokenizer, validation=0)
    assert data.mixture == Mixture(((0, 40, 10), (40, 50, 25)))
    assert any("an epoch has 25 of its 10 training rows" in notice for notice in data.notices)
    epochs = [row_order(50, 7, 35 * epoch, 35, data.mixture) for epoch in range(30)]
    for epoch in epochs:
        times = Counter(epoch)
        assert sum(n for row, n in times.items() if row < 40) == 10
        assert max(n for row, n in times.items() if row < 40) == 1
        assert sorted(times[row] for row in range(40, 50)) == [2] * 5 + [3] * 5
    assert len({tuple(sorted(epoch)) for epoch in epochs}) == 30  # the rest is drawn anew
    assert set(np.concatenate(epochs)) == set(range(50))
    assert row_order(50, 7, 30, 40, data.mixture) == [*epochs[0][30:], *epochs[1]]
    assert row_order(50, 8, 0, 35, data.mixture) != epochs[0]


def test_files_of_one_name_and_rows_in_both(tmp_path, tokenizer):
    paths = [write(tmp_path / "en/rows.jsonl", 20), write(tmp_path / "de/rows.jsonl", 20, 5)]
    data = load(paths, tokenizer, validation=0)
    assert data.train[0].where == f"{tmp_path}/en/rows.jsonl:1"
    assert data.train[20].where == f"{tmp_path}/de/rows.jsonl:1"
    assert any("15 rows repeat an earlier row" in notice for notice in data.notices)


def test_rows_of_another_format_are_refused(files, tmp_path, tokenizer):
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "a", "label": "b"}\n')
    with pytest.raises(DataError, match=r"c\.jsonl holds label rows, and .*a\.jsonl holds prompt"):
        load([*files, str(path)], tokenizer)
    path.write_text('{"prompt": "a", "completion": "b", "condition": "c"}\n')
    with pytest.raises(DataError, match="rows with a condition"):
        load([*files, str(path)], tokenizer)
    with pytest.raises(DataError, match="leave no rows"):
        load([{"path": path, "weight": 0.01} for path in files], tokenizer)


def test_a_mixture_is_written_as_a_list_or_by_several_flags(files, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "base: bundled\ndata:\n  path:\n    - a.jsonl\n    - {path: b.jsonl, weight: 2}\n"
    )
    config = read(recipe).data
    assert [file.path for file in config.mixture] == files
    assert [file.weight for file in config.mixture] == [1, 2]
    assert DataConfig.model_validate(config.model_dump(mode="json")) == config
    flags = read(None, {"base": "bundled", "data": files}).data
    assert [file.path for file in flags.mixture] == files
    assert flags == read(None, {"base": "bundled", "data.path": files}).data
    as_json = json.dumps([{"path": files[0], "weight": 0.5}, files[1]])
    for flag in ("data", "data.mixture"):
        assert read(None, {"base": "bundled", flag: as_json}).data.mixture[0].weight == 0.5
    assert not read(recipe, {"data": files[0]}).data.mixture
    assert len(read(recipe, {"data": files * 2}).data.mixture) == 4
    with pytest.raises(ConfigError, match=r"data\.mixture"):
        read(None, {"base": "bundled", "data.path": [{"path": files[0], "weight": 0}]})


@pytest.mark.parametrize("flag", ["data", "data.path"])
def test_other_settings_of_the_data_stand_beside_a_list(files, flag):
    for value in (files, json.dumps(files), files[0], json.dumps({"path": files[0]})):
        if flag == "data.path" and value not in (files, files[0]):
            continue
        given = {flag: value, "data.validation": 0, "data.limit": 3}
        for flags in (given, dict(reversed(given.items()))):
            config = read(None, {"base": "bundled", **flags}).data
            assert (config.validation, config.limit) == (0, 3), flags


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([{"path": "a", "weight": 0}], r"data\.mixture\[0\]\.weight is 0; .*above 0 and at most"),
        (["a", {"path": "b", "weight": "x"}], r'data\.mixture\[1\]\.weight is "x"'),
        ([{"path": "a", "wieght": 2}], r"wieght is not a setting; known: path, weight"),
        ([{"weight": 2}], r"data\.mixture\[0\]\.path was not given"),
        ([3], r"data\.mixture\[0\] is 3"),
        ([], r"data\.path is \[\]"),
    ],
)
def test_what_is_wrong_in_a_list_of_files_is_named(paths, message):
    with pytest.raises(ConfigError, match=message):
        read(None, {"base": "bundled", "data.path": paths})


@pytest.mark.parametrize(
    "flags",
    [
        {"data": "a", "data.path": "b"},
        {"data.path": "b", "data": ["a"]},
        {"data.mixture": '["a", "b"]', "data": "c"},
        {"data.mixture": '["a", "b"]', "data.path": "c"},
    ],
)
def test_no_file_that_was_named_is_dropped(flags):
    with pytest.raises(ConfigError, match="are for the same setting: give one"):
        read(None, {"base": "bundled", **flags})


@pytest.mark.parametrize("flag", ["data", "data.path", "data.mixture"])
def test_a_mixture_in_json_is_read_whole(flag):
    text = '[{"path": "a.jsonl", "weight": 0.5}, "b.jsonl"]'
    files = read(None, {"base": "bundled", flag: text}).data.mixture
    assert [(file.path, file.weight) for file in files] == [("a.jsonl", 0.5), ("b.jsonl", 1)]
    with pytest.raises(ConfigError) as error:
        read(None, {"base": "bundled", flag: text.replace("0.5", "0")})
    assert "data.mixture[0].weight is 0" in error.value.what
    assert "settings are wrong" not in error.value.what


def test_the_rows_of_an_evaluation_are_not_those_of_the_mixture(files, tmp_path):
    (tmp_path / "config.yaml").write_text(
        json.dumps({"base": "bundled", "data": {"path": "several files", "mixture": files}})
    )
    config = rows_of(tmp_path, {"data": files[1]})
    assert (config.path, config.mixture) == (files[1], [])


def test_a_resumed_run_may_move_its_files_and_keeps_their_weights(files):
    def settings(*weights, folder=""):
        paths = [{"path": f"{folder}{n}.jsonl", "weight": w} for n, w in enumerate(weights)]
        return {"data": DataConfig(path=paths).model_dump(mode="json")}

    assert not changed_settings(settings(1, 2), settings(1, 2, folder="moved/"))
    assert changed_settings(settings(1, 2), settings(1, 3))
    assert changed_settings(settings(1, 2), settings(1))
