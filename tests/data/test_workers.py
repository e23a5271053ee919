"""Several processes make the same rows as one, and a process that ends is an error."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from lorica.base.load import load_tokenizer
from lorica.data import cache, pipeline, uncached
from lorica.data.config import DataConfig
from lorica.data.pipeline import tokenise_file
from lorica.data.workers import Workers
from lorica.errors import DataError, LoricaError, ResourceError

WORDS = ["order", "é", "日本", "kettle", "<|user|>", "12345", " ", "ends\n"]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("bundled")


@pytest.fixture(autouse=True)
def small_chunks(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(pipeline, "CHUNK", 7)


def texts(draw):
    return " ".join(draw.choices(WORDS, k=draw.randint(1, 9)))


def chat(draw, i):
    turns = [
        {"role": "user", "content": texts(draw)},
        {"role": "assistant", "content": texts(draw)},
    ]
    return {"messages": turns * draw.randint(1, 2), "condition": str(i % 5), "unused": i}


def prompt(draw, i):
    row = {"prompt": texts(draw), "completion": "" if i % 9 == 5 else texts(draw)}
    return row | ({"late": 1} if i > 30 else {})


def label(draw, i):
    return {"text": texts(draw), "label": draw.choice("abc") if i < 40 else "late"}


def write(path, make, rows=60, spoil=()):
    draw = random.Random(0)
    lines = [json.dumps(make(draw, i)) for i in range(rows)]
    for number, line in spoil:
        lines[number - 1] = line
    lines[20] = '{"prompt": "twice", "prompt": "b", ' + lines[20][1:]
    path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    return path


def rows_of(path, tokenizer, workers, **settings):
    store = tokenise_file(
        DataConfig(path=str(path), workers=workers, **settings), tokenizer, seed=3
    )
    arrays = {name: np.asarray(array).tobytes() for name, array in store.arrays.items()}
    return arrays, store.meta


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("make", [chat, prompt, label])
def test_any_number_of_processes_makes_the_same_rows(tmp_path, tokenizer, make, workers):
    path = write(tmp_path / "rows.jsonl", make)
    assert rows_of(path, tokenizer, workers) == rows_of(path, tokenizer, 1)
    assert rows_of(path, tokenizer, workers, limit=33) == rows_of(path, tokenizer, 1, limit=33)


@pytest.mark.parametrize("suffix", [".csv", ".json", ".parquet"])
def test_other_formats_too(tmp_path, tokenizer, suffix):
    draw, path = random.Random(0), tmp_path / f"rows{suffix}"
    rows = [{"prompt": texts(draw), "completion": texts(draw)} for _ in range(50)]
    if suffix == ".json":
        path.write_text(json.dumps(rows))
    elif suffix == ".csv":
        import csv

        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["prompt", "completion"], *(r.values() for r in rows)])
    else:
        import datetime

        import pyarrow as pa
        import pyarrow.parquet as pq

        for i, row in enumerate(rows):  # a value that cannot go to another process
            row["day"] = datetime.date(2026, 1, 1) if 10 < i < 20 else None
        pq.write_table(pa.Table.from_pylist(rows), path)
    assert rows_of(path, tokenizer, 2) == rows_of(path, tokenizer, 1)


BAD = {
    "rows that cannot be used": [(8, '{"prompt": 5, "completion": "a"}'), (44, '{"prompt": "a"}')],
    "lines that are not JSON": [(3, "{"), (50, '{"a" 1}'), (51, "nonsense")],
    "rows that are no objects": [(30, "[1]"), (31, "5")],
    "all of them": [(3, '{"prompt": 5}'), (30, "[1]"), (50, "{")],
    "a list of the wrong kind": [(1, "[1]")],
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_named_as_by_one_process(tmp_path, tokenizer, case):
    path = write(tmp_path / "rows.jsonl", prompt, spoil=BAD[case])
    errors = []
    for workers in (1, 2, 4):
        with pytest.raises(DataError) as caught:
            rows_of(path, tokenizer, workers)
        errors.append(str(caught.value))
    assert errors[0] == errors[1] == errors[2]
    assert not list(tmp_path.rglob(".staging*"))


def test_a_format_that_shows_late_is_found(tmp_path, tokenizer):
    """Rows that begin as plain text, and have labels later."""
    path = tmp_path / "rows.jsonl"
    rows = [{"text": f"row {i}"} | ({"label": "a"} if i > 20 else {}) for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for workers in (1, 2):
        with pytest.raises(DataError, match="21 of 40 rows cannot be used"):
            rows_of(path, tokenizer, workers)


def double(chunk):
    return chunk[0][0] * 2, [chunk[0][1].encode()]


def fail(chunk):
    if chunk[0][0] == 3:
        raise DataError("row 3 is bad.", fix="mend it", where=3)
    return None, []


def die(chunk):
    if chunk[0][0] == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return None, []


def chunks():
    return iter([(i, "text")] for i in range(40))


def test_results_are_in_order():
    with Workers(3, double) as workers:
        results = list(workers.map(chunks()))
    assert results == [([(i, "text")], (2 * i, [b"text"])) for i in range(40)]


@pytest.mark.parametrize("value", [b"a", (1,), {1: 2}, {1, 2}, object(), float("nan")])
def test_what_json_would_change_stays_here(value):
    with Workers(1, double) as workers:
        (result,) = workers.map(iter([[({"text": value}, "rows.jsonl:1")]]))
    assert result[1] is None


def test_an_error_stands_at_its_place():
    results = []
    with Workers(2, fail) as workers, pytest.raises(DataError, match="row 3 is bad"):
        results += [result for _, result in workers.map(chunks())]
    with Workers(2, die) as workers, pytest.raises(ResourceError, match="status -9"):
        list(workers.map(chunks()))


def test_a_file_that_changes_while_it_is_read(tmp_path, tokenizer, monkeypatch):
    path = write(tmp_path / "rows.jsonl", prompt)
    digest = pipeline.Source.digest

    def then_change(source):
        value = digest(source)
        with path.open("a") as file:
            file.write(json.dumps({"prompt": "new", "completion": "new"}) + "\n")
        return value

    monkeypatch.setattr(pipeline.Source, "digest", then_change)
    with pytest.raises(DataError, match="was changed while it was read"):
        rows_of(path, tokenizer, 2)


def test_many_rows_without_a_cache_are_in_files(tmp_path, tokenizer, monkeypatch):
    path = write(tmp_path / "rows.jsonl", prompt)
    in_memory = rows_of(path, tokenizer, 1)
    monkeypatch.setattr(uncached, "MAX_MEMORY", 1_000)
    monkeypatch.setattr(uncached.tempfile, "tempdir", str(tmp_path / "tmp"))
    with pytest.raises(ResourceError, match="neither in the cache nor"):
        rows_of(path, tokenizer, 2)
    (tmp_path / "tmp").mkdir()
    arrays, meta = rows_of(path, tokenizer, 2)
    assert arrays == in_memory[0]
    assert meta["notices"] == in_memory[1]["notices"]
    assert not list((tmp_path / "tmp").iterdir())


SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # else tests in the background ignore it
from lorica.base.load import load_tokenizer
from lorica.data import cache, pipeline
from lorica.data.config import DataConfig
from lorica.data.render import Renderer
import os, time
cache.MIN_FILE_BYTES, pipeline.CHUNK = 0, 7
render, parent = Renderer.render, os.getpid()
def slow(self, rows):
    if os.getpid() != parent:
        os.write(1, f"{os.getpid()}\\n".encode())
        time.sleep(5)
    return render(self, rows)
Renderer.render = slow
tokenizer = load_tokenizer("bundled")
pipeline.tokenise_file(DataConfig(path=sys.argv[1], workers=2), tokenizer, seed=0)
"""


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)]
)
def test_a_signal_leaves_no_process_and_no_half_of_a_cache(tmp_path, number):
    path = write(tmp_path / "rows.jsonl", prompt)
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        workers = [int(process.stdout.readline()) for _ in range(2)]
        process.send_signal(number)
        process.communicate(timeout=60)
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline and any(map(is_running, workers)):
        time.sleep(0.05)
    assert not any(map(is_running, workers))
    entries = [entry for entry in cache.folder().iterdir() if entry.is_dir()]
    if number == signal.SIGINT:
        assert not entries
    assert all(entry.name.startswith(cache.STAGING) for entry in entries)


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_errors_of_a_worker_that_are_ours_keep_their_kind():
    def refuse(value):
        raise ResourceError("full", fix="make room")

    with Workers(1, refuse) as workers, pytest.raises(LoricaError) as caught:
        list(workers.map(chunks()))
    assert type(caught.value) is ResourceError and caught.value.fix == "make room"
