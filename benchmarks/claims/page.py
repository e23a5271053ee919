"""The results as Markdown. What a claim says comes from its file, every figure from the JSON."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.claims.claim import Claim, Column, Run
from benchmarks.claims.verdict import FAILS, HOLDS, NOT_SHOWN, interval

RULE = (
    "Every side of a comparison has its learning rate chosen alike: four rates, and up to two more "
    "past an edge that is the best, with a seed and a validation text that are not reported. The "
    "best one, in bold, is run with three other seeds. ± is the standard deviation over them. A "
    "difference is taken seed by seed, and signed so that above zero is what the claim says. Its "
    "95 % interval (Student's t, three seeds) decides: above zero it **holds**, below zero it "
    "**does not hold**, otherwise it is **not shown**. A claim is what the worst of its "
    "comparisons is, of those that count for it."
)
CAUTION = (
    "The models are thousands of times smaller than those of the papers, and the tasks are "
    "others. What fails here may hold there."
)
SMOKE = "**Smoke test: a few steps a run. The figures and verdicts mean nothing.**"
SAID = {HOLDS: "Holds.", FAILS: "Does not hold.", NOT_SHOWN: "Not shown."}


def page(claims: Mapping[str, Claim], results: dict[str, Any]) -> str:
    """The whole page; claims without results are left out, and named as not run."""
    found = results["claims"]
    lines = [
        "# Claims of the papers, on small models",
        "",
        "Made by `python -m benchmarks.claims`; its docstring says how. Do not edit by hand.",
        "",
        RULE,
        "",
        CAUTION,
        "",
    ]
    if any(one["smoke"] for one in found.values()):
        lines += [SMOKE, ""]
    lines += table(
        ["", "claim", "verdict"],
        [
            [name, claim.title, found[name]["verdict"] if name in found else "not run"]
            for name, claim in claims.items()
        ],
    )
    for name, claim in claims.items():
        if name in found:
            lines += section(claim, found[name])
    return "\n".join([*lines, "", f"{results.get('versions', '')}."]) + "\n"


def section(claim: Claim, found: dict[str, Any]) -> list[str]:
    lines = ["", f"## {claim.id}. {claim.title}", ""]
    lines += [SMOKE, ""] if found["smoke"] else []
    lines += [f"Source: {claim.source}", "", f"Here: {claim.how}", ""]
    rates = any(side["swept"] for side in found["sides"])
    trained = any("trained" in run for side in found["sides"] for run in side["runs"])
    heads = ["", *["trained"] * trained, *["rates tried"] * rates]
    rows = []
    for side in found["sides"]:
        row = [side["name"]]
        row += [next((f"{r['trained']:,}" for r in side["runs"] if "trained" in r), "")] * trained
        row += [tried(side)] * rates
        rows.append([*row, *(spread(side["runs"], column) for column in claim.columns)])
    lines += [*table([*heads, *(c.heading for c in claim.columns)], rows), ""]
    lines += [f"- {line}" for line in stops(found["sides"])]
    lines += [""] if stops(found["sides"]) else []
    lines += table(
        ["comparison", "by seed", "mean", "95 % interval", "verdict"],
        [compared(part) for part in found["parts"]],
    )
    beside = not all(part["counts"] for part in found["parts"])
    lines += ["", f"**{SAID[found['verdict']]}**" + " (In brackets: beside the claim.)" * beside]
    return lines


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def tried(side: dict[str, Any]) -> str:
    """The rates with their scores, the chosen one in bold."""
    best = None if side["rate"] is None else f"{side['rate']:g}"
    words = []
    for rate, score in side["swept"].items():
        text = f"{rate}: " + ("stopped" if score is None else f"{score:.3f}")
        words.append(f"**{text}**" if rate == best else text)
    return ", ".join(words)


def spread(runs: Sequence[Run], column: Column) -> str:
    values = [run[column.key] for run in runs if run.get(column.key) is not None]
    if not values:
        return "none"
    text = f"{statistics.fmean(values):{column.form}}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):{column.form.replace('+', '')}}"
    return text if len(values) == len(runs) else f"{text} ({len(values)} of {len(runs)} runs)"


def stops(sides: Sequence[dict[str, Any]]) -> list[str]:
    """Reported runs that came to no figures, and why."""
    return [
        f"{side['name']}, seed {run['seed']}: {run['stopped']}"
        for side in sides
        for run in side["runs"]
        if "stopped" in run
    ]


def compared(part: dict[str, Any]) -> list[str]:
    form, values = part["form"], part["values"]
    known = [value for value in values if value is not None]
    each = ", ".join("stopped" if v is None else f"{v:{form}}" for v in values)
    mean, where = "none", "none"
    if len(known) == len(values):
        mean = f"{statistics.fmean(known):{form}}"
        low, high = interval(known)
        where = f"{low:{form}} to {high:{form}}"
    if part["bound"] is not None:
        where = f"bound {part['bound']:g}"
    verdict = part["verdict"] if part["counts"] else f"({part['verdict']})"
    return [part["what"], each, mean, where, verdict]
