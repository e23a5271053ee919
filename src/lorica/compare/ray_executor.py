"""The jobs of a study on a Ray cluster, or on workers that Ray starts here (`--ray`).

Lorica, the base and the rows must be on every machine at the same places. A run goes on from its
checkpoint where the machines share the study's folder, and begins anew where they do not.
"""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from lorica.compare.executor import ATTEMPTS, Executor
from lorica.compare.job_records import JobResult
from lorica.compare.training_jobs import Job
from lorica.compare.worker import do_line, job_line, result_of
from lorica.errors import MissingError, ResourceError, Stopped, counted

ANSWER_SECONDS = 10
"""Until an address that does not answer is given up."""
LOCAL = "local"
"""The address that starts a cluster on this machine."""


class RayCluster:
    """size: jobs at once, each with a GPU of its own if the cluster has any, else with a core."""

    def __init__(self, ray: ModuleType, most: int | None) -> None:
        resources = ray.cluster_resources()
        device = "GPU" if resources.get("GPU") else "CPU"
        self.size = max(1, min(int(resources.get(device, 1)), most or 10**6))
        needs = {"num_cpus": 1, "num_gpus": 1 if device == "GPU" else 0}
        self.ray, self.running, self.stopping = ray, set[Any](), False
        self.task = ray.remote(**needs, max_retries=ATTEMPTS - 1)(do_line_in)

    def run(self, job: Job) -> JobResult:
        for attempt in range(ATTEMPTS):
            try:
                return self._run(job)
            except Stopped:  # perhaps a signal to that worker alone
                if self.stopping or attempt == ATTEMPTS - 1:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _run(self, job: Job) -> JobResult:
        task = self.task.remote(job_line(job), os.getcwd())
        self.running.add(task)
        try:
            return result_of(self.ray.get(task))
        except self.ray.exceptions.RayError as error:
            if self.stopping:
                raise Stopped("the study was stopped.") from None
            if isinstance(error, self.ray.exceptions.RayTaskError):
                raise RuntimeError(f"a worker failed: {error.cause!r}") from error
            raise ResourceError(
                f"Ray could not do {counted(len(job.runs), 'run')}: {str(error).splitlines()[0]}",
                fix="look at the machines of the cluster, and go on with --resume",
            ) from None
        finally:
            self.running.discard(task)

    def stop(self) -> None:
        self.stopping = True
        for task in list(self.running):
            self.ray.cancel(task)  # as Ctrl-C


def do_line_in(line: bytes, folder: str) -> str:
    """Do the job of a line, whose paths are relative to `folder`."""
    with suppress(OSError):  # not on this machine: then all paths of the job are absolute
        os.chdir(folder)
    return do_line(line)


def check_ray(address: str) -> None:
    """Whether there is a cluster, as far as is known at once: Ray itself waits for minutes.

    Raises: MissingError without the package; ResourceError if nothing answers there.
    """
    if find_spec("ray") is None:
        raise MissingError("--ray needs the package ray.", fix="pip install 'lorica[ray]'")
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _no_answer(address, error) from None


def _no_answer(address: str, error: Exception) -> ResourceError:
    return ResourceError(
        f"the Ray cluster at {address!r} does not answer: {str(error).splitlines()[0]}",
        fix="give the address of a running cluster, or --ray local for workers on this machine",
    )


@contextmanager
def ray_cluster(address: str, workers: int | None) -> Iterator[Executor]:
    """The cluster at `address` during the block. workers: at most so many at once.

    Raises: MissingError without the package; ResourceError if the cluster does not answer.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no figures about users to its makers
    check_ray(address)
    import ray

    here: dict[str, Any] = {}
    if address == LOCAL:  # at the priority of this process, not at Ray's lower one
        here = {"num_cpus": workers, "include_dashboard": False}
        here["_system_config"] = {"worker_niceness": 0}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **here)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise _no_answer(address, error) from None
    try:
        yield RayCluster(ray, workers)
    finally:
        ray.shutdown()
