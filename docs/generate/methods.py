"""A page for each method, from its source file, the guide and the measured results."""

import json
import re
from functools import cache
from pathlib import Path
from typing import get_type_hints

from docs.generate.markdown import blocks, cell, code, page, prose, styled, table, type_name
from lorica.cli.help import type_word
from lorica.cli.methods import about_rates
from lorica.core.adapter import Method
from lorica.recipe.catalogue import Entry
from lorica.recipe.catalogue import methods as catalogue

RESULTS = "benchmarks/results/methods.json"
GUIDE = "docs/guides/methods.md"
MEANING = {
    "exact": "`lorica export` writes a plain LoRA, exactly",
    "approximate": "`lorica export --rank R` writes a plain LoRA that approximates it",
    "never": "it has no equivalent LoRA",
}


def names() -> list[str]:
    return list(catalogue())


def path(name: str) -> str:
    return f"methods/{name}.md"


def pages(root: Path) -> dict[str, str]:
    """Path in docs/ -> Markdown."""
    uses = when_to_use((root / GUIDE).read_text(encoding="utf-8"))
    if missing := sorted(set(names()) - set(uses)):
        raise ValueError(f"{GUIDE}: the table says nothing of {', '.join(missing)}")
    results = (root / RESULTS).read_text(encoding="utf-8")
    return {path(n): _page(entry, uses[n], results) for n, entry in catalogue().items()}


def when_to_use(guide: str) -> dict[str, str]:
    """Method -> the cell `use it when` of the guide's table."""
    rows = re.findall(r"^\| \[`(\w+)`\]\([^)]*\) \| (.+?) \|$", guide, re.MULTILINE)
    return dict(rows)


def _page(entry: Entry, use: str, results: str) -> str:
    title, formula, sentence = split_title(entry.title)
    rest = entry.about.partition("\n\n")[2]
    parts = [f"`method: {entry.name}` in a recipe, `--method {entry.name}` as a flag."]
    parts += [styled("formula", f"{code(formula)}\n{prose(sentence)}")] if formula else []
    parts += [] if formula else [prose(sentence)]
    parts += [f"**Use it when** {use}", _facts(entry), "## Settings", _settings(entry)]
    parts += ["## How it works", blocks(rest), *_measured(entry.name, results)]
    return page(title, *parts)


def split_title(title: str) -> tuple[str, str, str]:
    """Name, formula, and the rest of the sentence: `VeRA: y = W x + ..., with trained d and v.`

    Without a formula the sentence is the whole title.
    """
    name, _, text = title.partition(": ")
    found = re.match(r"(y = .+?)(?:,? (?=with |where |whose |two )|, |\.$|$)", text)
    return (name, found[1].rstrip("."), text[found.end() :]) if found else (name, "", title)


def _facts(entry: Entry) -> str:
    facts = entry.facts
    yes = {True: "yes", False: "no"}
    rows = [
        ["paper", prose(str(facts["paper"])) or "none"],
        ["trained parameters per site", code(str(facts["count"]))],
        ["default learning rate", cell(about_rates(entry).removeprefix("Default learning rate "))],
        ["merges into the base", yes[facts["to_lora"] != "never"]],
        ["as a plain LoRA", MEANING[str(facts["to_lora"])]],
        ["on a quantised base", yes[bool(facts["on_quantised"])]],
        ["in batches that mix adapters", yes[bool(facts["mixes"])]],
    ]
    return styled("facts", table(["", ""], rows))


def _settings(entry: Entry) -> str:
    if not entry.options:
        return "This method has no settings."
    types = get_type_hints(Method.named(entry.name))
    rows = (
        [
            f"`method.{o.name}`",
            type_name(type_word(types[o.name])),
            code(o.default or ""),
            cell(o.note),
        ]
        for o in entry.options
    )
    return styled("options", table(["setting", "type", "default", "meaning"], rows))


def _measured(name: str, results: str) -> list[str]:
    rows = [row for row in _rows(results) if row[0].split()[0] == name]
    if not rows:
        return []
    about = (
        "On one small task (stories260K learns tinyshakespeare, mean of three seeds where there "
        "are three); [all methods, and how it was measured](results.md)."
    )
    heads = ["case", "learning rate", "trained", "held-out loss", "forgotten"]
    return ["## Measured", about, table(heads, rows)]


@cache
def _rows(results: str) -> list[list[str]]:
    from benchmarks.methods_page import mean, spread

    rows = []
    for row in json.loads(results)["rows"]:
        first = row["runs"][0]
        forgotten = mean(row, "stories") - first["stories_before"]
        rows.append(
            [
                row["case"],
                f"{row['rate']:g}",
                f"{first['trained']:,}",
                spread(row, "loss"),
                f"{forgotten:+.3f}",
            ]
        )
    return rows
