"""Worker processes do the jobs of a study as one process does, and end as they should."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from lorica.compare import executor as executor_module
from lorica.compare.assemble import study_result
from lorica.compare.clock import Clock
from lorica.compare.cost import measure_cost
from lorica.compare.executor import Worker, WorkerProcesses, worker_processes
from lorica.compare.executor_for import executor_for
from lorica.compare.job_records import JobResult
from lorica.compare.runner import prepare
from lorica.compare.scoring import ScoreSettings
from lorica.compare.study import read_study
from lorica.compare.training_jobs import FinalScoring, Job, group, run_of
from lorica.compare.worker import JOB, do_line, job_line, result_of
from lorica.data.config import DataConfig
from lorica.errors import ResourceError, Stopped
from tests.compare.study_files import fix_costs, run, without_costs, write_study
from tests.marks import at_length

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGKILL]


def a_job(path: Path, folder: Path) -> Job:
    planned = prepare(*read_study(path), folder, clock=Clock())
    runs = [run_of(side, folder / side.name, 1e-3, 0, 2) for side in planned.sides]
    return Job(group(runs, 6)[0], 2)


def test_a_job_survives_its_way_to_a_worker(small_base: Path, tmp_path: Path):
    job = a_job(write_study(tmp_path, small_base), tmp_path / "out")
    scores = ScoreSettings(("loss",), DataConfig(path="a.jsonl"), DataConfig(path="b", split="x"))
    for sent in (job, Job(job.runs, None, FinalScoring(scores, 2.5))):
        arrived = JOB.validate_json(job_line(sent))
        assert (arrived.until, arrived.scoring) == (sent.until, sent.scoring)
        for one, other in zip(arrived.runs, sent.runs, strict=True):
            assert (one.side, one.config, one.config.model_fields_set) == (
                other.side,
                other.config,
                other.config.model_fields_set,
            )


def test_what_ends_a_study_survives_its_way_back(small_base, tmp_path, monkeypatch):
    job = a_job(write_study(tmp_path, small_base), tmp_path / "out")
    for error in (ResourceError("the disk is full.", fix="x"), Stopped("stop", signal=15)):

        def fails(job: Job, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("lorica.compare.worker.run_job", fails)
        with pytest.raises(type(error)) as raised:
            result_of(do_line(job_line(job)))
        assert getattr(raised.value, "exit_code") == getattr(error, "exit_code")  # noqa: B009


@pytest.mark.parametrize(
    ("runs", "at_once", "sizes"),
    [
        (1, 2, [1]),
        (3, 2, [1, 2]),
        (6, 1, [6]),
        (6, 2, [3, 3]),
        (13, 2, [3, 3, 3, 4]),
        (7, 1, [3, 4]),
    ],
)
def test_there_is_a_pass_for_each_worker(small_base, tmp_path, runs, at_once, sizes):
    planned = prepare(*read_study(write_study(tmp_path, small_base)), tmp_path / "out")
    side = planned.sides[0]
    units = [run_of(side, tmp_path / f"{i}", 1e-3, i, 2) for i in range(runs)]
    passes = group(units, 6, at_once)
    assert [len(members) for members in passes] == sizes
    assert [unit for members in passes for unit in members] == units


@pytest.fixture(scope="session")
def two_workers(whole_study, tmp_path_factory: pytest.TempPathFactory):
    """The result of the small study with two workers."""
    folder = tmp_path_factory.mktemp("workers")
    with pytest.MonkeyPatch.context() as patch:
        fix_costs(patch)
        return run(whole_study[0], folder / "out", workers=2)


@pytest.mark.slow
def test_two_workers_give_the_result_of_one_process(whole_study, two_workers):
    """To the last digits: one process trains other runs in one pass."""
    for one, other in zip(whole_study[2].sides, two_workers.sides, strict=True):
        for a, b in zip(one.finals, other.finals, strict=True):
            assert (a.seed, a.learning_rate) == (b.seed, b.learning_rate)
            assert a.scores["loss"].value == pytest.approx(b.scores["loss"].value, rel=1e-4)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(
    whole_study, two_workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As the system does where memory is full: the first worker, in its first job."""
    path, _, _ = whole_study
    fix_costs(monkeypatch)
    start, started = Worker.start, list[Worker]()

    def start_and_kill(threads: int) -> Worker:
        started.append(worker := start(threads))
        if len(started) == 1:
            worker.process.kill()
        return worker

    monkeypatch.setattr(Worker, "start", start_and_kill)
    result = run(path, tmp_path / "out", workers=2)
    assert len(started) == 3
    assert without_costs(result) == without_costs(two_workers)


