"""Names of adapters, and the folders of a root that they name."""

import pytest

from lorica.errors import ConfigError, FileError
from lorica.serve.names import adapters_in, check_alias, folder_in
from tests.serve.bad_adapters import NAMES
from tests.serve.fake_engine import write_adapter


@pytest.fixture(scope="module")
def pattern(tmp_path_factory):
    return write_adapter(tmp_path_factory.mktemp("names") / "pattern", 1)


def run(folder, pattern):
    """A finished run."""
    folder.mkdir(parents=True)
    for name in ("config.yaml", "events.jsonl"):
        (folder / name).write_text("")
    write_adapter(folder / "adapter", 1)


def test_names_that_may_be_used():
    for name in ("a", "0", "alice", "a-b_c.d", "v1.2", "a" * 64):
        assert check_alias(name) == name


def test_adapters_and_runs_of_a_folder_are_aliases(tmp_path, pattern):
    write_adapter(tmp_path / "alice", 1)
    run(tmp_path / "bob", pattern)
    run(tmp_path / "unfinished", pattern)
    for file in (tmp_path / "unfinished" / "adapter").iterdir():
        file.unlink()
    (tmp_path / "unfinished" / "adapter").rmdir()
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "Empty Folder").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "alice")
    folders, notices = adapters_in(tmp_path)
    assert folders == {"alice": tmp_path / "alice", "bob": tmp_path / "bob"}
    assert len(notices) == 2
    assert "linked is not served: " in notices[0]
    assert "has not finished" in notices[1]


def test_a_folder_whose_name_no_adapter_can_have(tmp_path):
    write_adapter(tmp_path / "Alice", 1)
    with pytest.raises(ConfigError, match=r"'Alice'.*\n.*\n.*--adapter NAME=FOLDER"):
        adapters_in(tmp_path)


def test_a_folder_without_adapters(tmp_path):
    with pytest.raises(FileError, match="holds no adapter"):
        adapters_in(tmp_path)
    with pytest.raises(FileError, match="there is no folder"):
        adapters_in(tmp_path / "missing")


@pytest.mark.parametrize("name", [name for name in NAMES if "\0" not in name and "/" not in name])
def test_a_folder_of_a_hostile_name_is_not_reached(name, tmp_path):
    """Even if there is one."""
    if name not in ("", ".", ".."):
        write_adapter(tmp_path / "root" / name, 1)
    with pytest.raises(ConfigError):
        folder_in(tmp_path / "root", name)


def test_a_twin_on_a_file_system_that_does_not_tell_cases_apart(tmp_path, monkeypatch):
    """The name must be in the listing as it is, whatever the file system would open."""
    write_adapter(tmp_path / "GOOD", 1)
    (tmp_path / "good").symlink_to(tmp_path / "GOOD")  # what such a file system would answer
    monkeypatch.setattr("lorica.plain_files.names_in", lambda folder: ["GOOD"])
    with pytest.raises(FileError, match="there is no adapter 'good'"):
        folder_in(tmp_path, "good")
