"""Answers of mixed lengths: the decoder beside one by one, static batches and transformers' own.

    python -m benchmarks.serve.lengths [--rounds 5] [--json FILE]

Random Llamas in float32, greedy, one thread. Two workloads:

    short   24 prompts of 4 to 60 tokens, answers of 8 to 128, on 8 slots
    long    8 prompts of 800 tokens, answers of 32, on 8 slots

All sides write the same texts, which is checked: at most one text in a workload may differ, where
rounding decides between two tokens. Sides take turns in one process; a ratio is between the best
process times of each.
"""

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import ContinuousBatchingConfig, GenerationConfig

from lorica.generation.batches import pad_left
from lorica.generation.decoder import Decoder
from lorica.generation.row import Request
from lorica.generation.sampling import Sampling
from lorica.generation.stops import Stops

VOCABULARY, SLOTS = 2048, 8
Work = list[tuple[list[int], int]]
"""(prompt, tokens of its answer) of each request."""
Side = Callable[[Any, Work], list[list[int]]]
BARS = {
    "short": {"one by one": 2.0, "static batches": 1.6, "continuous batching": 0.95},
    "long": {"continuous batching": 1.8},
}


def model() -> Any:
    """6 layers of 256, 8 heads of 32: 5.8 million parameters."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=8,
        max_position_embeddings=2048,
        initializer_range=0.2,  # so that no two tokens are nearly as probable
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return transformers.LlamaForCausalLM(config).eval()


def workloads() -> dict[str, Work]:
    draw = random.Random(0)

    def prompt(n: int) -> list[int]:
        return [draw.randrange(1, VOCABULARY) for _ in range(n)]

    return {
        "short": [(prompt(draw.randint(4, 60)), draw.randint(8, 128)) for _ in range(24)],
        "long": [(prompt(800), 32) for _ in range(8)],
    }


def decoder(base: Any, work: Work) -> list[list[int]]:
    stops = Stops(tokenizer=None)
    requests = [
        Request(prompt=ids, sampling=Sampling(max_new_tokens=new), stops=stops) for ids, new in work
    ]
    longest = max(len(ids) + new for ids, new in work)
    engine, rows = Decoder(base, slots=SLOTS, max_length=longest), []
    while len(rows) < len(requests) or engine.rows:
        rows += engine.admit(requests[len(rows) : len(rows) + engine.free])
        engine.step()
    return [row.tokens for row in rows]


def one_by_one(base: Any, work: Work) -> list[list[int]]:
    return [_generate(base, [request])[0] for request in work]


def static_batches(base: Any, work: Work) -> list[list[int]]:
    """As lorica did before: longest prompts first, a batch runs until its longest answer ends."""
    answers: list[list[int]] = [[] for _ in work]
    order = sorted(range(len(work)), key=lambda i: -len(work[i][0]))
    for start in range(0, len(order), SLOTS):
        picked = order[start : start + SLOTS]
        for i, answer in zip(picked, _generate(base, [work[i] for i in picked]), strict=True):
            answers[i] = answer
    return answers


def _generate(base: Any, work: Work) -> list[list[int]]:
    ids, mask = pad_left([ids for ids, _ in work], 0)
    settings = GenerationConfig(
        max_new_tokens=max(new for _, new in work), do_sample=False, pad_token_id=0
    )
    out = base.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
    new = out[:, ids.shape[1] :].tolist()
    return [row[:most] for row, (_, most) in zip(new, work, strict=True)]


class ContinuousBatching:
    """transformers' own, which has no adapters. Its manager stays between rounds."""

    def __init__(self, base: Any, page_size: int):
        self.before = base.config._attn_implementation
        settings = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
        options = ContinuousBatchingConfig(
            page_size=page_size,
            num_blocks=SLOTS * (1024 // page_size),
            max_batch_tokens=256,
            max_requests_per_batch=SLOTS,
            allow_block_sharing=False,  # or it would know the prompts from the round before
        )
        self.manager = base.init_continuous_batching(
            generation_config=settings, continuous_batching_config=options
        )
        self.manager.start()

    def __call__(self, base: Any, work: Work) -> list[list[int]]:
        names = [self.manager.add_request(ids, max_new_tokens=new) for ids, new in work]
        answers: dict[str, list[int]] = {}
        while len(answers) < len(work):
            result = self.manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                answers[result.request_id] = result.generated_tokens
        return [answers[name] for name in names]

    def stop(self) -> None:
        self.manager.stop(block=True)


def measure(rounds: int) -> dict[str, Any]:
    base, report = model(), {}
    twin = model()  # continuous batching changes the attention of its model
    with torch.no_grad():
        for name, work in workloads().items():
            paged = ContinuousBatching(twin, page_size=256)
            sides: dict[str, tuple[Side, Any]] = {
                "decoder": (decoder, base),
                "one by one": (one_by_one, base),
                "static batches": (static_batches, base),
                "continuous batching": (paged, twin),
            }
            seconds: dict[str, float] = dict.fromkeys(sides, float("inf"))
            answers: dict[str, list[list[int]]] = {}
            for _ in range(rounds):
                for side, (run, own) in sides.items():
                    began = time.process_time()
                    answers[side] = run(own, work)
                    seconds[side] = min(seconds[side], time.process_time() - began)
            paged.stop()
            report[name] = _figures(work, seconds, answers)
    return report


def _figures(
    work: Work, seconds: dict[str, float], answers: dict[str, list[list[int]]]
) -> dict[str, Any]:
    tokens = sum(new for _, new in work)
    ours = answers["decoder"]
    return {
        side: {
            "tokens_per_second": round(tokens / s, 1),
            "ratio": round(s / seconds["decoder"], 3),
            "same_texts": sum(a == b for a, b in zip(answers[side], ours, strict=True)),
            "texts": len(work),
        }
        for side, s in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = measure(options.rounds)
    for name, sides in report.items():
        print(f"\n{name}")
        for side, figures in sides.items():
            bar = BARS[name].get(side)
            print(
                f"  {side:20} {figures['tokens_per_second']:8.1f} tokens/s   "
                f"the decoder is {figures['ratio']:.2f} times as fast"
                + (f" (bar {bar})" if bar else "")
                + f"   {figures['same_texts']} of {figures['texts']} texts the same"
            )
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
