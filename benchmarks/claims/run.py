"""Sweep the rates of every side, run the seeds, and write what came out as JSON."""

import argparse
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from threading import RLock
from typing import Any

import benchmarks.claims as package
from benchmarks.claims import on_text, packing, page, pairs, text, twins
from benchmarks.claims.claim import LADDER, TUNING, Claim, Place, Run, Side
from benchmarks.claims.verdict import SEEDS, together

RESULTS = Path(__file__).parents[1] / "results"
BEYOND = 2
"""Rates tried past an edge of the grid that was the best."""
CLAIMS: dict[str, Claim] = {
    claim.id: claim
    for claim in sorted(
        (*pairs.CLAIMS, *on_text.CLAIMS, *packing.CLAIMS, *twins.CLAIMS),
        key=lambda claim: int(claim.id[1:]),
    )
}

Start = Callable[[Side, float | None, int, tuple[str, ...]], "Future[Run]"]


class Bench:
    """Runs in other processes. A run that two claims ask for is made once.

    done: where runs are kept, a JSON line each; those that are there are not made again.
    """

    def __init__(self, pool: ProcessPoolExecutor, place: Place, done: Path):
        self.pool, self.place, self.done = pool, place, done
        self.known: dict[str, Future[Run]] = {}
        self.lock = RLock()  # a run that is over at once is kept at once
        for line in done.read_text().splitlines() if done.is_file() else ():
            self.known[json.loads(line)["key"]] = made = Future()
            made.set_result(json.loads(line)["run"])

    def __call__(
        self, side: Side, rate: float | None, seed: int, also: tuple[str, ...]
    ) -> "Future[Run]":
        key = json.dumps([side.task.__module__, side.settings, rate, seed, also], sort_keys=True)
        with self.lock:
            if key not in self.known:
                self.known[key] = made = self.pool.submit(
                    side.task, side.settings, rate, seed, also, self.place
                )
                made.add_done_callback(lambda made: self.keep(key, made))
            return self.known[key]

    def keep(self, key: str, made: "Future[Run]") -> None:
        """Write down a run that came to an end."""
        if not made.cancelled() and made.exception() is None:
            with self.lock, self.done.open("a") as file:
                file.write(json.dumps({"key": key, "run": made.result()}) + "\n")


def settle(side: Side, start: Start, quick: bool = False) -> dict[str, Any]:
    """The rates tried, the one chosen, and the reported runs.

    quick: two rates, and none past the edge.
    """
    rates = side.rates[1:3] if quick else side.rates
    tried = {rate: start(side, rate, TUNING, ()) for rate in rates}
    found = {rate: future.result() for rate, future in tried.items()}
    for _ in range(0 if quick else BEYOND):
        rate = past(found)
        if rate is None:
            break
        found[rate] = start(side, rate, TUNING, ()).result()
    best = best_of(found)
    again: list[Run] = [{"seed": seed, "stopped": "no rate could be run"} for seed in SEEDS]
    if best is not None or not side.rates:
        futures = [start(side, best, seed, side.also) for seed in SEEDS]
        again = [future.result() for future in futures]
    print(f"{side.name}: {best or 'done'}", file=sys.stderr, flush=True)
    swept = {f"{rate:g}": found[rate]["score"] for rate in sorted(found)}
    return {"name": side.name, "swept": swept, "rate": best, "runs": again}


def best_of(found: dict[float, Run]) -> float | None:
    """The rate with the lowest score; None if every run was stopped."""
    good = {rate: run["score"] for rate, run in found.items() if run["score"] is not None}
    return min(good, key=lambda rate: good[rate]) if good else None


def past(found: dict[float, Run]) -> float | None:
    """The next rate of the ladder, if the best one is an edge of those tried, else None."""
    best = best_of(found)
    if best is None:
        return None
    place = LADDER.index(best)
    if best == min(found) and place > 0:
        return LADDER[place - 1]
    if best == max(found) and place + 1 < len(LADDER):
        return LADDER[place + 1]
    return None


def judged(claim: Claim, sides: list[dict[str, Any]], quick: bool) -> dict[str, Any]:
    """A claim with its sides, as plain data."""
    runs = {side["name"]: side["runs"] for side in sides}
    parts = [part.as_dict() for part in claim.parts(runs)]
    return {"smoke": quick, "sides": sides, "parts": parts, "verdict": together(parts)}


def measure(chosen: list[Claim], place: Place, jobs: int, done: Path) -> dict[str, Any]:
    """Every chosen claim, settled and judged. done: see Bench."""
    text.write(place)
    context = multiprocessing.get_context("spawn")
    sides = [(claim, side) for claim in chosen for side in claim.sides]
    with (
        ProcessPoolExecutor(jobs, mp_context=context) as pool,
        ThreadPoolExecutor(len(sides)) as threads,
    ):
        bench = Bench(pool, place, done)
        waiting = [(c, threads.submit(settle, s, bench, place.quick)) for c, s in sides]
        found: dict[str, list[dict[str, Any]]] = {claim.id: [] for claim in chosen}
        try:
            for claim, future in waiting:
                found[claim.id].append(future.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return {c.id: judged(c, found[c.id], place.quick) for c in chosen}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.claims",
        description=package.__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--shared", type=Path, help="folder of the models and texts")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=list(CLAIMS), default=list(CLAIMS))
    parser.add_argument("--quick", action="store_true", help="a smoke test, in a file of its own")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--write", type=Path, help="write the page from the JSON")
    words = parser.parse_args()
    out: Path = words.out or RESULTS / ("claims-smoke.json" if words.quick else "claims.json")
    known: dict[str, Any] = json.loads(out.read_text()) if out.is_file() else {"claims": {}}
    if words.write:
        words.write.write_text(page.page(CLAIMS, known))
        return
    if words.shared is None:
        parser.error("--shared is needed to make runs")
    import torch
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        place = Place(words.shared.resolve(), Path(folder), words.quick)
        chosen = [claim for claim in CLAIMS.values() if claim.id in words.only]
        out.parent.mkdir(parents=True, exist_ok=True)
        found = known["claims"] | measure(chosen, place, words.jobs, out.with_suffix(".jsonl"))
    known["claims"] = {name: found[name] for name in CLAIMS if name in found}
    known["versions"] = f"torch {torch.__version__}, transformers {transformers.__version__}"
    out.write_text(json.dumps(known, indent=1) + "\n")
