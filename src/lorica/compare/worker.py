"""A worker process of a study: each line of stdin is a job, each line of stdout what it came to.

When the process that started it ends, so does this one.
"""

import json
import os
import sys
from queue import SimpleQueue
from threading import Thread
from typing import Any, BinaryIO

from pydantic import TypeAdapter

from lorica.compare.job_records import JobResult, run_job
from lorica.compare.training_jobs import Job
from lorica.errors import ResourceError, Stopped

JOB = TypeAdapter(Job)


def main() -> None:
    """Do jobs until stdin ends."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what a library prints is no answer
        jobs: SimpleQueue[bytes] = SimpleQueue()
        Thread(target=_read, args=(sys.stdin.buffer, jobs), daemon=True).start()
        while True:
            print(answer(jobs.get()), file=answers, flush=True)


def _read(stream: BinaryIO, jobs: SimpleQueue[bytes]) -> None:
    """Beside the jobs, so that an orphan ends in the middle of one."""
    for line in stream:
        jobs.put(line)
    os._exit(0)


def question(job: Job) -> bytes:
    """A job as a line."""
    return JOB.dump_json(job, exclude_unset=True) + b"\n"


def answer(line: bytes) -> str:
    """Do the job of a line. Returns: its result as a line, or the error that ends the study."""
    try:
        result = run_job(JOB.validate_json(line))
    except Stopped as error:
        return json.dumps({"stopped": error.facts.get("signal", 0)})
    except ResourceError as error:
        return json.dumps({"error": error.what, "fix": error.fix})
    return json.dumps(vars(result))


def result_of(line: bytes | str) -> JobResult:
    """The result in an answer. Raises: ResourceError, Stopped: what the job has raised."""
    values: dict[str, Any] = json.loads(line)
    if "stopped" in values:
        raise Stopped("the study was stopped.", signal=values["stopped"])
    if "error" in values:
        raise ResourceError(values["error"], fix=values["fix"])
    return JobResult(**values)


if __name__ == "__main__":
    main()
