"""A run folder that someone else made: no link in it is written through, emptied or swept."""

import pytest

from lorica.errors import FileError
from lorica.formats import commit
from lorica.formats.adapter_folder import adapter_folder
from lorica.training import checkpoint
from lorica.training.run import EVENTS, NAMES, Run, read_events


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path / "run")
    run.create("seed: 0\n")
    run.log("start", step=0)
    outside = tmp_path / "outside"
    (outside / "step-00000001").mkdir(parents=True)
    (outside / "step-00000001/state.json").write_text("kept")
    (outside / ".staging-mine").mkdir()
    (tmp_path / "target").write_text("kept")
    return run


def replaced_by_link(run, name, target):
    path = run.folder / name
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    path.symlink_to(run.folder.parent / target)


def untouched(folder):
    inside = sorted(str(p.relative_to(folder)) for p in folder.glob("outside/**/*"))
    assert inside == [
        "outside/.staging-mine",
        "outside/step-00000001",
        "outside/step-00000001/state.json",
    ]
    assert (folder / "target").read_text() == "kept"


@pytest.mark.parametrize("target", ["target", "outside", "nowhere"])
@pytest.mark.parametrize("name", NAMES)
def test_a_link_ends_the_run_before_it_begins(run, name, target, tmp_path):
    replaced_by_link(run, name, target)
    with pytest.raises(FileError, match=f"{name} is a link"), run.lock():
        pass
    untouched(tmp_path)
    assert not (tmp_path / "nowhere").exists()


def test_checkpoints_elsewhere_are_not_listed_or_removed(run, tmp_path):
    replaced_by_link(run, "checkpoints", "outside")
    with pytest.raises(FileError, match="checkpoints is a link"):
        checkpoint.steps(run.checkpoints)
    with pytest.raises(FileError, match="checkpoints is a link"):
        commit.remove(run.checkpoints)
    untouched(tmp_path)


def test_a_single_checkpoint_elsewhere(run, tmp_path):
    (run.checkpoints / "step-00000001").symlink_to(tmp_path / "outside/step-00000001")
    with pytest.raises(FileError, match="step-00000001 is a link"):
        checkpoint.load_newest(run.checkpoints)
    untouched(tmp_path)


def test_leftovers_that_are_links_go_and_their_targets_stay(run, tmp_path):
    for name in (".staging-x-1", ".replaced-adapter-1"):
        (run.folder / name).symlink_to(tmp_path / "outside")
    commit.sweep(run.folder)
    assert not [p.name for p in run.folder.iterdir() if p.is_symlink()]
    untouched(tmp_path)


def test_writing_replaces_a_link_and_logs_refuse_one(run, tmp_path):
    replaced_by_link(run, "results.json", "target")
    commit.write_json(run.folder / "results.json", {})
    assert not (run.folder / "results.json").is_symlink()
    replaced_by_link(run, EVENTS, "target")
    with pytest.raises(FileError, match="is a link"):
        run.log("step", step=1)
    with pytest.raises(FileError, match="is a link"):
        read_events(run.folder)
    untouched(tmp_path)


def test_an_adapter_elsewhere_is_not_taken_for_the_runs(run, tmp_path):
    replaced_by_link(run, "adapter", "outside")
    with pytest.raises(FileError, match="adapter is a link"):
        adapter_folder(run.folder)


def test_the_run_itself_may_be_named_by_a_link(run, tmp_path):
    (tmp_path / "named").symlink_to(run.folder)
    with Run(tmp_path / "named").lock():
        Run(tmp_path / "named").log("step", step=1)
    assert len(read_events(tmp_path / "named")) == 2


NO_EVENTS = [
    "[]",
    "1",
    "null",
    "[" * 9999,
    '{"event": 1}',
    '{"step": []}',
    "\x00\xff",
    '{"event": "step", "step": [], "loss": 1}',
    '{"event": "step", "step": 1, "loss": "x"}',
]


@pytest.mark.parametrize("line", NO_EVENTS)
def test_lines_of_the_log_that_are_no_events(run, line):
    from lorica.training.run import by_step

    with (run.folder / EVENTS).open("a") as file:
        file.write(line + "\n")
    run.log("step", step=1, loss=2.0)
    assert by_step(read_events(run.folder), "step", "loss") == ([1], [2.0])


def occupy(path, how):
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    if how == "file":
        path.write_text("mine")
        return
    path.mkdir()
    if how == "foreign":
        (path / "mine.txt").write_text("mine")
    if how == "adapter and mine":
        (path / "adapter_config.json").write_text("{}")
        (path / "mine.txt").write_text("mine")
    if how == "damaged":
        (path / "manifest.json").write_text("{")
        (path / "mine.txt").write_text("mine")


FILES = [(name, "folder") for name in NAMES if "." in name]
FOLDERS = [(name, "file") for name in NAMES if "." not in name]
ADAPTERS = [("adapter", how) for how in ("foreign", "adapter and mine", "damaged")]


@pytest.mark.parametrize(("name", "how"), [*FILES, *FOLDERS, *ADAPTERS])
def test_what_stands_in_the_way_of_a_result_is_named_before_the_run_begins(run, name, how):
    path = run.folder / name
    occupy(path, how)
    with pytest.raises(FileError, match=f"{name} ") as caught, run.lock():
        pass
    assert f"mv {path} {path}.old" in str(caught.value.fix)
    path.rename(f"{path}.old")
    with run.lock():
        pass


def test_everything_in_the_way_is_named_at_once(run):
    occupy(run.folder / "results.json", "folder")
    occupy(run.folder / "loss.png", "folder")
    with pytest.raises(FileError) as caught, run.lock():
        pass
    assert {"results.json", "loss.png"} == set(caught.value.facts)


def test_an_event_log_without_end_is_refused_unread(run):
    path = run.folder / EVENTS
    with path.open("ab") as file:
        file.truncate(3 * 10**9)
    with pytest.raises(FileError, match="has 3,000,000,000 bytes"), run.lock():
        pass
    with pytest.raises(FileError, match="has 3,000,000,000 bytes"):
        read_events(run.folder)
