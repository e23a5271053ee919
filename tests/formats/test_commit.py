"""Folders that are there whole or not at all, whenever the process dies."""

import json
import subprocess
import sys

import pytest

from lorica.errors import FileError, LoricaError, ResourceError, TargetError
from lorica.formats import commit

# Kills a child at every event that Python reports (open, rename, chmod, remove ...) on the way
# from one saved adapter to the next, and looks at what is left after each.
MURDER = """
import json, os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import lorica
from lorica.formats import commit
from tests.laws.bases import CASES, Stack, trained

place, target = Path(sys.argv[1]), Path(sys.argv[1]) / "adapter"
old, new = trained("lora", CASES[0], seed=1), trained("lora", CASES[0], seed=2)
outputs = {"old": CASES[0].run(old), "new": CASES[0].run(new)}
armed, count, limit = False, 0, 0

def watch(event, args):
    global count
    if armed and (str(place) in repr(args) or event.startswith("ctypes.")):
        count += 1
        if count == limit:
            os.kill(os.getpid(), signal.SIGKILL)

for name in "ab":
    (place / name).mkdir()
at_once = commit._exchange(place / "a", place / "b")  # this disk can
for name in "ab":
    (place / name).rmdir()
sys.addaudithook(watch)
results = []
for limit in range(1, 1000):
    lorica.save(old, target)
    child = os.fork()
    if not child:
        armed = True
        lorica.save(new, target)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if at_once and not target.exists():
        results.append(f"event {limit}: gone")
    commit.sweep(place)
    model = Stack()
    try:
        assert lorica.load(model, target) == []
        got = [k for k, y in outputs.items() if torch.equal(CASES[0].run(model), y)]
        results.append(got[0])
    except Exception as error:
        results.append(f"event {limit}: {error}")
    left = sorted(p.name for p in place.iterdir())
    if left != ["adapter"]:
        results.append(f"event {limit}: left {left}")
    if code == 0:
        break
print(json.dumps(results))
"""


@pytest.mark.slow
def test_a_killed_save_leaves_the_old_adapter_or_the_new_one(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MURDER, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert len(results) > 15, "hardly anything was killed"
    assert results[0] == "old"
    assert results[-1] == "new"
    assert set(results) == {"old", "new"}
    assert results == sorted(results, reverse=True), "old first, then new, never back"


def test_an_exception_leaves_the_old_folder_and_no_staging(tmp_path):
    path = tmp_path / "out"
    with commit.folder(path) as staging:
        (staging / "file").write_text("old")
    with pytest.raises(KeyboardInterrupt), commit.folder(path, replace=True) as staging:
        (staging / "file").write_text("new")
        assert (path / "file").read_text() == "old"
        raise KeyboardInterrupt
    assert (path / "file").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_new_folder_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "out"
    for text in ("old", "new"):
        with commit.folder(path, replace=True) as staging:
            (staging / "deep").mkdir()
            (staging / "deep" / text).write_text(text)
    assert [p.name for p in (path / "deep").iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_without_the_word_nothing_is_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("mine")
    with pytest.raises(ResourceError, match="there already"), commit.folder(tmp_path / "out"):
        raise AssertionError("the block must not run")
    assert (tmp_path / "out" / "file").read_text() == "mine"


def test_a_path_that_can_be_no_folder_is_named(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for path in (tmp_path / "x\0y", tmp_path / "a/new", tmp_path / ("long" * 100)):
        with pytest.raises(ResourceError), commit.folder(path):
            pass


def test_where_folders_cannot_be_exchanged_a_lost_one_comes_back(tmp_path, monkeypatch):
    """Without an exchange in one step, a kill between two renames leaves the old one aside."""
    monkeypatch.setattr(commit, "_exchange", lambda new, old: False)
    path = tmp_path / "out"
    with commit.folder(path) as staging:
        (staging / "file").write_text("old")
    with commit.folder(path, replace=True) as staging:
        (staging / "file").write_text("new")
    assert (path / "file").read_text() == "new"
    path.rename(tmp_path / f"{commit.REPLACED}out-0123abcd")
    commit.sweep(tmp_path)
    assert (path / "file").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_sweeping_takes_what_was_left_and_nothing_else(tmp_path):
    for name in (".staging-a-1", ".staging-old-b-2", ".replaced-b-3"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("")
    (tmp_path / "b").mkdir()
    (tmp_path / "staging").mkdir()
    commit.sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "staging"]


def test_a_removal_that_is_cut_short_leaves_nothing_half_there(tmp_path, monkeypatch):
    old = tmp_path / "step-1"
    old.mkdir()
    (old / "state.json").write_text("{}")
    (old / "adapter.safetensors").write_text("")

    def cut(path):
        (path / "state.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(commit.shutil, "rmtree", cut)
        commit.remove(old)
    assert not old.exists()
    commit.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_text_is_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "file"
    commit.write_text(file, "ol\udc00")
    assert file.read_text() == "ol?"
    commit.write_text(file, "old")
    with pytest.raises(ValueError, match=r"nan|compliant"):
        commit.write_json(file, {"loss": float("nan")})
    assert file.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"a": 1', "\ufeff{}"], ids=repr)
def test_json_that_is_no_object(text, tmp_path):
    (tmp_path / "file").write_text(text, encoding="utf-8")
    with pytest.raises(FileError, match="file"):
        commit.read_json(tmp_path / "file")


def test_digests_name_every_file_that_differs(tmp_path):
    for name in "abc":
        (tmp_path / name).write_text(name)
    notes = {name: commit.digest(tmp_path / name) for name in "abc"}
    commit.check_digests(tmp_path, notes)
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").unlink()
    with pytest.raises(FileError, match="2 of 3") as error:
        commit.check_digests(tmp_path, notes)
    assert error.value.facts.keys() == {"a", "b"}


def test_errors_keep_their_facts_between_processes():
    import pickle

    for error in (
        FileError("what", fix="mend", missing="a"),
        TargetError("what"),
        LoricaError("what", fix=None, closest="b"),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert (str(again), again.fix, again.facts) == (str(error), error.fix, error.facts)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "below" / "file.bin"
    with commit.file(path) as staging:
        staging.write_bytes(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    with pytest.raises(KeyError), commit.file(tmp_path / "other") as staging:
        staging.write_bytes(b"half")
        raise KeyError
    with pytest.raises(ResourceError, match="already"), commit.file(path):
        raise AssertionError("not reached")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["below", "file.bin"]
