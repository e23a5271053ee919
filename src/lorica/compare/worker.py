"""A worker process of a study: each line of stdin is a job, each line of stdout what it came to.

When the process that started it ends, so does this one.
"""

import json
import os
from io import FileIO
from queue import SimpleQueue
from threading import Thread
from typing import Any

from pydantic import TypeAdapter

from lorica.compare.job_records import JobResult, run_job
from lorica.compare.training_jobs import Job
from lorica.errors import ResourceError, Stopped

JOB = TypeAdapter(Job)
RESULT = b"lorica: "
"""Begins the line of a result; any other line was printed by a library as it was imported."""


def main() -> None:
    """Do jobs until stdin ends."""
    with os.fdopen(os.dup(1), "wb") as results:
        os.dup2(2, 1)
        jobs: SimpleQueue[bytes] = SimpleQueue()
        # unbuffered, for the lock of a buffer would be in the way as this process ends
        stream = os.fdopen(os.dup(0), "rb", buffering=0)
        Thread(target=_read, args=(stream, jobs), daemon=True).start()
        while True:
            results.write(RESULT + do_line(jobs.get()).encode() + b"\n")
            results.flush()


def _read(stream: FileIO, jobs: SimpleQueue[bytes]) -> None:
    """Beside the jobs, so that an orphan ends in the middle of one."""
    for line in stream:
        jobs.put(line)
    os._exit(0)


def job_line(job: Job) -> bytes:
    """A job as a line."""
    return JOB.dump_json(job, exclude_unset=True) + b"\n"


def do_line(line: bytes) -> str:
    """Do the job of a line. Returns: its result as a line, or the error that ends the study."""
    try:
        result = run_job(JOB.validate_json(line))
    except Stopped as error:
        return json.dumps({"stopped": error.what, "signal": error.facts.get("signal", 0)})
    except ResourceError as error:
        return json.dumps({"error": error.what, "fix": error.fix})
    return json.dumps(vars(result))


def result_of(line: bytes | str) -> JobResult:
    """The result in a line. Raises: ResourceError, Stopped: what the job has raised."""
    values: dict[str, Any] = json.loads(line)
    if "stopped" in values:
        raise Stopped(values["stopped"], signal=values["signal"])
    if "error" in values:
        raise ResourceError(values["error"], fix=values["fix"])
    return JobResult(**values)


if __name__ == "__main__":
    main()
