"""Serve a model folder and adapters by vLLM on the CPU, on a free port, until the input is closed.

Run by the environment's own interpreter: python vllm_server.py BASE [NAME=ADAPTER ...]
Prints its address. Each adapter is a model of its NAME; the base is the model "base".
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

SECONDS = 240
"""How long the server may take to answer: it imports for half a minute."""
SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as --max-lora-rank."""


def main(base: str, adapters: list[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", base]
    command += ["--served-model-name", "base", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "4"]
    command += ["--max-logprobs", "-1", "--enforce-eager"]
    if adapters:
        rank = max(_rank(Path(adapter.partition("=")[2])) for adapter in adapters)
        command += ["--enable-lora", "--max-loras", "1", "--max-cpu-loras", str(len(adapters))]
        command += ["--max-lora-rank", str(next(r for r in RANKS if r >= rank))]
        command += ["--lora-modules", *adapters]
    environment = {**os.environ, **SETTINGS}
    server = subprocess.Popen(command, env=environment, stdout=sys.stderr, stdin=subprocess.DEVNULL)
    threading.Thread(target=lambda: (sys.stdin.read(), server.terminate()), daemon=True).start()
    address = f"http://127.0.0.1:{port}"
    end = time.monotonic() + SECONDS
    while server.poll() is None and time.monotonic() < end:
        if _answers(address):
            print(address, flush=True)
            break
        time.sleep(0.5)
    else:
        server.terminate()
    server.wait()


def _rank(folder: Path) -> int:
    config = json.loads((folder / "adapter_config.json").read_text())
    return max([config["r"], *(config.get("rank_pattern") or {}).values()])


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=2) as reply:
            return reply.status == 200
    except OSError:
        return False


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
