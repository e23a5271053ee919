"""The page: predicted against measured, and the article's case."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.plan import article, predicted
from benchmarks.plan.grid import CASES, OTHERS

MIB, GB = 2**20, 1e9
MEMORY_BAR, BELOW_BAR, TIME_BAR = 0.10, 0.05, 0.15
HOW = """\
Written by `python -m benchmarks.plan --write docs/planning/README.md`; do not edit by hand.
[Know the cost before](../guides/planning.md) is the guide to `lorica plan`.

Each run is `lorica train` in a fresh process, one epoch over {rows} rows as long as Alpaca's, one
thread, float32. Its memory is the peak of resident memory that the system counts when the process
ends: Python, libraries, base, and what freed blocks leave in the heap. The prediction is made from
config.json, the settings and the rows. The bases are stories260K (260 K parameters), the bundled
one (5 M), and a Llama with random weights (58 M: 8 layers of width 512, vocabulary 32,000).

{machine}."""

OTHER = """\
The constants were chosen on the runs above; these bases have other shapes. *Deep* has 24 layers of
width 320, *wide* two of width 768, 19M twelve of width 320. They were looked at while the model was
made, and one thing was changed for them: checkpointing leaves holes in the heap, which showed on
*deep*. 19M was added after that."""

TIME = """\
*Measured* is process time of a step: the median of those after the first, for their mean number of
tokens. (The step in which ALoRA tries all its ranks takes minutes; no plan has it.) *From three
steps* is what `lorica plan --measure` says, from a process of its own right after the run.
*Planned* is what it says without measuring a step: from the floating-point operations, and from a
product and a copy that are timed when the plan is made. Other work ran on the machine at the time,
which is the noise in these figures."""

DEPENDS = """\
## What a prediction depends on

- **The processor.** No speed of a CPU is stored. With AVX-512 or without, a product takes half or
  twice as long, and more cores or a busy machine change it again: so it is timed when the plan is
  made. bfloat16 without its instructions is many times slower; there the plan gives no time, and
  `--measure` does.
- **The heap.** glibc gives a tensor no hole that one of another size has left, and every
  micro-batch has other sizes. Repetitions of one run (58M lora, 8 rows) took between 1,260
  and 1,380 MiB: no prediction can be nearer than that. What a step keeps is counted tensor by
  tensor, and a test compares it with what torch saves. The heap around it is taken as 1.5 times as
  large, near the upper end of what was seen.
- **Gradient checkpointing on a CPU** saves less than its tensors say: every block leaves a hole
  below its output. That showed on a base of 24 layers, where the first version of the model was
  24% too low.
- **Versions.** Python, torch and transformers take 400 MiB before the base is loaded, bitsandbytes
  65 MiB more. Other versions take more or less.
- **A card** was not at hand. Its memory is the same count of tensors, with 10% for the allocator
  and 600 MiB for CUDA. Its time is a range: the peak rate of the data sheet, of which products
  reach 20% to 75%."""

REASONS = """\
Why they differ:

- **Memory.** The weights are 13.5 GB in both. The article's library pads a micro-batch to its
  longest row, passes every position through the head, and holds all logits at once; Lorica
  concatenates rows, computes shared prefixes once, and computes logits at label positions, in
  pieces. *As there* plans Lorica's own step on padded rows with all positions learned; the logits
  are still in pieces, and the article's LoRA has dropout, whose masks are kept. The rest is what
  CUDA's allocator reserves.
- **LLaMA-Adapter** took more memory there than LoRA, and less time. Here it is planned with
  slightly less memory, since it keeps no input of a linear layer.
- **Full fine-tuning** there holds weights, gradients and both moments in bfloat16, 8 bytes a
  parameter or 54 GB, on two GPUs or more. Lorica keeps the frozen base (2 bytes) beside copies in
  float32 with their gradients and moments (16 bytes), and a cast of them for the pass (2 bytes):
  135 GB. The "at least 6,000 minutes" there are 1,956 minutes on four GPUs that exchange sharded
  weights in every pass; one GPU with enough memory would have no such traffic.