def fake_worker(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let `script` stand for a worker."""
    popen = subprocess.Popen

    def start(command: list[str], **options: object) -> object:
        return popen([sys.executable, "-c", script], **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "Popen", start)


def test_a_worker_that_is_killed_twice_ends_the_study(small_base, tmp_path, monkeypatch):
    job = a_job(write_study(tmp_path, small_base), tmp_path / "out")
    fake_worker(monkeypatch, "import os; input(); os.kill(os.getpid(), 9)")
    with worker_processes(2, 1) as executor, pytest.raises(ResourceError) as raised:
        executor.run(job)
    assert "killed by SIGKILL" in str(raised.value) and "--workers 1" in str(raised.value)


def test_a_mistake_in_a_worker_is_not_tried_again(small_base, tmp_path, monkeypatch):
    job = a_job(write_study(tmp_path, small_base), tmp_path / "out")
    fake_worker(monkeypatch, "input(); raise KeyError('lost')")
    with worker_processes(2, 1) as executor, pytest.raises(RuntimeError, match="KeyError: 'lost'"):
        executor.run(job)
    assert isinstance(executor, WorkerProcesses) and len(executor.workers) == 1


def test_a_signal_to_one_worker_gives_its_job_to_another(small_base, tmp_path, monkeypatch):
    job = a_job(write_study(tmp_path, small_base), tmp_path / "out")
    answer = """print('lorica: {"stopped": "stopped by SIGTERM", "signal": 15}', flush=True)"""
    fake_worker(monkeypatch, f"import sys\nfor _ in sys.stdin: {answer}")
    with worker_processes(2, 1) as executor, pytest.raises(ResourceError, match="twice") as raised:
        executor.run(job)
    assert "stopped by SIGTERM" in str(raised.value)


def test_what_a_library_prints_is_no_answer(small_base, tmp_path, monkeypatch):
    job = a_job(write_study(tmp_path, small_base), tmp_path / "out")
    result = '{"records": [], "training": 1.0, "recording": 2.0}'
    fake_worker(monkeypatch, f"input(); print('{{1}} hello'); print('lorica: {result}')")
    with worker_processes(2, 1) as executor:
        assert executor.run(job) == JobResult([], 1.0, 2.0)


def test_a_worker_that_hangs_is_killed_after_a_signal(small_base, tmp_path, monkeypatch):
    """A stopped process does not end at SIGTERM."""
    job = a_job(write_study(tmp_path, small_base), tmp_path / "out")
    script = "import signal, time; signal.signal(15, signal.SIG_IGN); input(); time.sleep(600)"
    fake_worker(monkeypatch, script)
    monkeypatch.setattr(executor_module, "GRACE", 0.5)
    with worker_processes(2, 1) as executor, ThreadPoolExecutor(1) as threads:
        future = threads.submit(executor.run, job)
        while not executor.workers:  # type: ignore[attr-defined]
            time.sleep(0.01)
        executor.stop()
        with pytest.raises(Stopped):
            future.result(timeout=60)


@pytest.mark.slow
def test_files_beside_the_study_are_not_imported(small_base, tmp_path, monkeypatch):
    """Python puts the working directory first where a module is run by its name."""
    path = write_study(tmp_path, small_base)
    (tmp_path / "statistics.py").write_text("raise SystemExit('mine')")
    monkeypatch.chdir(tmp_path)
    side = prepare(*read_study(path), tmp_path / "out").sides[0]
    cost = measure_cost(side, tmp_path / "runs")
    assert "error" not in cost, cost
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.slow
def test_a_cost_that_cannot_be_measured_says_why(small_base, tmp_path):
    sides = {"hot": {"method": "full", "learning_rate": 1e12}}
    path = write_study(tmp_path, small_base, sides=sides, train={"max_steps": 30})
    side = prepare(*read_study(path), tmp_path / "out").sides[0]
    assert "the loss is nan" in measure_cost(side, tmp_path / "runs")["error"]


@pytest.mark.parametrize(
    ("asked", "before", "size", "threads"),
    [(None, None, 1, 4), (2, None, 2, 2), (8, None, 8, 1), (None, (2, 3), 2, 3), (4, (8, 1), 4, 1)],
)
def test_a_study_keeps_its_workers(
    small_base, tmp_path, monkeypatch, asked, before, size: int, threads: int
):
    """Where another number is asked for, the cores of this machine are shared anew."""
    planned = prepare(*read_study(write_study(tmp_path, small_base)), tmp_path / "out")
    planned.folder.mkdir()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr("lorica.compare.executor_for._workers", lambda *_: 1)
    records = planned.records._records
    records.append({"kind": "start", "notices": []})
    monkeypatch.setattr(planned.records, "append", records.extend)
    if before is not None:
        record = {"kind": "workers", "size": before[0], "threads": before[1]}
        records.append(record)
    with executor_for(planned, asked, None) as executor:
        assert executor.size == size
    workers = planned.records.last("workers")
    assert workers is not None and (workers["size"], workers["threads"]) == (size, threads)


STUDY = """
import sys
import threading
from pathlib import Path
import pytest
from lorica.cli import main
from tests.compare.study_files import fix_costs
fix_costs(pytest.MonkeyPatch())
sys.argv = ["lorica", "compare", *sys.argv[1:]]
main()
"""


def study_words(path: Path, output: Path) -> list[str]:
    return [sys.executable, "-c", STUDY, str(path), "--output", str(output), "--workers", "2"]


@pytest.fixture(scope="module")
def ended(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A study, and what it comes to if nothing stops it."""
    folder = tmp_path_factory.mktemp("study")
    path = write_study(folder, small_base, train={"max_steps": 120, "micro_batch_size": 4})
    subprocess.run(study_words(path, folder / "whole"), check=True, capture_output=True)
    return path, without_costs(study_result(folder / "whole"))


@pytest.mark.slow
@pytest.mark.parametrize("number", at_length(SIGNALS, SIGNALS[::2]))
def test_a_stopped_study_leaves_no_worker_and_goes_on(
    ended: tuple[Path, dict], tmp_path: Path, number: signal.Signals
):
    path, result = ended
    out = tmp_path / "out"
    words = study_words(path, out)
    study = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    while not list(out.glob("runs/search-*/events.jsonl")) and study.poll() is None:
        time.sleep(0.05)
    workers = children(study.pid)
    study.send_signal(number)
    _, errors = study.communicate(timeout=60)
    assert study.returncode == (-9 if number == signal.SIGKILL else 128 + number), errors
    if number != signal.SIGKILL:
        assert "--resume" in errors
    assert len(workers) == 2
    deadline = time.monotonic() + 30
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, workers))
    subprocess.run([*words, "--resume"], check=True, capture_output=True)
    assert without_costs(study_result(out)) == result


