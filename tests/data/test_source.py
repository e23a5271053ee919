"""Reading: every file format gives the same rows, and an invalid file is refused with the line."""

import json
import os
import sys
import tracemalloc
from itertools import product

import pytest
from pydantic import ValidationError

from lorica.data.config import DataConfig
from lorica.data.source import Source, _check_is_file, digest, read
from lorica.errors import DataError, MissingError
from tests.marks import slow_but

ROWS = [{"prompt": "a,b", "completion": 'say "c"\nd'}, {"prompt": "ü\u2028x", "completion": "e"}]


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return DataConfig(path=str(path))


def in_format(folder, name):
    path = folder / f"rows.{name}"
    if name == "json":
        path.write_text(json.dumps(ROWS))
    elif name == "nested.json":
        path.write_text(json.dumps({"version": 1, "data": ROWS}))
    elif name == "jsonl":
        path.write_text("\n\n".join(json.dumps(r, ensure_ascii=False) for r in ROWS) + "\r\n")
    elif name == "csv":
        path.write_text(
            '\ufeffprompt,completion\r\n"a,b","say ""c""\nd"\n\nü\u2028x,e\n', newline=""
        )
    elif name == "parquet":
        arrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.Table.from_pylist(ROWS), path)
    return DataConfig(path=str(path))


@pytest.mark.parametrize("name", ["json", "nested.json", "jsonl", "csv", "parquet"])
def test_every_format_gives_the_same_rows(tmp_path, name):
    config = in_format(tmp_path, name)
    rows = read(config)
    assert [row.fields for row in rows] == ROWS
    first = config.model_copy(update={"limit": 1})
    assert [row.fields for row in read(first)] == ROWS[:1]


def test_rows_have_their_file_and_line(tmp_path):
    assert [r.where for r in read(in_format(tmp_path, "jsonl"))] == ["rows.jsonl:1", "rows.jsonl:3"]
    assert [r.where for r in read(in_format(tmp_path, "csv"))] == ["rows.csv:2", "rows.csv:5"]
    assert read(in_format(tmp_path, "json"))[1].where == "rows.json:row 2"


def test_a_text_file_is_one_row(tmp_path):
    (row,) = read(write(tmp_path, "a.txt", "one\n\ntwo\n"))
    assert row.fields == {"text": "one\n\ntwo\n"}


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("a.jsonl", b"", ["is empty", "fix"]),
        ("a.txt", b" \n ", ["is empty"]),
        ("a.json", b"[]", ["no rows"]),
        ("a.csv", b"prompt,completion\n", ["no rows"]),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', ["not UTF-8", "line", "2", "0xff at offset 16"]),
        ("a.csv", b"\xef\xbb\xbfa,b\nc,\xe9\n", ["not UTF-8", "0xe9 at offset 9", "iconv"]),
        ("a.txt", "a".encode("utf-16"), ["not UTF-8"]),
        ("a.jsonl", '{"a": 1}\n{"a" 2}\n{"a": 3}\nx', ["2 lines", "line 2 column 6", "line 4"]),
        ("a.jsonl", '[\n{"a": 1},\n{"a": 2}\n]', [".json"]),
        ("a.jsonl", '[{"a": 1}]', ["name the file .json"]),
        ("a.jsonl", '{"a": 1}\n[1]\n"x"', ["2 rows", "a.jsonl:2 (list)", "a.jsonl:3 (str)"]),
        ("a.jsonl", '{"a": ' + "[" * 100_000, ["line 1"]),
        ("a.json", '[{"a": 1},\n {"a": }]', ["line", "2", "column", "8"]),
        ("a.json", '{"a": 1}\n{"a": 2}', ["name the file .jsonl"]),
        ("a.json", '{"x": [1], "y": [2]}', ["2 lists", "x, y"]),
        ("a.json", "3", ["int"]),
        ("a.json", '[{"a": 1}, 3]', ["row 2 (int)"]),
        ("a.csv", "a,b\n1,2\n3\n4,5,6\n", ["2 rows", "line 3 (1)", "line 4 (3)", "2 cells: a, b"]),
        ("a.csv", 'a,b\n1,"2\n', ["not CSV"]),
        ("a.csv", "a,a\n1,2\n", ["occurs twice: a"]),
        ("a.parquet", b"PAR1 and then nothing", ["Parquet"]),
        ("a.xlsx", b"x", ["suffix", ".xlsx", ".jsonl"]),
    ],
)
def test_an_invalid_file_is_refused_with_the_line(tmp_path, name, content, says):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    config = write(tmp_path, name, content)
    with pytest.raises(DataError) as error:
        read(config)
    for words in says:
        assert words in str(error.value)
    assert error.value.fix and name in str(error.value)


