"""Processes that render and tokenise chunks of rows; their results come back in order.

A worker is a fork: it has the tokenizer and the compiled templates as they are, and changes to them
stay its own. Chunks and results go through a pipe as JSON, and arrays as their bytes. A worker ends
when its pipe is closed, and so also with its parent.
"""

import gc
import json
import multiprocessing
import os
import signal
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from queue import SimpleQueue
from typing import Any

from lorica import errors
from lorica.errors import LoricaError, ResourceError

AHEAD = 2  # chunks of each worker that are read ahead
PARALLELISM = "TOKENIZERS_PARALLELISM"

Answer = tuple[Any, list[bytes]]
"""A value of JSON, and the bytes of arrays."""
Work = Callable[[Any], Answer]
"""From a value of JSON to an answer."""


class Workers:
    """`count` processes that do one work each. Use in a `with` block, which ends them."""

    def __init__(self, count: int, work: Work):
        self._count, self._work = count, work
        self._workers: list[tuple[ForkProcess, Connection]] = []
        self._idle = SimpleQueue[tuple[ForkProcess, Connection]]()

    def __enter__(self) -> "Workers":
        context = multiprocessing.get_context("fork")
        with _no_tokenizer_threads(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # on a fork beside threads
            for _ in range(self._count):
                ours, theirs = context.Pipe()
                inherited = [*(pipe for _, pipe in self._workers), ours]
                process = context.Process(
                    target=_serve, args=(theirs, inherited, self._work), daemon=True
                )
                process.start()
                theirs.close()
                self._workers.append((process, ours))
                self._idle.put((process, ours))
        return self

    def __exit__(self, *_: object) -> None:
        for process, _pipe in self._workers:
            process.kill()
        for process, pipe in self._workers:
            process.join()
            pipe.close()

    def map(self, chunks: Iterator[list[Any]]) -> Iterator[tuple[list[Any], Answer | None]]:
        """Each chunk with its answer, in order; None for a chunk that JSON would change.

        Raises: ResourceError if a worker ends; what the work raises, at the place of its chunk.
        """
        pending: deque[tuple[Any, Future[Answer] | None]] = deque()
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(self._count))
            stack.callback(self.__exit__)  # so that no thread waits for an answer
            for chunk in chunks:
                request = _request(chunk)
                future = None if request is None else pool.submit(self._call, request)
                pending.append((chunk, future))
                if len(pending) > AHEAD * self._count:
                    yield _first_result(pending)
            while pending:
                yield _first_result(pending)

    def _call(self, request: bytes) -> Answer:
        process, pipe = worker = self._idle.get()
        try:
            pipe.send_bytes(request)
            value, arrays = json.loads(pipe.recv_bytes())
            answer = value, [pipe.recv_bytes() for _ in range(arrays or 0)]
        except (EOFError, OSError):
            process.join()
            raise ResourceError(
                f"a process that tokenises rows ended with status {process.exitcode}: the system "
                "may have ended it to free memory.",
                fix="data.workers: 1, or a smaller number than now",
            ) from None
        finally:
            self._idle.put(worker)
        if arrays is None:
            raise _error_from(value)
        return answer


def _request(chunk: list[Any]) -> bytes | None:
    """The chunk as JSON; None if it has other values, such as the dates of a Parquet file."""
    try:
        request = json.dumps(chunk).encode()
    except (TypeError, ValueError, RecursionError):
        return None
    is_lines = all(type(text) is str and type(number) is int for number, text in chunk)
    return request if is_lines or _lists(json.loads(request)) == _lists(chunk) else None


def _lists(chunk: list[Any]) -> list[Any]:
    return [[*pair] for pair in chunk]


def _first_result(
    pending: deque[tuple[Any, Future[Answer] | None]],
) -> tuple[Any, Answer | None]:
    chunk, future = pending.popleft()
    return chunk, None if future is None else future.result()


def _serve(pipe: Connection, inherited: list[Connection], work: Work) -> None:
    """Answer requests until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in inherited:  # while one of them is open here, its worker does not see it closed
        other.close()
    gc.disable()
    while True:
        try:
            request = pipe.recv_bytes()
        except EOFError:
            return
        arrays: list[bytes] | None = None
        try:
            value, arrays = work(json.loads(request))
        except LoricaError as error:
            facts = {name: str(value) for name, value in error.facts.items()}
            value = type(error).__name__, error.what, error.fix, facts
        except Exception:
            value = "", traceback.format_exc(), None, {}
        try:
            pipe.send_bytes(json.dumps([value, None if arrays is None else len(arrays)]).encode())
            for array in arrays or ():
                pipe.send_bytes(array)
        except OSError:
            return


def _error_from(answer: Any) -> Exception:
    name, what, fix, facts = answer
    if not name:
        return RuntimeError(f"a process that tokenises rows failed:\n{what}")
    kind: type[LoricaError] = getattr(errors, name)
    return kind(what, fix=fix, **facts)


@contextmanager
def _no_tokenizer_threads() -> Iterator[None]:
    """Inside the block, forks have tokenizers without threads: the parent's do not run there."""
    before = os.environ.get(PARALLELISM)
    os.environ[PARALLELISM] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[PARALLELISM]
        else:
            os.environ[PARALLELISM] = before
