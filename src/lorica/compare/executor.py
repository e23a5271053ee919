"""Where the jobs of a study are done: in this process, or in worker processes beside it.

One process cannot fill two cores with a small model; two workers with a core each can. A worker is
started by its command, and not as a copy of this process, which may be anybody's script.
"""

import os
import queue
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Event, Timer
from typing import IO, Protocol

from lorica.compare.job_records import JobResult, run_job
from lorica.compare.training_jobs import Job
from lorica.compare.worker import RESULT, job_line, result_of
from lorica.errors import ResourceError, Stopped, counted, listed

GRACE = 20.0
"""Seconds that a worker has to end at a signal; then it is killed."""
ATTEMPTS = 2
"""How often a job is begun whose worker is killed."""


class Executor(Protocol):
    """size: jobs that are done at once. `run` is called from as many threads."""

    size: int

    def run(self, job: Job) -> JobResult: ...

    def stop(self) -> None:
        """Let the jobs that are being done end at once, each with Stopped."""
        ...


class InProcess:
    """The jobs one after another. A signal reaches the training itself."""

    size = 1

    def run(self, job: Job) -> JobResult:
        return run_job(job)

    def stop(self) -> None:
        pass


@dataclass
class Worker:
    """A worker process (worker.py). errors: its stderr."""

    process: subprocess.Popen[bytes]
    errors: IO[bytes]

    @classmethod
    def start(cls, threads: int) -> "Worker":
        errors = tempfile.TemporaryFile()  # noqa: SIM115  (`end` closes it)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "lorica.compare.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            start_new_session=True,  # Ctrl-C is for this process, which passes it on once
        )
        return cls(process, errors)

    def do(self, job: Job) -> bytes:
        """The line of the result; b"" if the process has ended."""
        read, write = self.process.stdout, self.process.stdin
        assert read is not None and write is not None
        try:
            write.write(job_line(job))
            write.flush()
        except BrokenPipeError:
            return b""
        for line in read:
            if line.startswith(RESULT) and line.endswith(b"\n"):
                return line.removeprefix(RESULT)
        return b""

    def exit_reason(self) -> tuple[int, str]:
        """Its status, below 0 if a signal ended it, and why in words."""
        status = self.process.wait()
        if status < 0:
            return status, f"killed by {signal.Signals(-status).name}"
        self.errors.seek(0)
        return status, self.errors.read().decode(errors="replace").strip() or f"status {status}"

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.errors):
            if file is not None:
                with suppress(BrokenPipeError):
                    file.close()


@dataclass
class WorkerProcesses:
    """Workers on this machine. threads: of each."""

    size: int
    threads: int
    idle: queue.SimpleQueue[Worker] = field(default_factory=queue.SimpleQueue)
    workers: list[Worker] = field(default_factory=list)
    stopping: Event = field(default_factory=Event)

    def run(self, job: Job) -> JobResult:
        why = ""
        for _ in range(ATTEMPTS):
            worker = self._take()
            if line := worker.do(job):
                self.idle.put(worker)
                try:
                    return result_of(line)
                except Stopped as error:
                    if self.stopping.is_set():
                        raise
                    why = error.what  # a signal to this worker alone
                    continue
            if self.stopping.is_set():
                break
            status, why = worker.exit_reason()
            if status > 0:
                error = RuntimeError(f"a worker failed: {why.splitlines()[-1]}")
                error.add_note(why)
                raise error
        if self.stopping.is_set():
            raise Stopped("the study was stopped.")
        raise ResourceError(
            f"a worker was ended twice in the same {counted(len(job.runs), 'run')}, of "
            f"{listed(dict.fromkeys(run.side for run in job.runs))}: {why}.",
            fix="if its memory was full, go on with one worker: --resume --workers 1",
        )

    def stop(self) -> None:
        self.stopping.set()
        for worker in self.workers:
            worker.process.terminate()
        timer = Timer(GRACE, self._kill)  # one that hangs does not hear
        timer.daemon = True
        timer.start()

    def _kill(self) -> None:
        for worker in self.workers:
            worker.process.kill()

    def _take(self) -> Worker:
        with suppress(queue.Empty):
            return self.idle.get_nowait()
        self.workers.append(worker := Worker.start(self.threads))
        if self.stopping.is_set():  # `stop` may have come before it was listed
            worker.process.terminate()
        return worker


@contextmanager
def worker_processes(size: int, threads: int) -> Iterator[Executor]:
    """Workers that end with the block."""
    executor = WorkerProcesses(size, threads)
    try:
        yield executor
    finally:
        executor.stopping.set()
        for worker in executor.workers:
            worker.end()
