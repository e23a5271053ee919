"""A published LoRA recipe on a CUDA card: LLaMA-7B's shape, what an iteration costs.

    python -m benchmarks.recipe_gpu
    python -m benchmarks.recipe_gpu --smoke      a tiny model, on the CPU too: the script works

The recipe is that of Lightning AI's article of 2023 on Lit-LLaMA: rank 8 on the query and value
projections, Alpaca's rows, micro-batches of 4, 32 of them an optimizer step. It states 62,400
iterations (micro-batches) in 192 minutes and 21 GB on an A100. Here the weights are random, in
bfloat16, and rows are as long as Alpaca's (benchmarks.speed.work): what a step costs does not
depend on what they say. Ours is the trainer's step; PEFT is in a plain loop, without gradient
checkpointing. Each side has the card to itself, in a process of its own, in turn.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch

from benchmarks.speed import work
from benchmarks.speed.work import Row, Shape

ITERATIONS, MINUTES, GIGABYTES = 62_400, 192, 21
"""The article's."""
MICRO = 4
SETTINGS = {"r": 8, "alpha": 16}
TARGETS = ["q_proj", "v_proj"]
Step = Callable[[list[Row]], None]


@dataclass(frozen=True)
class Plan:
    shape: Shape
    micro_batches: int
    """Of an optimizer step."""
    steps: int
    """Measured ones, after one that is not."""
    device: str


SEVEN_B = Shape(layers=32, width=4096, mlp=11_008, heads=32, vocabulary=32_000)
TINY = Shape(layers=2, width=64, mlp=128, heads=4, vocabulary=512)


def base(plan: Plan) -> Any:
    """Random weights, made in bfloat16 where they stay."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(plan.device):
        model = LlamaForCausalLM(plan.shape.config())
    torch.set_default_dtype(torch.float32)
    return model.train()


def ours(plan: Plan) -> Step:
    import lorica
    from lorica.base.packing import packed
    from lorica.core.state import adapter_state
    from lorica.data.example import Example
    from lorica.training.placement import Single
    from lorica.training.step import StepInput, Stepper

    model = lorica.adapt(base(plan), lorica.Lora(**SETTINGS), target_modules=TARGETS)
    learned: Any = adapter_state(model)
    optimizer = torch.optim.AdamW(learned.values(), lr=3e-4, fused=True)
    stepper = Stepper(Single(torch.device(plan.device)), model, packed=True, shared=True, pad_id=0)

    def step(rows: list[Row]) -> None:
        examples = [Example(row.ids, [label >= 0 for label in row.labels], "row") for row in rows]
        with packed(model):
            stepper([StepInput(examples, MICRO, learned)])
        optimizer.step()
        optimizer.zero_grad()

    return step


def peft(plan: Plan) -> Step:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=SETTINGS["r"], lora_alpha=SETTINGS["alpha"], target_modules=TARGETS)
    model: Any = get_peft_model(base(plan), config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-4)

    def step(rows: list[Row]) -> None:
        for i in range(0, len(rows), MICRO):
            batch = {k: t.to(plan.device) for k, t in work.padded(rows[i : i + MICRO]).items()}
            (model(**batch, use_cache=False).loss * MICRO / len(rows)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


SIDES = {"Lorica": ours, "PEFT": peft}


def measured(name: str, plan: Plan) -> tuple[list[float], float]:
    """Seconds an iteration in every measured step, and the most gigabytes that were allocated."""
    step = SIDES[name](plan)
    size = MICRO * plan.micro_batches
    rows = work.rows(size * (plan.steps + 1), vocabulary=plan.shape.vocabulary)
    cuda = plan.device == "cuda"
    seconds = []
    for i in range(plan.steps + 1):
        began = time.perf_counter()
        step(rows[i * size : (i + 1) * size])
        if cuda:
            torch.cuda.synchronize()
        seconds.append((time.perf_counter() - began) / plan.micro_batches)
    return seconds[1:], torch.cuda.max_memory_allocated() / 1e9 if cuda else 0.0


def report(name: str, seconds: list[float], gigabytes: float) -> str:
    middle = statistics.median(seconds)
    minutes = middle * ITERATIONS / 60
    line = (
        f"{name:8} {middle:.4f} s an iteration ({min(seconds):.4f} to {max(seconds):.4f}); "
        f"{ITERATIONS:,} take {minutes:,.0f} minutes, the article's {MINUTES}"
    )
    return line + (f"; {gigabytes:.1f} GB at most, the article's {GIGABYTES}" if gigabytes else "")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recipe_gpu",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--smoke", action="store_true", help="figures that mean nothing")
    parser.add_argument("--rounds", type=int, default=3)
    words = parser.parse_args()
    cuda = torch.cuda.is_available()
    if not cuda and not words.smoke:
        print("this needs a CUDA card, and there is none; --smoke runs without", file=sys.stderr)
        sys.exit(2)
    device = "cuda" if cuda else "cpu"
    plan = Plan(TINY, 2, 1, device) if words.smoke else Plan(SEVEN_B, 32, 4, device)
    card = torch.cuda.get_device_name() if cuda else "no CUDA card"
    note = " (smoke: the figures mean nothing)" if words.smoke else ""
    print(f"{card}; torch {torch.__version__}; {plan.shape}{note}", flush=True)
    found: dict[str, list[tuple[list[float], float]]] = {name: [] for name in SIDES}
    for number in range(words.rounds):
        for name in list(SIDES)[:: 1 if number % 2 == 0 else -1]:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                found[name].append(pool.submit(measured, name, plan).result())
    for name, rounds in found.items():
        seconds = [one for times, _ in rounds for one in times]
        print(report(name, seconds, max(peak for _, peak in rounds)))


if __name__ == "__main__":
    main()
