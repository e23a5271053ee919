"""The executor of a study: this process, its workers and how many, or a Ray cluster."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from lorica.compare.executor import Executor, InProcess, worker_processes
from lorica.compare.ray_executor import ray_cluster
from lorica.compare.study_run import StudyRun
from lorica.errors import counted
from lorica.plan.devices import this_cpu
from lorica.training.placement import choose_placement

MAX_WORKERS = 8
"""However many cores there are: each worker has a base of its own."""
MEMORY_SHARE = 0.7
"""Of the machine's memory that the passes of all workers may need."""


@contextmanager
def executor_for(run: StudyRun, size: int | None, ray: str | None) -> Iterator[Executor]:
    """What does the jobs: as many workers as the study has begun with, if not told otherwise."""
    before, threads = run.records.last("workers"), torch.get_num_threads()
    each = None
    if before is not None and size in (None, before["size"]):
        size, each = before["size"], before["threads"]
    if ray is not None:
        with ray_cluster(ray, size) as cluster:
            _record_workers(run, cluster.size, 1)
            yield cluster
        return
    size = size or _workers(run, threads)
    each = threads if size == 1 else each or max(threads // size, 1)
    _record_workers(run, size, each)
    with nullcontext(InProcess()) if size == 1 else worker_processes(size, each) as executor:
        yield executor


def _record_workers(run: StudyRun, size: int, threads: int) -> None:
    """size, threads: they decide how sums are rounded, so that a change of them is noticed."""
    before, record = run.records.last("workers"), {"size": size, "threads": threads}
    words = f"{counted(size, 'worker')} of {counted(threads, 'thread')}"
    if before is None:
        run.records.append([{"kind": "workers", **record}])
    elif before | record != before:
        start = run.records.last("start") or {}
        notice = f"a part was run with {words}, which may round sums differently"
        run.records.append([{"kind": "workers", **record}, {**start, "notices": [notice]}])


def _workers(run: StudyRun, threads: int) -> int:
    """How many workers this machine has cores and memory for."""
    if choose_placement(run.sides[0].config).device.type != "cpu":
        return 1
    costs = [run.records.last("cost", side=side.name) or {} for side in run.sides]
    alone = max(cost.get("peak_memory_bytes") or 0 for cost in costs)
    memory = this_cpu().memory_bytes
    fits = int(MEMORY_SHARE * memory / (run.size * alone)) if memory and alone else threads
    return max(1, min(threads, fits, MAX_WORKERS))
