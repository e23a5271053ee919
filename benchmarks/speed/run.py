"""Rounds of all sides of a section, their gates, and what came out as JSON."""

import argparse
import json
import math
import platform
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import benchmarks.speed as package
from benchmarks.speed import page
from benchmarks.speed.process import Process, SideError
from benchmarks.speed.sections import SECTIONS, Section

RESULTS = Path(__file__).parents[1] / "results/speed.json"
CLOSE = {"float32": 1e-4, "bfloat16": 5e-2}
"""How far the gradients of sides that do the same work may be apart, of their length."""


def measured(section: Section, rounds: int) -> dict[str, Any]:
    """All figures of a section: of every round, and what gates said."""
    missing = section.missing()
    for name in missing:
        print(f"{name} is left out: not installed (see benchmarks/speed/peers)", file=sys.stderr)
    failed: list[str] = []
    processes: dict[str, Process] = {}
    found: dict[str, Any] = {}
    try:
        for side in section.sides:  # one by one: the time until the first step is measured
            if side.name not in missing:
                first = next(iter(processes.values()), None) if section.together else None
                process = Process(side, beside=first, keeps_heap=section.together)
                try:
                    built = process("build", side=side.as_dict())
                except SideError as error:
                    failed.append(str(error))
                    print(f"left out: {error}", file=sys.stderr)
                    if first is None:
                        process.close()
                    continue
                processes[side.name] = process
                found[side.name] = {"kind": side.kind, "rounds": [], **built}
        gates = gated(processes)
        if section.together:
            next(iter(processes.values()))("reserve")
        draw = random.Random(0)
        for number in range(rounds):
            names = draw.sample(list(processes), len(processes))
            for name in names:
                found[name]["rounds"].append(processes[name]("steps", warm=section.together))
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        for name, process in processes.items():
            found[name]["memory"] = process("memory")["bytes"]
            if not section.together:
                process.close()  # all peaks together do not fit
    finally:
        for process in processes.values():
            process.close()
    return {
        "machine": machine(),
        "sides": found,
        "gates": gates,
        "missing": missing,
        "failed": failed,
    }


def gated(processes: dict[str, Process]) -> list[str]:
    """Sides that say they do the same work give the same loss and gradients, or the run ends."""
    from safetensors.torch import load_file

    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for word in dict.fromkeys(p.side.gate for p in processes.values() if p.side.gate):
            group = [p for p in processes.values() if p.side.gate == word]
            files = [f"{folder}/{word}-{i}" for i in range(len(group))]  # they stay mapped
            (first, loss, wanted), *rest = [
                (p, p("gate", file=file)["loss"], load_file(file))
                for p, file in zip(group, files, strict=True)
            ]
            for process, other, gradients in rest:
                far = apart(wanted, gradients)
                line = (
                    f"{first.side.name} and {process.side.name}: loss {loss:.6f} and "
                    f"{other:.6f}, relative difference of the gradients {far:.1e}"
                )
                print(line, file=sys.stderr, flush=True)
                close = CLOSE[process.side.dtype]
                if not (far <= close and abs(other - loss) <= close):
                    raise SystemExit(f"not the same work: {line}")
                lines.append(line)
    return lines


def apart(wanted: dict[str, Any], gradients: dict[str, Any]) -> float:
    """The worst tensor's distance, of its length; infinite where one is missing, 0 or no number."""
    if wanted.keys() != gradients.keys():
        return math.inf
    far = [float((gradients[k] - g).norm() / g.norm()) for k, g in wanted.items()]
    return max(math.inf if math.isnan(one) else one for one in far)


def machine() -> dict[str, Any]:
    import torch

    said = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in said if line.startswith("model name")]
    flags = next((line.split() for line in said if line.startswith("flags")), [])
    return {
        "processor": (models or [platform.processor()])[0],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "bf16": [word for word in ("avx512_bf16", "amx_bf16") if word in flags],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description=package.__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--only", nargs="*", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--sides", nargs="*", help="some sides of the sections, by name")
    parser.add_argument("--dtype", default="float32", choices=list(CLOSE))
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--write", type=Path, help="write the page from the JSON, and end")
    words = parser.parse_args()
    known: dict[str, Any] = json.loads(words.out.read_text()) if words.out.is_file() else {}
    if words.write:
        page.write(known, words.write)
        return
    known_sides = [side.name for name in words.only for side in SECTIONS[name].sides]
    if unknown := set(words.sides or ()).difference(known_sides):
        parser.error(f"no side of these sections: {', '.join(sorted(unknown))}")
    for name in words.only:
        section = SECTIONS[name].some(words.dtype, words.sides)
        if not section.sides:
            continue
        found = {"section": name, "dtype": words.dtype, **measured(section, words.rounds)}
        known[f"{name}, {words.dtype}"] = found
        if not words.sides:
            words.out.write_text(json.dumps(known, indent=1) + "\n")
        print("\n".join(page.section(found)))
