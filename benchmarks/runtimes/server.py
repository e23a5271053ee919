"""Start the server of a runtime in its own environment, and end it."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.runtimes import HERE, interpreter

SECONDS = 20
"""How long a server may take to end."""


@contextmanager
def serving(runtime: str, *arguments: str | Path, log: Path) -> Iterator[str]:
    """Inside the block <runtime>_server.py runs with `arguments`; the address of its API.

    log: a file for what it writes to stderr. Raises: RuntimeError with its end if the server does
        not start.
    """
    python = interpreter(runtime)
    if python is None:
        raise RuntimeError(f"run python -m benchmarks.runtimes.install {runtime} first")
    command: Sequence[str] = [str(python), str(HERE / f"{runtime}_server.py"), *map(str, arguments)]
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            assert process.stdout is not None and process.stdin is not None
            address = next((line for line in process.stdout if line.startswith("http")), "")
            if not address:
                process.wait()
                tail = log.read_text(errors="replace").splitlines()[-12:]
                raise RuntimeError("\n".join([f"{runtime} did not start", *tail]))
            yield address.strip()
        finally:
            process.stdin.close()  # type: ignore[union-attr]
            try:
                process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()  # type: ignore[union-attr]
