"""Start, talk to and stop the process that renders templates (`template_sandbox.py`).

A Python process has one worker. A lock lets its threads take turns; a forked child starts its
own. The worker ends with its parent: then the pipe that it reads from is closed.
"""

import atexit
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jinja2
import markupsafe

from lorica.data import template_sandbox

PATIENCE = 20.0  # seconds of silence after which it is killed; usually the kernel is first
JOBS_PER_REQUEST = 64
ENVIRONMENT = ("TZ", "LANG", "LC_ALL", "LC_TIME", "LD_LIBRARY_PATH")


@dataclass(frozen=True)
class Compiled:
    """The properties of a template that are known without rendering it."""

    marks: bool  # it has {% generation %} blocks
    variables: frozenset[str]  # the names that it reads
    words: frozenset[str]  # its string literals


class Overrun(Exception):
    """A template took too much time or memory, and was stopped."""


class Refused(Exception):
    """A template cannot be read. line: where in the template, if known."""

    def __init__(self, reason: str, line: int | None):
        super().__init__(reason)
        self.line = line


class Worker:
    """The process and its pipes. All methods are thread-safe."""

    def __init__(
        self,
        seconds: int = template_sandbox.SECONDS,
        memory: int = template_sandbox.MEMORY,
        patience: float = PATIENCE,
    ) -> None:
        """seconds: CPU time for one rendering. memory: bytes. patience: seconds of silence."""
        self._seconds, self._memory, self._patience = seconds, memory, patience
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers: dict[str, tuple[int, Compiled]] = {}
        self._buffer = b""

    def compile(self, source: str) -> Compiled:
        """Raises: Refused for a template that is not Jinja; Overrun."""
        with self._lock:
            return self._compiled(source)[1]

    def render(
        self, source: str, shared: dict[str, Any], jobs: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """The answer to each job, in order. A rendering that fails answers {"refused": reason}.

        shared: variables of every job. A job is {"given": variables, "cuts": [...]}.
        Raises: Refused for a template that is not Jinja; Overrun; ValueError, RecursionError for
            variables that are not JSON.
        """
        answers: list[dict[str, Any]] = []
        with self._lock:
            for start in range(0, len(jobs), JOBS_PER_REQUEST):
                batch = jobs[start : start + JOBS_PER_REQUEST]
                number, _ = self._compiled(source)
                request = {"template": number, "shared": shared, "jobs": batch}
                answers += self._exchange(request, len(batch))
        return answers

    def close(self) -> None:
        """Kill the process. The next call starts a new one."""
        process, self._process, self._numbers, self._buffer = self._process, None, {}, b""
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):  # buffered bytes that nobody reads any more
                    pipe.close()

    def _compiled(self, source: str) -> tuple[int, Compiled]:
        if source not in self._numbers or self._process is None:
            (answer,) = self._exchange({"compile": source}, 1)
            if "refused" in answer:
                raise Refused(answer["refused"], answer["line"])
            compiled = Compiled(
                answer["marks"], frozenset(answer["variables"]), frozenset(answer["words"])
            )
            self._numbers[source] = answer["template"], compiled
        return self._numbers[source]

    def _exchange(self, request: dict[str, Any], answers: int) -> list[dict[str, Any]]:
        line = json.dumps(request, default=str).encode() + b"\n"
        process = self._process or self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(line)
            process.stdin.flush()
            received = [json.loads(self._next_line(process)) for _ in range(answers)]
        except BrokenPipeError:
            raise self._end_error(process) from None
        except BaseException:  # an interrupt leaves unread answers in the pipe
            self.close()
            raise
        if reason := next((a["overrun"] for a in received if "overrun" in a), None):
            self.close()  # this frees the memory that the template took
            raise Overrun(reason)
        return received

    def _start(self) -> subprocess.Popen[bytes]:
        """Plain Python with only jinja2, without this package and without the environment."""
        script = Path(template_sandbox.__file__)
        paths = [str(Path(str(m.__file__)).parents[1]) for m in (jinja2, markupsafe)]
        code = (
            f"import sys, runpy; sys.path += {paths!r}; "
            f"runpy.run_path({str(script)!r}, run_name='__main__')"
        )
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", code, str(self._seconds), str(self._memory)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        return self._process

    def _next_line(self, process: subprocess.Popen[bytes]) -> bytes:
        """The next line that is not empty. Raises: Overrun if the process ends or is silent."""
        assert process.stdout is not None
        while True:
            line, newline, rest = self._buffer.partition(b"\n")
            if newline:
                self._buffer = rest
                if line:
                    return line
                continue
            self._buffer += self._read_available(process)

    def _read_available(self, process: subprocess.Popen[bytes]) -> bytes:
        assert process.stdout is not None
        pieces: list[bytes] = []
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not (pieces and pieces[-1].endswith(b"\n")):
                if not selector.select(self._patience):
                    self.close()
                    raise Overrun(f"it gave no sign of life for {self._patience:g} s")
                piece = os.read(process.stdout.fileno(), 1 << 20)
                if not piece:
                    raise self._end_error(process)
                pieces.append(piece)
        return b"".join(pieces)

    def _end_error(self, process: subprocess.Popen[bytes]) -> Overrun:
        status = process.wait()
        self.close()
        if status == -signal.SIGXCPU:
            return Overrun(f"it takes more than {self._seconds} s of processor time for one text")
        return Overrun(
            f"its process ended with status {status}: it may have needed more than "
            f"{self._memory >> 20:,} MiB of memory"
        )


class Renderer(Protocol):
    """What renders templates: a worker, or several."""

    def compile(self, source: str) -> Compiled: ...
    def render(
        self, source: str, shared: dict[str, Any], jobs: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]: ...


_worker = Worker()
_renderer: ContextVar[Renderer | None] = ContextVar("renderer", default=None)


@contextmanager
def rendering_by(renderer: Renderer) -> Iterator[None]:
    """Inside the block, on this thread, templates are rendered by `renderer`."""
    token = _renderer.set(renderer)
    try:
        yield
    finally:
        _renderer.reset(token)


def compile_template(source: str) -> Compiled:
    """`Worker.compile` in this process's worker, or in that of `rendering_by`."""
    return (_renderer.get() or _worker).compile(source)


def render_all(
    source: str, shared: dict[str, Any], jobs: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """`Worker.render` in this process's worker, or in that of `rendering_by`."""
    return (_renderer.get() or _worker).render(source, shared, jobs)


def _start_anew() -> None:
    """In a forked child: leave the worker and its pipes to the parent."""
    global _worker
    _worker = Worker()


atexit.register(lambda: _worker.close())
os.register_at_fork(after_in_child=_start_anew)