- **Time.** An iteration there is {there:,.0f} padded tokens on average, and {ours:,.0f} here. A
  step of so few tokens is bound by memory and by launching kernels as much as by products, and how
  much depends on kernels of 2023 that were not measured here: hence the range."""


def write(results: Sequence[dict[str, Any]], path: Path) -> None:
    """The page at `path`, in Markdown."""
    from benchmarks.plan.rows import TRAIN

    lines = {line["name"]: line for line in results}
    measured = [lines[case.name] for case in CASES if case.name in lines]
    others = [lines[case.name] for case in OTHERS if case.name in lines]
    if not measured:
        raise SystemExit("nothing has been measured yet: run `python -m benchmarks.plan`")
    parts = [
        "# Predicted against measured",
        HOW.format(rows=TRAIN, machine=measured[0]["machine"]),
        f"## Memory\n\n{memory_verdict(measured)}\n\n{memory_table(measured)}",
        f"### Other shapes\n\n{OTHER}\n\n{memory_verdict(others)}\n\n{memory_table(others)}",
        f"## Time\n\n{TIME}\n\n{time_verdict(measured)}\n\n{time_table(measured)}",
        DEPENDS,
        the_article(),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(parts) + "\n")


def memory_errors(lines: Sequence[dict[str, Any]]) -> list[float]:
    """Of each run: how far the prediction is above what was measured, as a share of it."""
    return [predicted.peak(line) / line["peak"] - 1 for line in lines]


def time_errors(lines: Sequence[dict[str, Any]]) -> list[float]:
    return [predicted.measured_step(line) / line["step_seconds"] - 1 for line in lines]


def memory_verdict(lines: Sequence[dict[str, Any]]) -> str:
    errors = memory_errors(lines)
    near = sum(abs(error) <= MEMORY_BAR for error in errors)
    return (
        f"**{near} of {len(errors)} predictions are within {MEMORY_BAR:.0%}.** The lowest is "
        f"{min(errors):+.1%}, the highest {max(errors):+.1%}."
    )


def time_verdict(lines: Sequence[dict[str, Any]]) -> str:
    errors = time_errors(lines)
    near = sum(abs(error) <= TIME_BAR for error in errors)
    inside = sum(
        low <= line["step_seconds"] <= high
        for line in lines
        for low, _, high in [predicted.planned_step(line)]
    )
    return (
        f"**From three steps, {near} of {len(errors)} are within {TIME_BAR:.0%}** (lowest "
        f"{min(errors):+.1%}, highest {max(errors):+.1%}). Without measuring, {inside} of "
        f"{len(errors)} lie within the planned range."
    )


def memory_table(lines: Sequence[dict[str, Any]]) -> str:
    rows = [
        (
            line["name"],
            f"{line['peak'] / MIB:,.0f}",
            f"{predicted.peak(line) / MIB:,.0f}",
            f"{error:+.1%}",
        )
        for line, error in zip(lines, memory_errors(lines), strict=True)
    ]
    return table(("run", "measured, MiB", "predicted, MiB", "difference"), rows)


def time_table(lines: Sequence[dict[str, Any]]) -> str:
    rows = []
    for line, error in zip(lines, time_errors(lines), strict=True):
        low, expected, high = predicted.planned_step(line)
        rows.append(
            (
                line["name"],
                f"{line['step_seconds']:.2f}",
                f"{predicted.measured_step(line):.2f}",
                f"{error:+.1%}",
                f"{expected:.2f} ({low:.2f} to {high:.2f})",
            )
        )
    heads = ("run", "measured, s", "from three steps, s", "difference", "planned, s")
    return table(heads, rows)


def the_article() -> str:
    """The case that the article measured, and what is planned for it."""
    rows = []
    for case in article.planned():
        side = case.side
        rows.append(
            (
                side.name,
                f"{case.memory.total / GB:.1f}",
                f"{case.memory_as_there.total / GB:.1f}",
                "2 GPUs of 30 or more" if side.gigabytes is None else f"{side.gigabytes:.0f}",
                _minutes(case.run),
                _minutes(case.run_as_there),
                f"{side.minutes:,.0f}" + (" or more" if side.gigabytes is None else ""),
            )
        )
    heads = (
        "LLaMA-7B, A100",
        "planned, GB",
        "as there, GB",
        "article, GB",
        "planned, min",
        "as there, min",
        "article, min",
    )
    there, ours = (article.counts(padded=padded).mean.tokens for padded in (True, False))
    return (
        "## The article's own case\n\n"
        "Lightning AI's article of 2023 on LoRA in Lit-LLaMA trains LLaMA-7B in bfloat16 on an "
        "A100: rank 8 on queries and values, "
        "micro-batches of 4 rows of Alpaca of at most 256 tokens, 62,400 iterations. It states 21 "
        "GB and 192 minutes for LoRA, 22 GB and 162 minutes for LLaMA-Adapter. GB are 10^9 "
        "bytes.\n\n" + table(heads, rows) + "\n\n" + REASONS.format(there=there, ours=ours)
    )


def _minutes(span: article.Span) -> str:
    low, expected, high = (s / 60 for s in (span.low, span.expected, span.high))
    return f"{expected:,.0f} ({low:,.0f} to {high:,.0f})"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