def children(pid: int) -> list[int]:
    processes = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [process for process in processes if (stat_of(process) or ["", "0"])[1] == str(pid)]


def is_alive(pid: int) -> bool:
    return (stat_of(pid) or ["Z"])[0] != "Z"


def stat_of(pid: int) -> list[str] | None:
    """State and parent of a process; None: it is gone."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    return None


@pytest.mark.slow
def test_a_study_on_ray_whose_worker_is_killed_ends_right(
    whole_study, two_workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A local cluster of two workers; the first one that trains is killed."""
    path, _, _ = whole_study
    fix_costs(monkeypatch)
    killed: list[int] = []
    out = tmp_path / "out"

    def kill_one() -> None:
        while not list(out.glob("runs/search-*/events.jsonl")):
            time.sleep(0.02)
        pid = next(iter(ray_workers()))
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    result = run(path, out, ray="local", workers=2)
    assert killed
    assert without_costs(result) == without_costs(two_workers)


def ray_workers() -> Iterator[int]:
    """Processes of Ray that do a job: it names them by it."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if path.read_bytes().startswith(b"ray::do_line_in"):
                yield int(path.parent.name)


@pytest.mark.slow
def test_a_cluster_that_does_not_answer_is_named(
    whole_study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fix_costs(monkeypatch)
    with pytest.raises(ResourceError, match=r"cluster at '127\.0\.0\.1:9' does not answer"):
        run(whole_study[0], tmp_path / "out", ray="127.0.0.1:9")
