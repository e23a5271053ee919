"""A choice as text and as JSON: what is wrong with the rows, the decisions, and their evidence."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from lorica.cli.planned import named, one_line
from lorica.errors import counted
from lorica.plan.choose.choice import Choice
from lorica.plan.choose.evidence import evidence
from lorica.plan.choose.gather import Gathered
from lorica.plan.choose.reason import Reason, gib
from lorica.plan.estimate import Estimate

WIDTH = 88


def lines(choice: Choice, gathered: Gathered, planned: Estimate | None) -> Iterator[str]:
    """The choice for a terminal, line by line. planned: its cost; None: it cannot be trained."""
    situation = gathered.situation
    rows, base = situation.rows, situation.base
    yield (
        f"{counted(rows.rows, rows.kind + ' row')} ({rows.train:,} train, {rows.validation:,} "
        f"validation), {rows.label_tokens:,} label tokens"
    )
    room = "no known limit" if situation.memory is None else gib(situation.memory)
    yield (
        f"{base.name}: {base.parameters:,} parameters; memory: {room} of {situation.device}; "
        f"goal: {situation.goal}"
    )
    yield ""
    yield from _wrapped(_verdict(choice), "")
    if choice.tried:
        yield from _wrapped(choice.tried, "")
    if planned is not None:
        yield from _wrapped(_cost(choice, planned), "")
    for notice in dict.fromkeys([*gathered.notices, *(planned.notices if planned else ())]):
        yield from _wrapped(f"note: {notice}", "")
    yield "\nData first"
    for finding in choice.findings:
        yield from _wrapped(f"{finding.level}: {finding.what}", "  ")
        yield from _wrapped(f"fix: {finding.fix}{_cited(finding.evidence)}", "    ")
    if not choice.findings:
        yield "  nothing to report"
    yield f"\nWhy {choice.method}"
    for reason in choice.path:
        yield from _wrapped(f"{'yes' if reason.value else 'no'}: {reason.what}", "  ")
        yield from _wrapped(f"{reason.why}{_cited(reason.evidence)}", "    ")
    yield "\nSettings"
    for reason in choice.reasons:
        yield from _wrapped(f"{reason.what} {_value(reason.value)}", "  ")
        yield from _wrapped(f"{reason.why}{_cited(reason.evidence)}", "    ")
    yield from _section("Serving", choice.serving)
    yield from _section("Ruled out", choice.ruled_out)
    yield from _section("It cannot tell", choice.doubts)
    yield "\nEvidence"
    for key in cited_by(choice):
        entry = evidence()[key]
        limits = f" Limits: {entry.limits}." if entry.limits else ""
        yield from _wrapped(f"[{key}] {entry.says} ({entry.place}).{limits}", "  ")


def _verdict(choice: Choice) -> str:
    """The choice in one sentence."""
    settings, method = choice.settings, choice.settings["method"]
    parts = [method["name"], *([f"r={method['r']}"] if "r" in method else [])]
    if "target_r" in method:
        parts.append(f"pruned to {method['target_r']}")
    if "quantisation" in settings:
        parts.append(f"on {settings['quantisation']}")
    if choice.each:
        parts.append("for each condition")
    return (
        f"Choice: {' '.join(parts)}, learning rate {settings['learning_rate']:g}, "
        f"{counted(settings['epochs'], 'epoch')}."
    )


def _cost(choice: Choice, planned: Estimate) -> str:
    """What the training will cost, in one sentence, as `lorica train` announces it."""
    text = "P" + one_line(planned)[1:]
    if planned.run is None:
        text += f"; the time is not known, as the speed of {named(planned.device)} is not"
        text += " (--memory with the name of a card, such as h100, gives one)"
    return text + (", in one run for all conditions." if choice.each else ".")


def as_dict(
    choice: Choice, gathered: Gathered, recipe: str, planned: Estimate | None
) -> dict[str, Any]:
    """The choice as JSON."""
    situation = gathered.situation
    return {
        "rows": asdict(situation.rows),
        "edge": choice.edge.name,
        "method": choice.method,
        "each_condition": choice.each,
        "settings": choice.settings,
        "peak_memory_bytes": choice.peak,
        "planned": planned and planned.as_dict(),
        "tried": choice.tried,
        "findings": [asdict(finding) for finding in choice.findings],
        **{
            name: [asdict(reason) for reason in getattr(choice, name)]
            for name in ("path", "reasons", "ruled_out", "doubts", "serving")
        },
        "evidence": {
            key: {**asdict(evidence()[key]), "place": evidence()[key].place}
            for key in cited_by(choice)
        },
        "notices": [*gathered.notices],
        "recipe": recipe,
    }


def cited_by(choice: Choice) -> list[str]:
    """The ids of the evidence of a choice, in the order of its reasons."""
    sources = [finding.evidence for finding in choice.findings]
    for reasons in (choice.path, choice.reasons, choice.serving, choice.ruled_out, choice.doubts):
        sources += [reason.evidence for reason in reasons]
    return list(dict.fromkeys(key for keys in sources for key in keys))


def _section(title: str, reasons: Sequence[Reason]) -> Iterator[str]:
    if reasons:
        yield f"\n{title}"
    for reason in reasons:
        yield from _wrapped(f"{reason.what}: {reason.why}{_cited(reason.evidence)}", "  ")


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _cited(keys: tuple[str, ...]) -> str:
    return "".join(f" [{key}]" for key in keys)


def _value(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case _:
            return str(value)
