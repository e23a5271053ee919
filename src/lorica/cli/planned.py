"""What a run will cost, as text: the report of `lorica plan`, and the lines of `lorica train`."""

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from lorica.errors import counted
from lorica.plan.devices import Device
from lorica.plan.estimate import Estimate
from lorica.plan.evaluation import largest_evaluation
from lorica.plan.fit import Change
from lorica.plan.time import Span
from lorica.training.auto_dtype import with_dtype
from lorica.training.config import TrainConfig

WIDTH = 79
ERROR = 0.05
"""By how much a predicted peak may be too low; see docs/planning."""
MIB, GIB = 2**20, 2**30
OPTIMIZERS = {"adamw": "AdamW", "paged_adamw": "AdamW, paged", "sgd": "SGD, which keeps nothing"}
RUNTIMES = {"cpu": "Python, torch and transformers", "cuda": "CUDA's own memory on the card"}


def size(count: float) -> str:
    """Bytes in the unit that reads best: 87 KiB, 12.6 GiB."""
    for unit, factor in (("GiB", GIB), ("MiB", MIB)):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{count / 1024:,.0f} KiB" if count >= 1024 else f"{count:,.0f} B"


def duration(seconds: float) -> str:
    """Seconds in the unit that reads best: 41 ms, 12 s, 8 min, 3 h 20 min."""
    if seconds < 1:
        return f"{seconds * 1000:,.0f} ms"
    if seconds < 100:
        return f"{seconds:,.1f} s" if seconds < 10 else f"{seconds:,.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours / 24:,.1f} days"


def span(seconds: Span) -> str:
    """An expected time with its range."""
    return f"{duration(seconds.expected)} ({duration(seconds.low)} to {duration(seconds.high)})"


def report(estimate: Estimate, config: TrainConfig) -> Iterator[str]:
    """The report of `lorica plan`, line by line, at most 79 columns wide."""
    config = with_dtype(config)
    name, device = config.method["name"], estimate.device
    yield f"{name} on {config.base}, rows of {config.data.path}"
    yield ""
    yield from textwrap.wrap(verdict(estimate), WIDTH, initial_indent="  ", subsequent_indent="  ")
    yield ""
    yield from _table(_memory(estimate, config))
    yield ""
    yield from _table(_facts(estimate, config))
    yield from notices(estimate, device)


def verdict(estimate: Estimate) -> str:
    """Whether the run fits, in one sentence."""
    peak, device = size(estimate.memory.total), estimate.device
    if device.memory_bytes <= 0:
        return f"{peak} at the peak; the memory of {named(device)} is not known"
    memory = size(device.memory_bytes)
    if estimate.fits:
        tight = estimate.memory.total * (1 + ERROR) > device.memory_bytes
        doubt = f", closely: the plan may be {ERROR:.0%} too low" if tight else ""
        return f"it fits: {peak} of the {memory} of {named(device)}{doubt}"
    lacking = size(estimate.memory.total - device.memory_bytes)
    return f"IT DOES NOT FIT: {peak}, and {named(device)} has {memory} ({lacking} too much)"


def named(device: Device) -> str:
    """A device in words: a card of which only the memory is known has no name."""
    if device.kind == "cpu":
        return "this machine"
    return device.name if device.flops else "the card"


def _memory(estimate: Estimate, config: TrainConfig) -> list[tuple[str, str, str]]:
    memory, batch = estimate.memory, estimate.tokens.largest
    kind = config.quantisation or config.dtype
    base = f"{_count(estimate.base_parameters)} parameters in {kind}"
    recomputed = ", blocks recomputed" if config.gradient_checkpointing else ""
    largest = f"of {counted(round(batch.rows), 'row')}, {round(batch.tokens):,} tokens{recomputed}"
    evaluated = largest_evaluation(estimate.shapes, config, estimate.tokens)
    at = "of a training step"
    in_evaluation = evaluated.total == memory.activations + memory.logits
    if in_evaluation:
        at = "of an evaluation of the validation rows"
        largest = f"of {counted(evaluated.rows, 'row')}, {evaluated.tokens:,} tokens"
    return [
        ("peak memory", size(memory.total), at),
        ("  weights", size(memory.weights), base),
        ("  adapter", size(memory.adapter), "its tensors and their gradients, in float32"),
        ("  optimizer", size(memory.optimizer), OPTIMIZERS[config.optimizer]),
        ("  activations", size(memory.activations), largest),
        ("  logits", size(memory.logits), _logits(estimate, in_evaluation)),
        ("  runtime", size(memory.runtime), RUNTIMES[estimate.device.kind]),
    ]


def _logits(estimate: Estimate, in_evaluation: bool) -> str:
    if in_evaluation:
        return "of their label positions"
    if (classes := estimate.tokens.classes) is not None:
        return f"of {classes} classes"
    return f"of {round(estimate.tokens.largest.labels):,} label tokens"


def _facts(estimate: Estimate, config: TrainConfig) -> list[tuple[str, str, str]]:
    share = estimate.trained / estimate.base_parameters
    facts = [
        ("trained", _count(estimate.trained), f"parameters, {share:.2%} of the base"),
        *(("  " + kind, _count(count), "") for kind, count in estimate.parameters.items()),
        ("adapter file", size(estimate.adapter_bytes), ""),
        ("rows", f"{estimate.rows:,}", f"{estimate.real_tokens:,} tokens in all"),
        ("  learned", f"{estimate.label_tokens:,}", _learned(estimate)),
        ("  computed", f"{estimate.computed_tokens:,}", "tokens an epoch" + _saved(estimate)),
        (
            "steps",
            f"{estimate.steps:,}",
            f"of {counted(estimate.rows_per_step, 'row')}: {estimate.epochs:.3g} epochs",
        ),
    ]
    if estimate.step is None or estimate.run is None:
        unknown = f"the speed of {named(estimate.device)} is not known"
        return [*facts, ("time", "?", unknown)]
    return [
        *facts,
        ("time", duration(estimate.run.expected), _range(estimate.run)),
        ("  a step", duration(estimate.step.expected), _range(estimate.step)),
    ]