def test_a_missing_file_is_refused_with_similar_names(tmp_path):
    write(tmp_path, "tickets.jsonl", "{}")
    with pytest.raises(DataError, match=r"closest +tickets\.jsonl"):
        read(DataConfig(path=str(tmp_path / "tikets.jsonl")))
    with pytest.raises(DataError, match=r"holds +tickets\.jsonl"):
        read(DataConfig(path=str(tmp_path)))
    with pytest.raises(DataError, match="does not exist either"):
        read(DataConfig(path=str(tmp_path / "no" / "rows.jsonl")))


def test_a_missing_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingError, match=r'pip install "lorica\[data\]"'):
        read(DataConfig(path="owner/name"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingError, match=r'pip install "lorica\[data\]"'):
        read(write(tmp_path, "a.parquet", b"x"))


def test_a_hub_name_is_read_through_datasets(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = {}

    def load_dataset(name, subset, split):
        asked.update(name=name, subset=subset, split=split)
        if name == "owner/none":
            raise RuntimeError("offline")
        features = {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["-", "+"]),
        }
        columns = {"text": ["a", "b"], "label": [1, 0]}
        return datasets.Dataset.from_dict(columns, datasets.Features(features))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = read(DataConfig(path="owner/name:main", split="test", limit=1))
    assert asked == {"name": "owner/name", "subset": "main", "split": "test"}
    assert [(r.fields, r.where) for r in rows] == [
        ({"text": "a", "label": "+"}, "owner/name:row 1")
    ]
    with pytest.raises(DataError, match="RuntimeError: offline"):
        read(DataConfig(path="owner/none"))


@pytest.mark.parametrize(
    "name", ["json", "text", "csv", "parquet", "arrow", "imagefolder", "squad"]
)
def test_a_single_word_is_never_looked_up_on_the_hub(tmp_path, monkeypatch, name):
    """The library datasets would read the files of the working directory instead."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "private.jsonl", '{"text": "not for training"}')
    write(tmp_path, "private.txt", "not for training")
    for path in (name, f"{name}:default", f"./{name}", f"{name}/"):
        with pytest.raises(DataError, match="there is no file"):
            read(DataConfig(path=path))


def test_a_folder_is_never_a_data_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner/name").mkdir(parents=True)
    write(tmp_path / "owner/name", "private.jsonl", '{"text": "not for training"}')
    for path in ("owner", "owner/name", "owner/name:main", "owner:main", "owner/other"):
        with pytest.raises(DataError, match=r"is a folder|there is no file"):
            read(DataConfig(path=path))


LONG = [{"n": i, "text": "ü\n" * (i % 700), "more": [{"deep": [1.5, None]}]} for i in range(1_200)]


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_list_longer_than_the_window(tmp_path, indent):
    rows = read(write(tmp_path, "a.json", json.dumps(LONG, indent=indent, ensure_ascii=False)))
    assert [row.fields for row in rows] == LONG
    assert rows[-1].where == "a.json:row 1200"


BROKEN = ['{"a": 1', '{"a": }', "{1}", '{"a": 1}}', '{"a": 1} {', ",", "x"]
QUICK = [*product((0, 3), BROKEN), *product([40_000], BROKEN[-3:-1])]


@pytest.mark.parametrize(("before", "element"), slow_but(QUICK, product((0, 3, 40_000), BROKEN)))
def test_an_error_in_a_json_list_has_the_position_that_json_gives(tmp_path, element, before):
    text = "[" + '{"b": "ü"},\n ' * before + element + "]"
    with pytest.raises(json.JSONDecodeError) as wanted:
        json.loads(text)
    with pytest.raises(DataError, match="is not JSON") as error:
        read(write(tmp_path, "a.json", text))
    assert error.value.facts["line"] == wanted.value.lineno
    assert error.value.facts["column"] == wanted.value.colno


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
@pytest.mark.parametrize("at", slow_but([50, 2**20], [50, 2**20 - 1, 2**20, 2**21 + 1]))
def test_a_byte_that_is_not_utf8_is_an_error_anywhere(tmp_path, name, at):
    text = b'{"a": "\xc3\xbc"}\n' * 200_000
    data = b"\xef\xbb\xbf" + text[: at - 3] + b"\xc3" + text[at - 3 :]
    with pytest.raises(UnicodeDecodeError) as wanted:
        data.decode()
    with pytest.raises(DataError, match="not UTF-8") as error:
        read(write(tmp_path, name, data))
    start = wanted.value.start
    assert error.value.facts["byte"] == f"0x{data[start]:02x} at offset {start:,}"
    assert error.value.facts["line"] == data.count(b"\n", 0, start) + 1


@pytest.mark.parametrize("name", ["json", "jsonl", "csv", "parquet"])
def test_a_file_is_not_held_in_memory(tmp_path, name):
    rows = [{"prompt": "why? " * 100, "completion": f"{i}"} for i in range(6_000)]
    path = tmp_path / f"a.{name}"
    if name == "parquet":
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.Table.from_pylist(rows), path)
    elif name == "csv":
        path.write_text(
            "prompt,completion\n" + "".join(f"{r['prompt']},{r['completion']}\n" for r in rows)
        )
    else:
        text = json.dumps(rows) if name == "json" else "\n".join(map(json.dumps, rows))
        path.write_text(text)
    source = Source(DataConfig(path=str(path)))
    tracemalloc.start()
    try:
        count = sum(len(chunk) for chunk in source.chunks(100))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == len(rows) and source.done == source.size > (0 if name == "parquet" else 2**21)
    assert peak < 2**20 * (2 if name == "parquet" else 1.5)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_repeated_key_is_a_notice(tmp_path, name):
    rows = ['{"a": 1}', '{"a": 1, "b": 2, "a": 3}', '{"a": [{"x": 1, "x": 2}]}']
    text = "\n".join(rows) if name == "a.jsonl" else f"[{', '.join(rows)}]"
    source = Source(write(tmp_path, name, text))
    assert [row.fields for row in source][1:] == [{"a": 3, "b": 2}, {"a": [{"x": 2}]}]
    places = "a.jsonl:2 ('a'), a.jsonl:3 ('x')"
    if name == "a.json":
        places = "a.json:row 2 ('a'), a.json:row 3 ('x')"
    assert source.notices.texts == [
        f"2 rows have a key twice in one object; its last value is used: {places}"
    ]


def test_digest_is_of_the_bytes(tmp_path):
    first = write(tmp_path, "a.jsonl", '{"a": 1}\n')
    two = write(tmp_path, "b.jsonl", '{"a":  1}\n')
    assert digest(first, read(first)) == digest(first, []) != digest(two, read(two))


def test_the_settings_are_strict():
    assert DataConfig.model_validate("rows.jsonl").path == "rows.jsonl"
    assert DataConfig(path="a", validation="0.2").validation == 0.2
    assert DataConfig(path="a", validation="held.jsonl").validation == "held.jsonl"
    for wrong in (
        {"validation": 1.0},
        {"limit": 0},
        {"max_length": 1},
        {"path": " "},
        {"overlong": "cut"},
        {"format": "chat"},
        {"unknown": 1},
    ):
        with pytest.raises(ValidationError):
            DataConfig.model_validate({"path": "a", **wrong})
    with pytest.raises(ValidationError, match="did you mean completion"):
        DataConfig(path="a", columns={"completions": "x"})
    with pytest.raises(ValidationError, match="name the same one"):
        DataConfig(path="a", columns={"prompt": "x", "completion": "x"})
    assert all(f.description for f in DataConfig.model_fields.values())


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_a_device_is_refused(tmp_path, kind):
    """Opening a pipe that nobody writes to would block forever."""
    path = tmp_path / "rows.jsonl"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    with pytest.raises(DataError, match="is a pipe or a device"):
        _check_is_file(path)


def test_only_the_first_rows_of_a_stream_are_fetched(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    fetched = []

    def rows():
        for i in range(1_000):
            fetched.append(i)
            yield {"text": f"row {i}", "label": i % 2}

    def load_dataset(name, subset, split, streaming):
        assert (name, subset, split, streaming) == ("owner/name", "part", "train", True)
        features = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
        )
        return datasets.IterableDataset.from_generator(rows, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    first = read(DataConfig(path="owner/name:part", streaming=True, limit=7))
    assert [row.fields for row in first] == [
        {"text": f"row {i}", "label": "yes" if i % 2 else "no"} for i in range(7)
    ]
    assert first[6].where == "owner/name:row 7"


def test_streaming_needs_a_limit_and_a_hub_data_set(tmp_path):
    with pytest.raises(ValueError, match=r"streaming needs data\.limit"):
        DataConfig(path="owner/name", streaming=True)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match="streaming is for data sets of the hub"):
        read(DataConfig(path=str(path), streaming=True, limit=1))
