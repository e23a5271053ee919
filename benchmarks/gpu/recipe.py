"""A published recipe in the shape of LLaMA-7B: what an iteration costs, by method.

The recipe is that of Lightning AI's article of 2023 on Lit-LLaMA: rank 8 on the query and value
projections, or a LLaMA-Adapter; Alpaca's rows, micro-batches of 4, 32 of them an optimizer step. It
states 62,400 iterations (micro-batches) in 192 and 162 minutes, and 21 and 22 GB, on an A100. Here
the weights are random, in bfloat16, and rows are as long as Alpaca's (benchmarks.speed.work): what
a step costs does not depend on what they say. Ours is the trainer's step; PEFT is in a plain loop.
None recomputes activations.
"""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.size import MICRO, Size, Step, random_base, timed
from benchmarks.speed import work
from benchmarks.speed.work import Row

ITERATIONS = 62_400
ARTICLE = {"LoRA": (192, 21), "LLaMA-Adapter": (162, 22)}
"""side -> (minutes, gigabytes) that the article states."""
TARGETS = ["q_proj", "v_proj"]


def ours(size: Size, method: Any, targets: list[str] | None = None, model: Any = None) -> Step:
    """The trainer's step. model: a base that is there already."""
    import lorica
    from lorica.base.packing import packed
    from lorica.core.state import adapter_state
    from lorica.data.example import Example
    from lorica.training.placement import Single
    from lorica.training.step import StepInput, Stepper

    model = random_base(size) if model is None else model
    model = lorica.adapt(model, method, target_modules=targets)
    learned: Any = adapter_state(model)
    optimizer = torch.optim.AdamW(learned.values(), lr=3e-4, fused=True)
    stepper = Stepper(Single(torch.device(size.device)), model, packed=True, shared=True, pad_id=0)

    def step(rows: list[Row]) -> None:
        examples = [Example(row.ids, [label >= 0 for label in row.labels], "row") for row in rows]
        with packed(model):
            stepper([StepInput(examples, MICRO, learned)])
        optimizer.step()
        optimizer.zero_grad()

    return step


def peft(size: Size, targets: list[str], r: int, alpha: int, model: Any = None) -> Step:
    """A plain loop over padded rows. model: a base that is there already."""
    from peft import LoraConfig, get_peft_model

    model = random_base(size) if model is None else model
    adapted: Any = get_peft_model(model, LoraConfig(r=r, lora_alpha=alpha, target_modules=targets))
    optimizer = torch.optim.AdamW(
        [p for p in adapted.parameters() if p.requires_grad], lr=3e-4, fused=True
    )

    def step(rows: list[Row]) -> None:
        for i in range(0, len(rows), MICRO):
            batch = {k: t.to(size.device) for k, t in work.padded(rows[i : i + MICRO]).items()}
            (adapted(**batch, use_cache=False).loss * MICRO / len(rows)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _lora(size: Size) -> Step:
    import lorica

    return ours(size, lorica.Lora(r=8, alpha=16), TARGETS)


def _peft(size: Size) -> Step:
    return peft(size, TARGETS, 8, 16)


def _adapter(size: Size) -> Step:
    import lorica

    return ours(size, lorica.method("llama_adapter"))


def _full(size: Size) -> Step:
    import lorica

    return ours(size, lorica.method("full"))


SIDES: dict[str, Callable[[Size], Step]] = {
    "LoRA": _lora,
    "PEFT LoRA": _peft,
    "LLaMA-Adapter": _adapter,
    "full fine-tuning": _full,
}


def measure(side: str, size: Size) -> dict[str, float]:
    """The figures of a side, with the minutes that 62,400 iterations take."""
    figures = timed(SIDES[side](size), size)
    return {**figures, "minutes": figures["seconds"] * ITERATIONS / 60}
