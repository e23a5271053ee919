"""Runtimes that adapters are handed over to, each in an environment of its own.

    python -m benchmarks.runtimes.install llamacpp     xllamacpp, and llama.cpp's own converter
    python -m benchmarks.runtimes.install vllm         vLLM for the CPU: 3.5 GB, five minutes
    python -m benchmarks.runtimes.install foreign      mlx-lm, LitGPT, torchtune: what they write

<name>.txt pins what is installed into .runtimes/<name>. <name>_server.py is run by its interpreter
and serves OpenAI's API on this machine alone; server.py starts it from here.
"""

from pathlib import Path

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / ".runtimes"
READY = ".ready"
"""A file that an environment has once its installation came to its end."""


def interpreter(runtime: str) -> Path | None:
    """Of the environment of `runtime`; None if it is not installed."""
    folder = FOLDER / runtime
    return folder / "bin/python" if (folder / READY).is_file() else None
