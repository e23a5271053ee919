"""Every method on the same task: what it learns, what it forgets, and what it costs.

    python -m benchmarks.methods --shared ../shared --jobs 2    the whole table, as JSON
    python -m benchmarks.methods --shared ../shared --own       methods at their default rates
    python -m benchmarks.methods --shared ../shared --sgd       a sweep with SGD, of 100 steps
    python -m benchmarks.methods --shared ../shared --cost      step time and memory, alone
    python -m benchmarks.methods --write docs/methods/results.md    the page, from the JSON

Base: stories260K (a Llama of 260,032 parameters, trained on TinyStories). Task: tinyshakespeare,
300 steps of 8 x 128 tokens. The learning rate of each method is the best of one grid (longer
where the best is its last) by held-out loss with one seed; that rate is then run with three
others. Forgetting is the rise of the loss on TinyStories, the text that the base comes from.
--own runs each case with that first seed, no learning rate and no warm-up given. Every run has one
thread. Runs that are done are kept, so that a command that was cut goes on.
"""

import argparse
import json
import multiprocessing
import platform
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results/methods.json"
GRID = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
BEYOND = (1e-1, 3e-1)
SGD_GRID = (0.1, 0.3, 1.0, 3.0, 10.0)
SWEPT, SEEDS = 0, (1, 2, 3)
STEPS, SGD_STEPS, COST_STEPS = 300, 100, 30
Run = tuple[str, str, float | None, int]
"""(case, optimizer, learning rate or None: the method's own, seed)."""
CASES: dict[str, dict[str, Any]] = {
    "lora": {"r": 8},
    "lora pissa": {"name": "lora", "r": 8, "init": "pissa"},
    "lora eva": {"name": "lora", "r": 8, "init": "eva"},
    "lora on nf4": {"name": "lora", "r": 8, "quantisation": "nf4"},
    "dora": {"r": 8},
    "double_lora": {"r": 8},
    "dora_dynamic": {"r": 12},
    "adalora": {"r": 12},
    "adalora grown": {"name": "adalora", "r": 12, "mode": "increase"},
    "alora": {"r": 8, "rounds": 2},
    "aflora": {"r": 8},
    "blora": {"r": 8},
    "hyperlora": {"r": 8},
    "mora": {"r": 8},
    "mora type 1": {"name": "mora", "r": 8, "mora_type": 1},
    "lora_fa": {"r": 8},
    "vera": {"r": 256},
    "ia3": {},
    "bottleneck": {},
    "llama_adapter": {},
    "prefix_tuning": {},
    "prompt_tuning": {},
    "full": {},
}


def texts(shared: Path, folder: Path) -> tuple[Path, Path, Path]:
    """(training text, held-out text, text of the base's own domain), cut and written."""
    play = (shared / "data/text/tinyshakespeare/input.txt").read_text()
    stories = (shared / "data/text/tinystories-samples/minigpt_tinystories.txt").read_text()
    found = []
    for name, text in (
        ("train", play[:-30_000]),
        ("test", play[-30_000:]),
        ("stories", stories[:30_000]),
    ):
        path = folder / f"{name}.jsonl"  # one row; hyperlora asks for a condition, others do not
        path.write_text(json.dumps({"text": text, "condition": "play"}) + "\n")
        found.append(path)
    return found[0], found[1], found[2]