def _learned(estimate: Estimate) -> str:
    return "classes, one of each row" if estimate.tokens.classes else "tokens: the labels"


def _range(seconds: Span) -> str:
    return f"between {duration(seconds.low)} and {duration(seconds.high)}"


def _saved(estimate: Estimate) -> str:
    saved = 1 - estimate.computed_tokens / max(estimate.real_tokens, 1)
    if saved > 0.005:
        return f"; shared prefixes save {saved:.0%}"
    return f"; padding adds {-saved:.0%}" if saved < -0.005 else ""


def _count(count: int) -> str:
    """A number of parameters, to three digits above a million."""
    if count < 1_000_000:
        return f"{count:,}"
    unit, factor = ("B", 1e9) if count >= 1e9 else ("M", 1e6)
    return f"{count / factor:,.2f} {unit}"


def _table(rows: list[tuple[str, str, str]]) -> Iterator[str]:
    """Three columns: a name, a number to the right, and what it is of."""
    names, numbers = (max(len(row[i]) for row in rows) for i in (0, 1))
    for name, number, note in rows:
        yield f"  {name:<{names}}  {number:>{numbers}}  {note}".rstrip()


def notices(estimate: Estimate, device: Device) -> Iterator[str]:
    texts = [*estimate.notices]
    if estimate.step is None:
        texts.append(_without_time(device))
    elif device.kind == "cuda":
        texts.append(f"time is from the data sheet of {device.name}: {device.source}")
    if texts:
        yield ""
    for text in texts:
        yield from textwrap.wrap(text, WIDTH, initial_indent="note: ", subsequent_indent="      ")


def _without_time(device: Device) -> str:
    """How the time of a run can be known on a device whose speed is not."""
    if device.kind == "cpu":
        return "--measure times three steps here"
    return (
        "for a time, name a card whose speed is known (--device h100, a100-80, rtx4090, ...), or "
        "run lorica plan with --measure on the machine that has the card"
    )


def change_lines(change: Change, recipe: str) -> Iterator[str]:
    """The change by which a run fits, and its recipe."""
    peak = size(change.estimate.memory.total)
    yield f"the first change that makes it fit ({peak}):"
    yield ""
    yield f"  {change.flags}"
    yield f"  cost: {change.cost}"
    yield ""
    yield "the recipe with it:"
    yield ""
    yield from recipe.splitlines()


def no_change_lines(together: Change) -> Iterator[str]:
    """That no single change is enough, and how far all of them together get."""
    peak, device = together.estimate.memory.total, together.estimate.device
    yield "no single change makes it fit. All of them together:"
    yield ""
    yield f"  {together.flags}"
    if together.estimate.fits:
        yield f"  {size(peak)}: that fits"
    else:
        lacking = size(peak - device.memory_bytes)
        yield f"  {size(peak)}: still {lacking} too much for {named(device)}"


def one_line(estimate: Estimate) -> str:
    """The plan of a run in one line, before it is loaded."""
    words = [f"planned: {size(estimate.memory.total)} of memory"]
    if estimate.device.memory_bytes > 0:
        words[0] += f" (of {size(estimate.device.memory_bytes)})"
    words.append(counted(estimate.steps, "step"))
    if estimate.run is not None:
        words.append(span(estimate.run))
    words.append(f"an adapter of {size(estimate.adapter_bytes)}")
    return ", ".join(words)


def prediction(estimate: Estimate) -> dict[str, Any]:
    """What results.json keeps of the plan as `predicted`.

    memory_bytes: what the run's own figure measures: on a card, what torch has allocated there.
    seconds: of the whole command. took_seconds: what it took, once it has ended; None: not known.
    """
    memory, on_card = estimate.memory, estimate.device.kind == "cuda"
    return {
        "memory_bytes": memory.total - memory.runtime * on_card,
        "memory": asdict(memory),
        "seconds": None if estimate.run is None else asdict(estimate.run),
        "took_seconds": None,
        "steps": estimate.steps,
        "adapter_bytes": estimate.adapter_bytes,
        "device": estimate.device.name,
    }


def compared(predicted: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    """What a run took beside what was planned, in one line. figures: those of results.json."""
    words = []
    if peak := figures.get("peak_memory_bytes"):
        off = predicted["memory_bytes"] / peak - 1
        more = f"{abs(off):.0%} {'more' if off >= 0 else 'less'}"
        words.append(f"{size(peak)} of memory (planned: {size(predicted['memory_bytes'])}, {more})")
    return "it took " + ", ".join([*words, *_time_compared(predicted, figures)])


def _time_compared(predicted: Mapping[str, Any], figures: Mapping[str, Any]) -> Iterator[str]:
    """The time of the command beside its range, and whether that was missed."""
    expected, took = predicted["seconds"], predicted["took_seconds"]
    if expected is None or took is None:
        return
    planned = f"planned: {duration(expected['low'])} to {duration(expected['high'])}"
    if figures["steps"] < predicted["steps"]:
        planned += f" for all {predicted['steps']:,} steps"
    elif took > expected["high"]:
        planned += "; the plan was too short, which other programs on the machine may explain"
    elif took < expected["low"]:
        planned += "; the plan was too long"
    yield f"{duration(took)} ({planned})"
