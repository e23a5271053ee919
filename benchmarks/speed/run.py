"""Rounds of all sides of a section, their gates, and what came out as JSON."""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.speed import page
from benchmarks.speed.sides import Side

RESULTS = Path(__file__).parents[1] / "results/speed.json"
LIBRARIES = ("torch", "transformers", "peft")
PEFT = {"config": "LoraConfig", "r": 16, "lora_alpha": 32}
LORA = {"name": "lora", "r": 16}
ADALORA = {"config": "AdaLoraConfig", "init_r": 16, "target_r": 8, "lora_alpha": 32, "tinit": 20,
           "tfinal": 500, "deltaT": 10, "total_step": 1000}  # fmt: skip
SAME = [
    Side("floor", "floor"),
    Side("LoRA", "lorica", LORA, gate="lora"),
    Side("PEFT LoRA", "peft", PEFT, gate="lora"),
    Side("LoRA, dropout", "lorica", {**LORA, "dropout": 0.05}, gate="lora"),
    Side("PEFT LoRA, dropout", "peft", {**PEFT, "lora_dropout": 0.05}, gate="lora"),
    Side("DoRA", "lorica", {**LORA, "name": "dora"}, gate="dora"),
    Side("PEFT DoRA", "peft", {**PEFT, "use_dora": True}, gate="dora"),
    Side("DoRA, dropout", "lorica", {**LORA, "name": "dora", "dropout": 0.05}, gate="dora"),
    Side("PEFT DoRA, dropout", "peft", {**PEFT, "use_dora": True, "lora_dropout": 0.05},
         gate="dora"),
    Side("AdaLoRA", "lorica", {"name": "adalora", "r": 16, "target_r": 8}),
    Side("PEFT AdaLoRA", "peft", ADALORA),
    Side("HyperLoRA, 8 conditions", "lorica", {"name": "hyperlora", "r": 16}),
    Side("LoRA on NF4", "lorica", {**LORA, "quantisation": "nf4"}),
    Side("full fine-tuning", "full"),
]  # fmt: skip
SHIPPED = [
    Side("PEFT, plain loop", "peft", PEFT, rows="random"),
    Side("PEFT, rows of like length", "peft", PEFT, rows="grouped"),
    Side("Lorica, no beginnings shared", "lorica trainer", LORA, rows="random"),
    Side("Lorica", "lorica trainer", {**LORA, "shared": True}, rows="random"),
]
SECTIONS = {"same work": SAME, "as shipped": SHIPPED}
CLOSE = {"float32": 1e-4, "bfloat16": 5e-2}
"""How far the gradients of sides that do the same work may be apart, of their length."""


class Process:
    """A side's process: asked in JSON, it answers in JSON."""

    def __init__(self, side: Side):
        self.side = side
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.speed.worker"], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def __call__(self, do: str, **words: Any) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({"do": do, **words}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.side.name}: its process ended ({self.process.wait()})")
        return json.loads(answer)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def section(sides: list[Side], rounds: int) -> dict[str, Any]:
    """All figures of a section. Ratios are to its first side."""
    processes = {side.name: Process(side) for side in sides}
    try:
        found: dict[str, Any] = {
            name: {"first_step": p("build", side=p.side.as_dict())["seconds"], "rounds": []}
            for name, p in processes.items()
        }
        gates = gated(processes)
        draw = random.Random(0)
        for number in range(rounds):
            names = draw.sample(list(processes), len(processes))
            for name in names:
                found[name]["rounds"].append(processes[name]("steps"))
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        for name, process in processes.items():
            found[name]["memory"] = process("memory")["bytes"]
    finally:
        for process in processes.values():
            process.close()
    return {"sides": {name: {**one, **summed(one, found[sides[0].name])}
                      for name, one in found.items()}, "gates": gates}  # fmt: skip


def summed(one: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    """Medians over the rounds: seconds, real tokens a second, and the ratio to the first side."""
    rates = [r["tokens"] / r["seconds"] for r in one["rounds"]]
    others = [r["tokens"] / r["seconds"] for r in first["rounds"]]
    ratios = [own / other for own, other in zip(rates, others, strict=True)]
    return {
        "seconds": statistics.median(r["seconds"] for r in one["rounds"]),
        "tokens_per_second": statistics.median(rates),
        "speed": statistics.median(ratios), "speed_range": [min(ratios), max(ratios)],
        "on_the_clock": statistics.median(r["wall"] / r["seconds"] for r in one["rounds"]),
    }  # fmt: skip


def gated(processes: dict[str, Process]) -> list[str]:
    """Sides that say they do the same work give the same loss and gradients, or the run ends."""
    from safetensors.torch import load_file

    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for word in dict.fromkeys(p.side.gate for p in processes.values() if p.side.gate):
            group = [p for p in processes.values() if p.side.gate == word]
            files = [f"{folder}/{word}-{i}" for i in range(len(group))]  # they stay mapped
            first, *rest = [(p, p("gate", file=file)["loss"], load_file(file))
                            for p, file in zip(group, files, strict=True)]  # fmt: skip
            for process, loss, gradients in rest:
                apart = max(
                    float((gradients[k] - g).norm() / g.norm()) for k, g in first[2].items()
                )
                line = (f"{first[0].side.name} and {process.side.name}: loss {first[1]:.6f} and "
                        f"{loss:.6f}, gradients {apart:.1e} of their length apart")  # fmt: skip
                print(line, file=sys.stderr, flush=True)
                close = CLOSE[process.side.dtype]
                if gradients.keys() != first[2].keys() or apart > close or (
                    abs(loss - first[1]) > close):  # fmt: skip
                    raise SystemExit(f"not the same work: {line}")
                lines.append(line)
    return lines


def machine() -> dict[str, Any]:
    import torch

    said = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in said if line.startswith("model name")]
    return {
        "processor": (models or [platform.processor()])[0],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "versions": {name: version(name) for name in LIBRARIES},
    }  # fmt: skip


def main() -> None:
    import benchmarks.speed as package

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=package.__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--only", nargs="*", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--sides", nargs="*", help="some sides of the sections, by name")
    parser.add_argument("--dtype", default="float32", choices=list(CLOSE))
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--write", type=Path, help="write the page from the JSON")
    words = parser.parse_args()
    known: dict[str, Any] = (
        json.loads(words.out.read_text()) if words.out.is_file() else {"sections": {}}
    )
    if words.write:
        page.write(known, words.write)
        return
    for name in words.only:
        sides = [replace(side, dtype=words.dtype) for side in SECTIONS[name]
                 if not words.sides or side.name in words.sides]  # fmt: skip
        known["sections"][f"{name}, {words.dtype}"] = section(sides, words.rounds)
        known["machine"] = machine()
        if not words.sides:
            words.out.write_text(json.dumps(known, indent=1) + "\n")
        print(page.table(name, known["sections"][f"{name}, {words.dtype}"]))
