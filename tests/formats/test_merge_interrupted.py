"""A merge that cannot be finished leaves nothing behind that is taken for a model."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lorica.base.load import load as load_base
from lorica.errors import FileError, LoricaError, ResourceError
from lorica.formats import merge as merging
from lorica.formats.merge import merge_to
from tests.formats.merges import untied_llama, write_adapter, write_base


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    """An adapter on a base in several files."""
    folder = tmp_path_factory.mktemp("adapter")
    base = write_base(untied_llama(), folder / "base")
    return write_adapter(base, folder / "adapter", target_modules="all-linear")


def test_a_disk_that_cannot_hold_it_is_named_at_once(adapter, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(merging, "record", lambda *_: pytest.fail("it is checked first"))
    with pytest.raises(ResourceError, match=r"takes [\d.]+ MB, and the disk of .* has 0\.00 MB"):
        merge_to(adapter, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["pwrite", "posix_fallocate"])
def test_a_disk_that_is_full_in_the_middle_leaves_nothing(call, adapter, tmp_path, monkeypatch):
    real, count = getattr(os, call), 0

    def full(*args: Any) -> Any:
        nonlocal count
        count += 1
        if count > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args)

    monkeypatch.setattr(os, call, full)
    with pytest.raises(ResourceError, match=r"cannot write .*out: No space left") as error:
        merge_to(adapter, tmp_path / "out")
    assert "free some space" in (error.value.fix or "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_limit_of_the_size_of_files_leaves_nothing(adapter, tmp_path):
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    command = [sys.executable, "-m", "lorica", "merge", str(adapter), "--output"]
    done = subprocess.run(
        [*command, str(tmp_path / "out")],
        preexec_fn=limited,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == ResourceError.exit_code, done.stderr
    assert "ResourceError: cannot write" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_killed_merge_leaves_nothing_that_is_taken_for_a_model(adapter, tmp_path):
    """Killed at many moments, from the first file on to the rename."""
    command = [sys.executable, "-m", "lorica", "merge", str(adapter), "--limit", "100", "--output"]
    moments, finished = 0, False
    for wait in (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6):
        place = tmp_path / f"{wait}"
        place.mkdir()
        process = subprocess.Popen([*command, str(place / "out")], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not any(place.glob("*/*.safetensors")) and time.monotonic() < deadline:
            time.sleep(0.005)
        try:
            process.wait(timeout=wait)
            finished = True
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        left = list(place.iterdir())
        moments += [p.name for p in left] != ["out"]
        for folder in left:
            if folder.name == "out":
                load_base(str(folder))
            else:
                with pytest.raises(LoricaError):
                    load_base(str(folder))
        if finished:
            break
    assert moments > 1


def test_an_unfinished_folder_is_refused_by_name(adapter, tmp_path):
    """Also one in which nothing is missing."""
    merge_to(adapter, tmp_path / "out", limit=100.0)
    (tmp_path / "out").rename(tmp_path / ".staging-out-0")
    with pytest.raises(FileError, match="unfinished"):
        load_base(str(tmp_path / ".staging-out-0"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_parent_that_is_read_only(adapter, tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ResourceError, match="cannot write"):
            merge_to(adapter, tmp_path / "out")
    finally:
        tmp_path.chmod(0o700)
