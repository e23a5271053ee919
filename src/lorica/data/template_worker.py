"""The process that renders templates, as its parent sees it: started when needed, killed when late.

One worker serves a process; a lock lets threads take turns, and a forked child starts its own.
It ends with its parent, whose end closes the pipe that it reads from.
"""

import atexit
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from lorica.data import template_sandbox

PATIENCE = 20.0  # seconds without a sign of life; the kernel's limit is usually first
AT_ONCE = 64  # jobs a request
KEPT = ("TZ", "LANG", "LC_ALL", "LC_TIME", "LD_LIBRARY_PATH")  # of the environment


@dataclass(frozen=True)
class Compiled:
    """What is known of a template without rendering it."""

    marks: bool  # it has {% generation %} blocks
    variables: frozenset[str]  # that it reads
    words: frozenset[str]  # its string literals


class Overrun(Exception):
    """A template took too much time or memory, and was stopped."""


class Refused(Exception):
    """A template cannot be read; the line of it where that is known."""

    def __init__(self, why: str, line: int | None):
        super().__init__(why)
        self.line = line


class Worker:
    """The process and its pipes. Every method is safe to call from several threads."""

    def __init__(
        self,
        seconds: int = template_sandbox.SECONDS,
        memory: int = template_sandbox.MEMORY,
        patience: float = PATIENCE,
    ) -> None:
        """seconds of processor time, and of silence (patience); bytes of memory."""
        self._seconds, self._memory, self._patience = seconds, memory, patience
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers: dict[str, tuple[int, Compiled]] = {}
        self._buffer = b""

    def compile(self, source: str) -> Compiled:
        """Raises: Refused for a template that is no Jinja; Overrun."""
        with self._lock:
            return self._compiled(source)[1]

    def render(
        self, source: str, shared: dict[str, Any], jobs: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """The answer to each job, in order; a rendering that fails has "refused": why.

        shared: variables of every job. A job is {"given": variables, "cuts": [...]}.
        Raises: Refused for a template that is no Jinja; Overrun; ValueError, RecursionError for
            variables that are no JSON.
        """
        answers: list[dict[str, Any]] = []
        with self._lock:
            for start in range(0, len(jobs), AT_ONCE):
                part = jobs[start : start + AT_ONCE]
                number, _ = self._compiled(source)
                request = {"template": number, "shared": shared, "jobs": part}
                answers += self._exchange(request, len(part))
        return answers

    def close(self) -> None:
        """End the process, whatever it does."""
        process, self._process, self._numbers, self._buffer = self._process, None, {}, b""
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what was not written yet has no reader
                    pipe.close()

    def _compiled(self, source: str) -> tuple[int, Compiled]:
        if source not in self._numbers or self._process is None:
            (answer,) = self._exchange({"compile": source}, 1)
            if "refused" in answer:
                raise Refused(answer["refused"], answer["line"])
            known = Compiled(
                answer["marks"], frozenset(answer["variables"]), frozenset(answer["words"])
            )
            self._numbers[source] = answer["template"], known
        return self._numbers[source]

    def _exchange(self, request: dict[str, Any], answers: int) -> list[dict[str, Any]]:
        line = json.dumps(request, default=str).encode() + b"\n"
        process = self._process or self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(line)
            process.stdin.flush()
            received = [json.loads(self._line(process)) for _ in range(answers)]
        except BrokenPipeError:
            raise self._ended(process) from None
        except BaseException:  # an interrupt leaves answers in the pipe that nobody waits for
            self.close()
            raise
        if reason := next((a["overrun"] for a in received if "overrun" in a), None):
            self.close()  # what it took of the memory goes with it
            raise Overrun(reason)
        return received

    def _start(self) -> subprocess.Popen[bytes]:
        """Plain Python with jinja2 alone: neither this package nor its environment enters."""
        script = Path(template_sandbox.__file__)
        paths = [str(Path(str(m.__file__)).parents[1]) for m in (jinja2, markupsafe)]
        code = (
            f"import sys, runpy; sys.path += {paths!r}; "
            f"runpy.run_path({str(script)!r}, run_name='__main__')"
        )
        environment = {name: os.environ[name] for name in KEPT if name in os.environ}
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

    def _line(self, process: subprocess.Popen[bytes]) -> bytes:
        """The next line that is not empty. Raises: Overrun if the process ends, or is silent."""
        assert process.stdout is not None
        while True:
            line, newline, rest = self._buffer.partition(b"\n")
            if newline:
                self._buffer = rest
                if line:
                    return line
                continue
            self._buffer += self._received(process)

    def _received(self, process: subprocess.Popen[bytes]) -> bytes:
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
                    raise self._ended(process)
                pieces.append(piece)
        return b"".join(pieces)

    def _ended(self, process: subprocess.Popen[bytes]) -> Overrun:
        status = process.wait()
        self.close()
        if status == -signal.SIGXCPU:
            return Overrun(f"it takes more than {self._seconds} s of processor time for one text")
        return Overrun(
            f"its process ended with status {status}: it may have needed more than "
            f"{self._memory >> 20:,} MiB of memory"
        )


_worker = Worker()


def compile_template(source: str) -> Compiled:
    """`Worker.compile` in this process's worker."""
    return _worker.compile(source)


def render_all(
    source: str, shared: dict[str, Any], jobs: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """`Worker.render` in this process's worker."""
    return _worker.render(source, shared, jobs)


def _forget() -> None:
    """In a forked child: the worker and its pipes are the parent's."""
    global _worker
    _worker = Worker()


atexit.register(lambda: _worker.close())
os.register_at_fork(after_in_child=_forget)
