"""An error of all processes of a run is printed once, and what says so does not pile up."""

import os
import tempfile

import pytest

from lorica.cli import process_errors
from lorica.cli.process_errors import KEPT_SECONDS, is_printed

pytestmark = pytest.mark.skipif(process_errors._launcher() is None, reason="needs Linux' /proc")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(process_errors.time, "sleep", lambda _: None)
    return tmp_path


def test_the_first_process_prints_and_the_others_do_not():
    assert not is_printed("a", is_consequence=False)
    assert is_printed("a", is_consequence=False)
    assert not is_printed("b", is_consequence=False)


def test_a_consequence_is_printed_only_if_nothing_else_was():
    assert not is_printed("the other has ended", is_consequence=True)
    assert is_printed("the other has ended", is_consequence=True)


def test_another_attempt_of_the_launcher_prints_again(monkeypatch):
    assert not is_printed("a", is_consequence=False)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not is_printed("a", is_consequence=False)


def test_files_of_errors_of_the_days_before_are_removed(folder):
    is_printed("a", is_consequence=False)
    (old,) = folder.iterdir()
    stat = old.stat()
    os.utime(old, (stat.st_atime, stat.st_mtime - KEPT_SECONDS - 1))
    is_printed("b", is_consequence=False)
    (young,) = folder.iterdir()
    assert young != old
    is_printed("c", is_consequence=False)
    assert young.exists()
