"""Run the cases, one fresh process each, and keep what each cost as a line of JSON."""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

import benchmarks.plan as package
from benchmarks.plan import bases, page, rows
from benchmarks.plan.grid import CASES, OTHERS, Case
from lorica.plan.shapes import read_shapes
from lorica.plan.time import cpu_rates
from lorica.plan.tokens import count_tokens
from lorica.training.settings import TrainSettings

RESULTS = Path(__file__).parents[1] / "results/plan.jsonl"


class Failed(Exception):
    """A run did not end well."""


def write_recipe(case: Case, data: dict[str, str], base: str, folder: Path) -> Path:
    """The recipe of a case, whose run goes to folder/run."""
    kind = "conditions-" if case.method == "hyperlora" else ""
    settings = {
        "base": base,
        "data": {
            "path": data[f"{kind}train"],
            "validation": data[f"{kind}valid"],
            "max_length": 480,
            "overlong": "truncate",
        },
        **case.recipe(),
        "output": str(folder / "run"),
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def run(module: str, *words: str) -> int:
    """`python -m module words` in a fresh process. Returns: its peak of resident memory, bytes."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *words],
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise Failed(errors.read()[-2000:])
    return usage.ru_maxrss * 1024


def measure(case: Case, recipe: Path) -> dict[str, Any]:
    """What a run costs, and what was known before.

    peak: of resident memory, bytes. step_tokens: mean of the steps after the first. step_seconds:
    of the process, for so many tokens by the median step (in one step ALoRA tries all its ranks).
    counts: the tokens that `lorica plan` counts. rates: of this CPU. probe: the three steps of
    `--measure`, in a process of their own right after the run.
    """
    peak = run("benchmarks.plan.worker", str(recipe))
    lines = (recipe.parent / "run/events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    steps = [event for event in events if event["event"] == "step"]
    pairs = list(itertools.pairwise(steps))
    tokens = [b["tokens"] - a["tokens"] for a, b in pairs]
    spent = [b["process_seconds"] - a["process_seconds"] for a, b in pairs]
    per_token = statistics.median(s / n for s, n in zip(spent, tokens, strict=True))
    return {
        "name": case.name,
        "peak": peak,
        "events": [[e["event"], e["resident"]] for e in events if e["event"] != "line"],
        "step_seconds": per_token * statistics.mean(tokens),
        "step_tokens": statistics.mean(tokens),
        "counts": count(recipe),
        "rates": asdict(cpu_rates()),
        "processors": os.cpu_count(),
        "machine": machine(),
        "probe": probe(recipe) if case in CASES else None,
    }


def machine() -> str:
    """The processor, its vectors, and the libraries."""
    words = dict.fromkeys(Path("/proc/cpuinfo").read_text().split())
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "CPU")
    vectors = "AVX-512" if "avx512f" in words else "AVX2" if "avx2" in words else "no AVX2"
    libraries = ", ".join(f"{x} {version(x)}" for x in ("torch", "transformers"))
    return f"{name} with {vectors}, {os.cpu_count()} processors; {libraries}"


def count(recipe: Path) -> dict[str, Any]:
    """The tokens of a run, as `lorica plan` counts them."""
    settings = TrainSettings.model_validate(yaml.safe_load(recipe.read_text()))
    return asdict(count_tokens(settings, read_shapes(settings.base)))


def probe(recipe: Path) -> dict[str, Any]:
    """The answer of lorica.plan.probe for a recipe."""
    folder, answer = recipe.parent / "probe", recipe.parent / "answer.json"
    folder.mkdir()
    run("benchmarks.plan.probed", str(recipe), str(folder), str(answer))
    return json.loads(answer.read_text())


def read(results: Path) -> list[dict[str, Any]]:
    """The lines of a file of results; none if it is not there."""
    lines = results.read_text().splitlines() if results.exists() else []
    return [json.loads(line) for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plan",
        description=package.__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--only", help="runs whose names begin so; they are made again")
    parser.add_argument("--most", type=int, default=99, help="runs of this call at most")
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="has the 260K base")
    parser.add_argument("--folder", type=Path, help="where random bases are kept")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--write", type=Path, help="write the page from the results; no runs")
    words = parser.parse_args()
    if words.write:
        page.write(read(words.results), words.write)
        return
    done = {line["name"]: line for line in read(words.results)}
    with tempfile.TemporaryDirectory() as temporary:
        folder = words.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        data = rows.write(Path(temporary))
        wanted = [
            case
            for case in (*CASES, *OTHERS)
            if (case.name.startswith(words.only) if words.only else case.name not in done)
        ]
        for case in wanted[: words.most]:
            base = bases.path_of(case.base, folder, words.shared)
            with tempfile.TemporaryDirectory(dir=temporary) as place:
                recipe = write_recipe(case, data, base, Path(place))
                try:
                    line = measure(case, recipe)
                except Failed as error:
                    print(f"{case.name}: {error}", file=sys.stderr, flush=True)
                    continue
            done[case.name] = line
            cost = f"{line['peak'] / 2**20:,.0f} MiB, {line['step_seconds']:.2f} s"
            print(f"{case.name}: {cost}", flush=True)
            words.results.write_text("".join(json.dumps(x) + "\n" for x in done.values()))


if __name__ == "__main__":
    main()
