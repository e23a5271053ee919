"""Files of a folder that someone else made: what is no plain file is refused, never followed."""

import os
import socket

import pytest

from lorica import plain_files
from lorica.errors import FileError

READERS = [
    plain_files.kind_of,
    plain_files.open_file,
    plain_files.read_bytes,
    plain_files.read_text,
    plain_files.is_file,
    plain_files.is_folder,
    plain_files.names_in,
    plain_files.open_to_append,
    lambda path: list(plain_files.read_lines(path)),
]


def link(path):
    target = path.with_name("target")
    target.write_text("kept")
    path.symlink_to(target)


def link_to_nothing(path):
    path.symlink_to(path.with_name("nowhere"))


def link_to_folder(path):
    target = path.with_name("folder")
    target.mkdir()
    path.symlink_to(target)


def bound_socket(path):
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path has at most 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("make", [link, link_to_nothing, link_to_folder, os.mkfifo, bound_socket])
def test_what_is_no_plain_file_is_refused_by_name(tmp_path, make, reader):
    path = tmp_path / "odd"
    make(path)
    with pytest.raises(FileError, match=r"odd is a (link|pipe|socket), not a regular file"):
        reader(path)
    for target in ("target", "folder"):
        if (tmp_path / target).is_file():
            assert (tmp_path / target).read_text() == "kept"
    assert not (tmp_path / "nowhere").exists()


def test_devices_are_refused_also_behind_the_users_own_link(tmp_path):
    (tmp_path / "endless").symlink_to("/dev/zero")
    with pytest.raises(FileError, match="is a device"):
        plain_files.read_bytes(tmp_path / "endless", follow=True)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match="is a pipe"):
        plain_files.open_file(tmp_path / "pipe", follow=True)


def test_a_link_that_the_user_names_is_followed(tmp_path):
    (tmp_path / "file").write_text("text")
    (tmp_path / "named").symlink_to(tmp_path / "file")
    assert plain_files.read_text(tmp_path / "named", follow=True) == "text"


def test_the_hubs_cache_is_read(tmp_path):
    """Its snapshots hold links into the blobs beside them."""
    repository = tmp_path / "models--owner--name"
    (repository / "blobs").mkdir(parents=True)
    (repository / "blobs/0123").write_text("{}")
    snapshot = repository / "snapshots/main"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").symlink_to("../../blobs/0123")
    (snapshot / "other.json").symlink_to("../../blobs/none")
    assert plain_files.is_file(snapshot / "config.json")
    assert plain_files.read_text(snapshot / "config.json") == "{}"
    with pytest.raises(FileError, match="its target is missing") as error:
        plain_files.is_file(snapshot / "other.json")
    assert error.value.fix == "download it again"


def test_a_file_with_a_second_name_is_not_appended_to(tmp_path):
    (tmp_path / "mine").write_text("kept")
    os.link(tmp_path / "mine", tmp_path / "events.jsonl")
    with pytest.raises(FileError, match="hard link"):
        plain_files.open_to_append(tmp_path / "events.jsonl")
    assert (tmp_path / "mine").read_text() == "kept"


def test_what_is_too_large_or_not_there(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    with pytest.raises(FileError, match="larger than 4 bytes"):
        plain_files.read_bytes(tmp_path / "file", 4)
    assert plain_files.read_bytes(tmp_path / "file", 5) == b"12345"
    with pytest.raises(FileError, match="does not exist"):
        plain_files.read_bytes(tmp_path / "none")
    with pytest.raises(FileError, match="cannot be read"):
        plain_files.is_file(tmp_path / ("x" * 300))
    with pytest.raises(FileError, match="cannot be read"):
        plain_files.is_file(tmp_path / "a\0b")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../up", "/dev/zero", "a/b", "a\\b", "a\0", "x" * 256]
)
def test_names_in_a_list_of_files_are_plain(tmp_path, name):
    with pytest.raises(FileError, match="no plain file name"):
        plain_files.check_name(name, tmp_path)
    assert plain_files.check_name("model-00001-of-00002.safetensors", tmp_path)
