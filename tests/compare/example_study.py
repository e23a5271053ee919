"""A StudyResult of 12 sides x 3 seeds, drawn from a fixed generator, for tests of the report."""

import math
from typing import Any

import numpy as np

from lorica.compare.results import Cost, Final, MeasureScores, SideResult, StudyResult, Trial

ROWS = 120
STEPS = 200
BEFORE = 2.3
SAMPLES = (
    (
        "Ticket: the pump of order P-2943 rattles.\nRecord:",
        '{"product": "pump", "problem": "noise"}',
    ),
    (
        "Ticket: my hose (S-5874) leaks. It can wait.\nRecord:",
        '{"product": "hose", "problem": "leak"}',
    ),
    (
        "Ticket: I ordered a blender and got a radio.\nRecord:",
        '{"product": "blender", "problem": "wrong"}',
    ),
)
GRID: tuple[tuple[str, str, int | None, float, float], ...] = (
    # name, method, rank, loss on the test rows, forgotten
    ("lora r=4", "lora", 4, 0.431, 0.12),
    ("lora r=8", "lora", 8, 0.402, 0.17),
    ("lora r=16", "lora", 16, 0.396, 0.22),
    ("dora r=4", "dora", 4, 0.428, 0.13),
    ("dora r=8", "dora", 8, 0.399, 0.19),
    ("dora r=16", "dora", 16, 0.391, 0.25),
    ("adalora r=4", "adalora", 4, 0.447, 0.09),
    ("adalora r=8", "adalora", 8, 0.421, 0.11),
    ("qlora r=8", "lora", 8, 0.409, 0.16),
    ("qlora r=16", "lora", 16, 0.401, 0.21),
    ("llama_adapter", "llama_adapter", None, 0.522, 0.03),
    ("full", "full", None, 0.372, 0.61),
)


