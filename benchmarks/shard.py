"""What each process holds when a base is sharded, beside one process that holds all of it.

    python -m benchmarks.shard
    python -m benchmarks.shard --layers 2 --width 64 --steps 2      small: the script works

A Llama with random weights is written to a temporary folder. One process trains LoRA on it; then
two processes train the same run with --shard, each on half of the rows of a step. Printed of every
process: bytes of its parameters, memory at the end of the last step and at its peak (VmRSS and
VmHWM, with mapped pages), and the median time of a step; at last how far the adapters are apart.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

WORDS = ["the", "cat", "saw", "a", "dog", "and", "bird", "ran", "to", "river", "near", "house"]


def main() -> None:
    parser = argparse.ArgumentParser(description="What each process holds when a base is sharded.")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--method", default="lora")
    parser.add_argument("--quantisation", default=None)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        train(json.loads(given.worker))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_base(folder / "base", given.layers, given.width)
        write_rows(folder / "rows.jsonl")
        print("| processes | process | parameters, MB | at the end, MB | peak, MB | step, s |")
        print("|---|---|---|---|---|---|")
        adapters = []
        for processes in (1, 2):
            measure(folder, processes, given)
            adapters.append(load_file(folder / f"run{processes}/adapter/adapter_model.safetensors"))
        one, two = adapters
        apart = max(float((one[key] - two[key]).abs().max()) for key in one)
        print(f"\nlargest difference of the adapters after {given.steps} steps: {apart:.1e}")


def measure(folder: Path, processes: int, given: argparse.Namespace) -> None:
    """Train in `processes` processes, and print a row for each."""
    settings = {
        "base": str(folder / "base"),
        "data": {"path": str(folder / "rows.jsonl"), "validation": 0},
        "method": {"name": given.method} | ({"r": 8} if given.method == "lora" else {}),
        "quantisation": given.quantisation,
        "learning_rate": 2e-4,
        "max_steps": given.steps,
        "micro_batch_size": 8 // processes,
        "shard": processes > 1,
        "output": str(folder / f"run{processes}"),
    }
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *launch, "-m", "benchmarks.shard", "--worker", json.dumps(settings)]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for row in sorted(rows, key=lambda row: row["process"]):
        sizes = " | ".join(f"{row[key] / 1e6:,.1f}" for key in ("parameters", "end", "peak"))
        print(f"| {processes} | {row['process']} | {sizes} | {row['seconds']:.2f} |")


def train(settings: dict[str, Any]) -> None:
    """Train one run in this process, and print what it took as a line of JSON."""
    from lorica.training.build import build_run
    from lorica.training.config import read, resolved
    from lorica.training.finish import finish
    from lorica.training.freed_memory import keep_freed_memory, return_freed_memory
    from lorica.training.loop import apply_update, begin, compute_gradients
    from lorica.training.placement import choose_placement
    from lorica.training.placement.sharded import local_bytes
    from lorica.training.prepare import load_rows
    from lorica.training.run import Run
    from lorica.training.step import stepper_for

    config = read(None, settings)
    if not torch.accelerator.is_available():  # as lorica.train does
        return_freed_memory() if config.shard else keep_freed_memory()
    placement = choose_placement(config)
    run = Run(Path(config.output), is_writer=placement.is_writer)
    if run.is_writer:
        run.create(resolved(config))
    placement.wait()
    state = build_run(config, load_rows(config), run, placement, show=False)
    stepper = stepper_for([state])
    state.shard()
    parameters, seconds = local_bytes(state.base.model), []
    begin(state, stepper)
    while not state.is_done:
        began = time.perf_counter()
        (outcome,) = compute_gradients([state], stepper)
        apply_update(state, outcome, 0.0)
        seconds.append(time.perf_counter() - began)
    end = memory("VmRSS")
    finish(state)
    state.close()
    row = {
        "process": int(os.environ.get("RANK", "0")),
        "parameters": parameters,
        "end": end,
        "peak": memory("VmHWM"),
        "seconds": statistics.median(seconds[1:] or seconds),
    }
    print(json.dumps(row), flush=True)


def memory(key: str) -> int:
    """Bytes of this process, from /proc; 0 outside of Linux."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), 0)


def write_base(folder: Path, layers: int, width: int) -> None:
    """A Llama with random weights and the tokenizer of the bundled base."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from lorica.base.load import load_tokenizer

    tokenizer = load_tokenizer("bundled")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=8 * width // 3,
        num_hidden_layers=layers,
        num_attention_heads=max(width // 64, 1),
        num_key_value_heads=max(width // 64, 1),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_rows(path: Path) -> None:
    rows = [
        {"prompt": " ".join(WORDS[i % 5 :]), "completion": " ".join(WORDS[: 4 + i % 9])}
        for i in range(64)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
