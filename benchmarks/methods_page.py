"""The page of benchmarks.methods, from its runs."""

import statistics
from typing import Any

from benchmarks.methods import (
    BEYOND,
    CASES,
    GRID,
    SGD_STEPS,
    SWEPT,
    Run,
    swept,
)

CLIPPED = (
    "blora clips nothing. With a clip at the first range of every tensor (commit 61b600c) the best "
    "of the same sweep was 2.968 (rate 0.003): numbers that grew past it got no gradient."
)


def page(results: dict[str, Any]) -> list[str]:
    """What the methods learn, forget and cost, as lines of Markdown."""
    first = results["rows"][0]["runs"][0]
    opening = (
        f"Before training the held-out loss on tinyshakespeare is {first['loss_before']:.3f}, and "
        f"the loss on TinyStories {first['stories_before']:.3f} nats per token. ± is the standard "
        "deviation over three seeds, order of the data included; a row without it is of one seed. "
        "Forgotten is the rise of the loss on TinyStories. Step time (8 x 128 tokens, one thread) "
        "and the peak memory of the process were measured one run at a time on: "
        f"{results['machine']}."
    )
    columns = [
        "method",
        "learning rate",
        "trained",
        "held-out loss",
        "TinyStories after",
        "forgotten",
        "ms a step",
        "peak MiB",
        "file KiB",
    ]
    lines = [
        "# What the methods learn, forget and cost",
        "",
        "Made by `python -m benchmarks.methods`; its docstring says how. Do not edit by hand.",
        "",
        opening,
        "",
        f"| {' | '.join(columns)} |",
        "|---|" + "---:|" * (len(columns) - 1),
    ]
    for row in sorted(results["rows"], key=lambda r: mean(r, "loss")):
        one, cost = row["runs"][0], row.get("cost", row["runs"][0])
        lines.append(
            f"| {row['case']} | {row['rate']:g} | {one['trained']:,} | {spread(row, 'loss')} | "
            f"{mean(row, 'stories'):.3f} | {mean(row, 'stories') - one['stories_before']:+.3f} | "
            f"{1e3 * cost['step_seconds']:.0f} | {cost['peak_memory_bytes'] / 2**20:,.0f} | "
            f"{one['file_bytes'] / 1024:,.0f} |"
        )
    words = {
        case: ", ".join(f"{k}={v}" for k, v in settings.items() if k != "name")
        for case, settings in CASES.items()
    }
    said = "; ".join(f"{case}: {text or 'defaults'}" for case, text in words.items())
    rates = ", ".join(f"{rate:g}" for rate in GRID)
    rates += ", and on to " + " and ".join(f"{rate:g}" for rate in BEYOND)
    rates += " where the best was the last"
    return [
        *lines,
        "",
        f"Settings: {said}.",
        "",
        f"Rates tried: {rates}. {results['versions']}.",
        "",
        CLIPPED,
    ]


def default_rates(runs: dict[Run, dict[str, Any]]) -> list[str]:
    """The methods at their default learning rates beside the best of their sweeps, as Markdown."""
    import lorica
    from lorica.core.rates import SMALL, default_rate

    opening = (
        "Held-out loss by learning rate, one seed, the best in bold, and the rate that a method "
        "takes on this base where none is given. Loss at it: with no rate and no warm-up given, "
        "where it was run; elsewhere the default lies between two rates of the sweep. SGD: without "
        f"momentum, gradients clipped to norm 1, {SGD_STEPS} steps."
    )
    lines = [
        "",
        "## Default learning rates",
        "",
        opening,
        "",
        "| method | default | loss at it | AdamW, loss by rate | SGD, loss by rate |",
        "|---|---:|---:|---|---|",
    ]
    for case, settings in CASES.items():
        own = runs.get((case, "adamw", None, SWEPT), {}).get("loss")
        method = {k: v for k, v in settings.items() if k not in ("name", "quantisation")}
        rate = default_rate(lorica.method(settings.get("name", case), **method), "adamw", SMALL)
        lines.append(
            f"| {case} | {rate:g} | {'-' if own is None else f'{own:.3f}'} | "
            f"{by_rate(swept(runs, case, 'adamw'))} | {by_rate(swept(runs, case, 'sgd')) or '-'} |"
        )
    return lines


def by_rate(found: list[dict[str, Any]]) -> str:
    """Rates and their losses, the best one bold."""
    losses = {r["rate"]: r["loss"] for r in found if r["loss"] is not None}
    best = min(losses, key=losses.__getitem__, default=None)
    words = [f"{rate:g}: {loss:.3f}" for rate, loss in losses.items()]
    marked = [f"**{w}**" if rate == best else w for rate, w in zip(losses, words, strict=True)]
    return ", ".join(marked)


def mean(row: dict[str, Any], key: str) -> float:
    return statistics.fmean(run[key] for run in row["runs"] if run["loss"] is not None)


def spread(row: dict[str, Any], key: str) -> str:
    values = [run[key] for run in row["runs"] if run["loss"] is not None]
    middle = f"{statistics.fmean(values):.3f}"
    return f"{middle} ± {statistics.stdev(values):.3f}" if len(values) > 1 else middle