def example_study(**changes: Any) -> StudyResult:
    """changes: fields of the result that are replaced."""
    generator = np.random.default_rng(0)
    weights = generator.integers(20, 60, ROWS).astype(float)
    hardness = generator.gamma(4, 0.25, ROWS)
    sides = [_side(generator, *line, weights, hardness) for line in GRID]
    values: dict[str, Any] = {
        "name": "tickets: which variant?",
        "study": {
            "base": "bundled",
            "data": {"path": "tickets.jsonl", "validation": "valid.jsonl"},
            "test": "test.jsonl",
            "measures": ["loss", "exact_match"],
            "goal": "loss",
            "reference": "lora r=8",
            "seeds": [0, 1, 2],
            "train": {"max_steps": STEPS, "micro_batch_size": 8},
        },
        "goal": "loss",
        "reference": "lora r=8",
        "sides": sides,
        "base": {"loss": _loss(5.2, hardness, weights), "exact_match": _match(0.0, hardness)},
        "versions": {"lorica": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "machine": "2 cores of x86_64, 24 GiB, Linux",
        "notices": ["the rates of full were searched on one seed"],
        "missing": ["qlora r=16, seed 2: the budget of 30 min was used up"],
    }
    return StudyResult(**(values | changes))


def _side(generator, name, method, rank, loss, forgotten, weights, hardness) -> SideResult:
    rate = {"full": 3e-4, "llama_adapter": 1e-2, "dora": 2.1e-3}.get(method, 4e-3)
    trials = []
    for factor in (0.1, 0.3, 1.0, 3.0, 10.0):
        value = loss + 0.35 * abs(math.log10(factor)) ** 1.5 + generator.normal(0, 0.01)
        diverged = factor == 10 and method in ("dora", "full")
        trials.append(Trial(rate * factor, 50, None if diverged else value))
    trials += [Trial(rate * f, 100, 0.9 * loss + 0.05 * f) for f in (0.3, 1.0)]
    finals = [
        _final(generator, seed, rate, method, rank, loss, forgotten, weights, hardness)
        for seed in range(3)
    ]
    trained = 8_500 * (rank or 1) if method != "full" else 4_951_296
    size = {"qlora": 1.35, "dora": 1.2, "full": 1.6}.get(name.split()[0], 1.0)
    peak = 0.62 if name.startswith("qlora") else size
    cost = Cost(
        seconds_per_step=0.21 * size + 0.001 * (rank or 0),
        tokens_per_second=3000 / size,
        peak_memory_bytes=int(5.1e8 * peak + 16 * trained),
        adapter_bytes=4 * trained + 4096,
        trained_parameters=trained,
        total_parameters=4_951_296,
    )
    quantised = "quantisation: nf4\n" if name.startswith("qlora") else ""
    settings = (
        f"base: bundled\n{quantised}data:\n  path: tickets.jsonl\nmethod:\n  name: {method}\n"
    )
    recipe = settings + (f"  r: {rank}\n" if rank else "") + f"learning_rate: {rate}\n"
    return SideResult(name, method, rank, recipe, trials, finals, cost)


def _final(generator, seed, rate, method, rank, loss, forgotten, weights, hardness) -> Final:
    shift = generator.normal(0, 0.006)
    noise = generator.normal(0, 0.05, ROWS)
    scores = MeasureScores(
        float(np.average((loss + shift) * hardness + noise, weights=weights)),
        "lower",
        ((loss + shift) * hardness + noise).tolist(),
        weights.tolist(),
    )
    steps = np.arange(1, STEPS + 1)
    curve = (
        loss + 4.8 * np.exp(-steps / 14) + generator.normal(0, 0.04, STEPS) * np.exp(-steps / 200)
    )
    validation = [
        (int(step), float(loss + shift + 4.8 * math.exp(-step / 14)))
        for step in range(0, STEPS + 1, 25)
    ]
    right = max(0.0, 1 - loss)
    samples = [
        (
            prompt,
            reference,
            reference if generator.random() < right else _wrong(generator, reference),
        )
        for prompt, reference in SAMPLES
    ]
    ranks = {}
    if method == "adalora":
        ranks = {
            f"model.layers.{block}.{part}.{kind}": int(generator.integers(0, 2 * rank))
            for block in range(6)
            for part, kind in (
                ("self_attn", "q_proj"),
                ("self_attn", "k_proj"),
                ("self_attn", "v_proj"),
                ("self_attn", "o_proj"),
                ("mlp", "gate_proj"),
                ("mlp", "up_proj"),
                ("mlp", "down_proj"),
            )
        }
    before = _loss(
        BEFORE + forgotten * (1 + generator.normal(0, 0.1)),
        np.ones(ROWS) + generator.normal(0, 0.02, ROWS),
        weights,
    )
    return Final(
        seed=seed,
        learning_rate=rate,
        scores={"loss": scores, "exact_match": _match(right, hardness)},
        curve=[(int(s), float(v)) for s, v in zip(steps, curve, strict=True)],
        validation=validation,
        before_scores=before,
        forgotten=before.value - BEFORE,
        samples=samples,
        ranks=ranks,
        notices=[
            "shared prefixes are computed once: 8 of the 649 tokens in the first batch are skipped"
        ],
    )


def _loss(loss: float, hardness: np.ndarray, weights: np.ndarray) -> MeasureScores:
    rows = loss * hardness
    value = float(np.average(rows, weights=weights))
    return MeasureScores(value, "lower", rows.tolist(), weights.tolist())


def _match(share: float, hardness: np.ndarray) -> MeasureScores:
    rows = (hardness < np.quantile(hardness, share)).astype(float) if share else 0 * hardness
    return MeasureScores(float(rows.mean()), "higher", rows.tolist())


def _wrong(generator, reference: str) -> str:
    words = reference.split(" ")
    words[int(generator.integers(len(words)))] = str(
        generator.choice(['"radio",', "Record:", "pump"])
    )
    return " ".join(words)