def run(
    case: str,
    optimizer: str,
    rate: float | None,
    seed: int,
    *,
    shared: Path,
    folder: Path,
    steps: int,
) -> dict[str, Any]:
    """Train once and measure. Losses are nats per token."""
    import torch

    torch.set_num_threads(1)
    import lorica
    from lorica.data.config import DataConfig
    from lorica.data.load import load_data as load_rows
    from lorica.evaluation.loss import mean_loss
    from lorica.formats.open_adapter import open_adapter

    train, test, stories = texts(shared, Path(tempfile.mkdtemp(dir=folder)))
    method = dict(CASES[case])
    method.setdefault("name", case)
    more = {key: method.pop(key) for key in ("quantisation",) if key in method}
    output = train.parent / "run"
    base = str(shared / "data/models/stories260K")
    try:
        result = lorica.train(
            base=base,
            method=method,
            output=str(output),
            seed=seed,
            optimizer=optimizer,
            data={
                "path": str(train),
                "validation": str(test),
                "max_length": 128,
                "overlong": "split",
            },
            max_steps=steps,
            micro_batch_size=8,
            save_steps=steps,
            show=False,
            **({} if rate is None else {"learning_rate": rate, "warmup_ratio": 0.1}),
            **more,
        )
    except lorica.LoricaError as error:  # a rate that is too high: the run says so and ends
        return {
            "case": case,
            "optimizer": optimizer,
            "rate": rate,
            "seed": seed,
            "loss": None,
            "error": str(error),
        }
    opened = open_adapter(output)
    config = DataConfig(path=str(stories), max_length=128, validation=0, overlong="split")
    rows = load_rows(config, opened.tokenizer, seed=0, max_length=opened.max_length).train
    with lorica.use(opened.model):
        before = mean_loss(opened.model, rows)
    seconds = spent(output)
    weights = output / "adapter/adapter_model.safetensors"
    return {
        "case": case,
        "optimizer": optimizer,
        "rate": rate,
        "seed": seed,
        "loss": result.figures["held_out_loss"]["after"],
        "loss_before": result.figures["held_out_loss"]["before"],
        "stories": mean_loss(opened.model, rows),
        "stories_before": before,
        "trained": result.figures["parameters"]["trained"],
        "step_seconds": statistics.median(seconds[len(seconds) // 3 :]),
        "peak_memory_bytes": result.figures["peak_memory_bytes"],
        "file_bytes": weights.stat().st_size,
        "lines": result.notices,
    }


def spent(output: Path) -> list[float]:
    """Seconds of each step, from the event log."""
    from lorica.training.run import read_events

    seconds, before = [], 0
    for event in read_events(output):
        if event["event"] == "step":
            seconds.append((event["tokens"] - before) / event["tokens_per_second"])
            before = event["tokens"]
    return seconds


def table(shared: Path, jobs: int, cases: list[str], done: Path) -> list[dict[str, Any]]:
    """A row for each case: the best rate of the grid, and its seeds.

    done: runs that are there already, a JSON line each; new ones are added as they end.
    """
    runs = known_runs(done)
    measure(shared, jobs, [(c, "adamw", rate, SWEPT) for c in cases for rate in GRID], runs, done)
    for rate in BEYOND:  # where the best is the last one tried, the next is tried as well
        edge = [c for c in cases if best_of(runs, c)["rate"] * 4 > rate]
        measure(shared, jobs, [(c, "adamw", rate, SWEPT) for c in edge], runs, done)
    best = {c: best_of(runs, c)["rate"] for c in cases}
    measure(shared, jobs, [(c, "adamw", best[c], s) for c in cases for s in SEEDS], runs, done)
    return [
        {
            "case": c,
            "rate": best[c],
            "swept": {str(r["rate"]): r["loss"] for r in swept(runs, c, "adamw")},
            "runs": [runs[c, "adamw", best[c], seed] for seed in SEEDS],
        }
        for c in cases
    ]


def known_runs(done: Path) -> dict[Run, dict[str, Any]]:
    """The runs that a file of JSON lines keeps."""
    lines = done.read_text().splitlines() if done.is_file() else []
    found = [{"optimizer": "adamw", **json.loads(line)} for line in lines]
    return {(r["case"], r["optimizer"], r["rate"], r["seed"]): r for r in found}


def swept(runs: dict[Run, dict[str, Any]], case: str, optimizer: str) -> list[dict[str, Any]]:
    """The runs of a case with the first seed and a given rate, smallest first."""
    found = [
        r
        for (c, o, rate, s), r in runs.items()
        if (c, o, s) == (case, optimizer, SWEPT) and rate is not None
    ]
    return sorted(found, key=lambda r: r["rate"])


def best_of(runs: dict[Run, dict[str, Any]], case: str, optimizer: str = "adamw") -> dict[str, Any]:
    """The run of a case with the lowest held-out loss, among those of the first seed."""
    found = [r for r in swept(runs, case, optimizer) if r["loss"] is not None]
    return min(found, key=lambda r: r["loss"])


def measure(
    shared: Path,
    jobs: int,
    wanted: list[Run],
    runs: dict[Run, dict[str, Any]],
    done: Path,
    steps: int = STEPS,
) -> None:
    """Do those of `wanted` that are not in `runs` yet, and add them to it. In place."""
    context = multiprocessing.get_context("spawn")
    done.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        one = partial(run, shared=shared, folder=Path(folder), steps=steps)
        with ProcessPoolExecutor(jobs, mp_context=context) as pool:
            waiting = {pool.submit(one, *key): key for key in wanted if key not in runs}
            for future in as_completed(waiting):
                runs[waiting[future]] = future.result()
                print(
                    {k: future.result()[k] for k in ("case", "optimizer", "rate", "seed", "loss")}
                )
                with done.open("a") as file:
                    file.write(json.dumps(future.result()) + "\n")


def costs(shared: Path, rows: list[dict[str, Any]]) -> None:
    """Step time and peak memory of each case, one process at a time. In place."""
    context = multiprocessing.get_context("spawn")
    for row in rows:
        with tempfile.TemporaryDirectory() as folder:
            one = partial(run, shared=shared, folder=Path(folder), steps=COST_STEPS)
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                done = pool.submit(one, row["case"], "adamw", row["rate"], 0).result()
        row["cost"] = {k: done[k] for k in ("step_seconds", "peak_memory_bytes")}
        print(f"{row['case']}: {1e3 * done['step_seconds']:.0f} ms", file=sys.stderr)


def processor() -> str:
    """Its model, where the system tells."""
    file = Path("/proc/cpuinfo")
    said = file.read_text().splitlines() if file.is_file() else []
    models = [line.partition(":")[2].strip() for line in said if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--shared", type=Path, help="folder of the models and texts")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    parser.add_argument("--sgd", action="store_true", help="sweep the rates of SGD alone")
    parser.add_argument("--own", action="store_true", help="run the methods' own rates alone")
    parser.add_argument("--cost", action="store_true", help="measure the costs of known rows alone")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--write", type=Path, help="write the page from the JSON")
    words = parser.parse_args()
    known: dict[str, Any] = (
        json.loads(words.out.read_text()) if words.out.is_file() else {"rows": []}
    )
    if words.write:
        from benchmarks.methods_page import default_rates, page

        runs = known_runs(words.out.with_suffix(".jsonl"))
        words.write.write_text("\n".join([*page(known), *default_rates(runs)]) + "\n")
        return
    import torch
    import transformers

    rows = {row["case"]: row for row in known["rows"]}
    done = words.out.with_suffix(".jsonl")
    if words.own:
        own = [(c, "adamw", None, SWEPT) for c in words.cases]
        measure(words.shared, words.jobs, own, known_runs(done), done)
        return
    if words.sgd:
        sgd = [(c, "sgd", rate, SWEPT) for c in words.cases for rate in SGD_GRID]
        measure(words.shared, words.jobs, sgd, known_runs(done), done, SGD_STEPS)
        return
    if not words.cost:
        found = table(words.shared, words.jobs, words.cases, done)
        rows |= {row["case"]: row for row in found}
    chosen = [rows[case] for case in CASES if case in rows]
    if words.cost:
        costs(words.shared, [row for row in chosen if row["case"] in words.cases])
        known["machine"] = f"{processor()}, {platform.system()}"
    known["versions"] = f"torch {torch.__version__}, transformers {transformers.__version__}"
    known.setdefault("machine", "not measured")
    words.out.parent.mkdir(parents=True, exist_ok=True)
    words.out.write_text(json.dumps({**known, "rows": chosen}, indent=1) + "\n")


if __name__ == "__main__":
    main()
