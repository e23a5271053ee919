"""Every kind of error ends in one clear message and its own exit status."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from lorica import cli
from lorica.cli import failures, methods
from lorica.errors import ConfigError, DataError, FileError, MergeError, MissingError, Stopped
from tests.small_base import WORDS

BUG = "this is a bug in lorica, run with --debug: "


class OutOfMemoryError(RuntimeError):
    """Named as torch's, which is recognised without importing torch."""


CASES = [
    (ConfigError("a b.", fix="c"), 2, "ConfigError: a b.\n  fix  c\n"),
    (DataError("no rows."), 3, "DataError: no rows.\n"),
    (FileError("cut short."), 6, "FileError: cut short.\n"),
    (MissingError("no datasets."), 5, "MissingError: no datasets.\n"),
    (Stopped("stopped.", signal=15), 143, "Stopped: stopped."),
    (Stopped("stopped.", signal=2), 130, "Stopped: stopped."),
    (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
    (MemoryError(), 4, "ResourceError: the memory is full."),
    (OutOfMemoryError("CUDA out of memory. Tried 2 GiB"), 4, "why  CUDA out of memory. Tried"),
    (
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        4,
        "memory is full",
    ),
    (OSError(errno.ENOSPC, "No space left on device", "runs/a"), 4, "refused runs/a: No space"),
    (PermissionError(errno.EACCES, "Permission denied", "x"), 4, "fix  choose a folder"),
    (ModuleNotFoundError("x", name="datasets"), 5, "pip install 'lorica[data]'"),
    (BrokenPipeError(), 141, ""),
    (SystemExit(143), 143, "Stopped: ended by SIGTERM"),
    (MergeError("lost too much."), 1, "MergeError: lost too much."),
    (SystemExit(None), 0, ""),
    (ModuleNotFoundError("No module named 'zzz'", name="zzz"), 70, f"{BUG}ModuleNotFoundError: No"),
    (KeyError("x"), 70, f"{BUG}KeyError: 'x' (test_exit_status.py:"),
]


def failing(monkeypatch, error: BaseException) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(methods, "methods", fail)


@pytest.mark.parametrize(("error", "status", "message"), CASES, ids=lambda case: str(case)[:30])
def test_status_and_message(monkeypatch, capsys, error, status, message):
    failing(monkeypatch, error)
    assert cli.run(["methods"]) == status
    out, err = capsys.readouterr()
    assert message in err and out == ""
    assert "Traceback" not in err


@pytest.mark.parametrize(("error", "status", "message"), CASES, ids=lambda case: str(case)[:30])
def test_json_has_the_same_error(monkeypatch, capsys, error, status, message):
    failing(monkeypatch, error)
    assert cli.run(["methods", "--json"]) == status
    out, _ = capsys.readouterr()
    if message:
        printed = json.loads(out)["error"]
        assert printed["exit_code"] == status and printed["what"]
        assert set(printed) == {"type", "what", "facts", "fix", "exit_code"}


def test_debug_prints_the_traceback(monkeypatch, capsys):
    failing(monkeypatch, KeyError("x"))
    assert cli.run(["methods", "--debug"]) == 70
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "closest  train"),
        (["train", "--resume"], "--resume"),
        (["train", "--resume", "runs/x", "--seed", "1"], "runs/x is no run folder"),
        (["train", "-x"], "-x is not an option"),
        (["train", "a.yaml", "b.yaml"], "one recipe is expected, and 2 were given"),
        (["train"], "data was not given"),
        (["check", "--data", "x", "--epochs", "-1"], "--epochs is -1; it must be"),
        (["eval"], "no run, adapter or base was given"),
        (["eval", "x"], "no rows to measure on"),
        (["eval", "x", "--data", "y", "--data.limt", "1"], "closest --data.limit"),
        (["eval", "x", "--data", "y", "--exact_match", "false"], "false follows a switch"),
        (["generate", "x"], "no prompt was given"),
        (["generate", "--prompt", "x"], "no model was named"),
        (["generate", "x", "--prompt", "x", "--top-p", "x"], "top-p"),
        (["chat"], "no model was named"),
        (["merge", "x"], "--output"),
        (["methods", "lorra"], "closest  lora"),
        (["methods", "lora", "dora"], "dora"),
        (["info"], "PATH"),
        (["info", "\udcff"], "is not UTF-8 text"),
    ],
)
def test_wrong_usage_has_status_2(capsys, words, message):
    assert cli.run(words) == 2
    err = capsys.readouterr().err
    assert message in err and err.startswith("ConfigError: ")


def test_a_reader_that_closes_the_pipe(tmp_path):
    line = f"{sys.executable} -m lorica train --help | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] in ("0", "1", "141")  # 1: rich saw it first


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_a_checkpoint_and_prints_how_to_resume(tmp_path, small_base, number):
    text = tmp_path / "text.txt"
    text.write_text(WORDS * 400)
    words = [
        "train",
        "--base",
        small_base,
        "--data",
        text,
        "--data.max_length",
        "64",
        "--max_steps",
        "100000",
        "--output",
        tmp_path / "run",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "lorica", *map(str, words)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    log = tmp_path / "run" / "events.jsonl"
    while not (log.is_file() and '"step"' in log.read_text()):
        assert process.poll() is None
        time.sleep(0.2)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert f"lorica train --resume {tmp_path / 'run'}" in err
    assert "Traceback" not in err


def test_statuses_in_the_docstring():
    for status in (2, 3, 4, 5, 6, 70, 130, 141, 143):
        assert f"{status} " in str(failures.__doc__)
