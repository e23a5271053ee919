"""C2 C3 C4 C6 C7 C8 C10: claims that are tried on the text task."""

from itertools import pairwise
from typing import Any

from benchmarks.claims.claim import Claim, Column, Runs, Side, grid, minus, paired
from benchmarks.claims.text import STEPS, WATCHED, WORDS, run
from benchmarks.claims.verdict import Part

LOSS = Column("loss", "loss")
FORGOTTEN = Column("forgotten", "forgotten", "+.3f")
LOW = (1, 2, 4, 8)
LEARNING = (1, 4, 16)
RATIOS = (4, 16)


def side(
    label: str,
    name: str,
    rates: tuple[float, ...] = grid(3e-3),
    *,
    also: tuple[str, ...] = (),
    run_settings: dict[str, Any] | None = None,
    **settings: Any,
) -> Side:
    """A method on the text task. run_settings: settings of the run, not of the method."""
    chosen = {"method": {"name": name, **settings}, **(run_settings or {})}
    return Side(label, run, chosen, rates, also)


FULL = grid(1e-3)


def c2(runs: Runs) -> list[Part]:
    worse = [paired(runs, f"{name} r=1", f"{name} r=8", "loss") for name in ("lora", "dora")]
    both = [minus(lora, dora) for lora, dora in zip(*worse, strict=True)]
    what = "loss at r=1 − loss at r=8: LoRA − DoRA"
    return [Part(what, both)] + [
        Part(
            f"r={r}: LoRA − DoRA, loss",
            paired(runs, f"lora r={r}", f"dora r={r}", "loss"),
            counts=False,
        )
        for r in LOW
    ]


def c3(runs: Runs) -> list[Part]:
    return [Part("gates at 1 − gates at 0, loss", paired(runs, "gates at 1", "gates at 0", "loss"))]


def c4(runs: Runs) -> list[Part]:
    found = []
    for r in LEARNING:
        name = f"lora r={r}"
        learned, forgotten = (
            paired(runs, name, "full", "loss"),
            paired(runs, "full", name, "forgotten"),
        )
        found += [
            Part(f"r={r} learns less: LoRA − full, loss", learned),
            Part(f"r={r} forgets less: full − LoRA, forgotten", forgotten),
        ]
    for low, high in pairwise(LEARNING):
        more = paired(runs, f"lora r={high}", f"lora r={low}", "forgotten")
        found.append(Part(f"r={high} − r={low}, forgotten", more, counts=False))
    return found


def c6(runs: Runs) -> list[Part]:
    return [Part("LoRA − AdaLoRA, loss", paired(runs, "lora r=2", "adalora r=3 to 2", "loss"))]


def c7(runs: Runs) -> list[Part]:
    words, unit, spread = "vocabulary", "random, N(0, 1)", "random, spread of the embeddings"
    return [
        Part("N(0, 1) − vocabulary, loss", paired(runs, unit, words, "loss")),
        Part(
            "random (spread of the embeddings) − vocabulary, loss",
            paired(runs, spread, words, "loss"),
            counts=False,
        ),
        Part(
            "N(0, 1) − random (spread of the embeddings), loss",
            paired(runs, unit, spread, "loss"),
            counts=False,
        ),
    ]


def reached(run: dict[str, Any], target: float) -> float | None:
    """Steps until the loss is `target`, between evaluations on a straight line."""
    if "losses" not in run:
        return None
    points = list(zip(run["steps"], run["losses"], strict=True))
    if points[0][1] <= target:
        return float(points[0][0])
    for (before, high), (after, low) in pairwise(points):
        if low <= target:
            return before + (after - before) * (high - target) / (high - low)
    return None


def c8(runs: Runs) -> list[Part]:
    found = []
    for ratio in RATIOS:
        saved: list[float | None] = []
        for plain, plus in zip(runs["ratio 1"], runs[f"ratio {ratio}"], strict=True):
            if "losses" not in plain or "losses" not in plus:
                saved.append(None)
                continue
            target = max(min(plain["losses"]), min(plus["losses"]))  # both reach it
            saved.append(minus(reached(plain, target), reached(plus, target)))
        found.append(Part(f"steps to the common loss: ratio 1 − ratio {ratio}", saved, form="+.1f"))
        last = paired(runs, "ratio 1", f"ratio {ratio}", "loss")
        found.append(Part(f"final loss: ratio 1 − ratio {ratio}", last, counts=False))
    return found


def c10(runs: Runs) -> list[Part]:
    found = []
    for where, key in (("query and value", "query_value"), ("all linear layers", "all_sites")):
        for name, sign in (("dora", -1), ("full", -1), ("lora", 1)):
            values = [None if r.get(key) is None else sign * r[key] for r in runs[name]]
            what = f"{'−' * (sign < 0)}correlation of {name}, {where}"
            found.append(Part(what, values, counts=name != "full" and key == "query_value"))
    return found


CLAIMS = [
    Claim(
        id="C2",
        title="DoRA loses less than LoRA when the rank is lowered",
        source="Liu et al. 2024, arXiv:2402.09353, commonsense tasks, LLaMA-7B: with r=4 LoRA "
        "39.5, DoRA 61.9; with r=8 LoRA 40.7, DoRA about 78.",
        how=f"{WORDS}. The claim is judged by how much the loss rises from r=8 to r=1.",
        sides=[side(f"{name} r={r}", name, r=r) for r in LOW for name in ("lora", "dora")],
        columns=[LOSS, FORGOTTEN],
        parts=c2,
    ),
    Claim(
        id="C3",
        title="LLaMA-Adapter needs gates that start at zero",
        source="Zhang et al. 2023, arXiv:2303.16199, ScienceQA: 84.04 with zero-init attention, "
        "40.77 without.",
        how=f"{WORDS}. Both sides train the same prompts and gates; the gates start at 0 or at 1.",
        sides=[
            side("gates at 0", "llama_adapter", grid(1e-2)),
            side("gates at 1", "llama_adapter_open", grid(1e-2)),
        ],
        columns=[Column("loss before", "loss_before"), LOSS, FORGOTTEN],
        parts=c3,
    ),
    Claim(
        id="C4",
        title="LoRA learns less and forgets less than full fine-tuning",
        source="Biderman et al. 2024, arXiv:2405.09673, continued pre-training on code: HumanEval "
        "0.263 full, 0.224 LoRA r=256; on earlier knowledge, 0.545 full, 0.617 LoRA.",
        how=f"{WORDS}. Forgotten is the rise of the loss on TinyStories, which the base was "
        "trained on. Learning rates are chosen by the loss on the new text.",
        sides=[side("full", "full", FULL), *(side(f"lora r={r}", "lora", r=r) for r in LEARNING)],
        columns=[LOSS, FORGOTTEN],
        parts=c4,
    ),
    Claim(
        id="C6",
        title="AdaLoRA is better than LoRA on a very low budget",
        source="Zhang et al. 2023, arXiv:2303.10512, table 1, mean of GLUE with 0.32 M parameters: "
        "LoRA r=2 88.15, AdaLoRA 88.86.",
        how=f"{WORDS}. LoRA has rank 2 in every layer; AdaLoRA starts with rank 3 and ends with a "
        "mean rank of 2.",
        sides=[side("lora r=2", "lora", r=2), side("adalora r=3 to 2", "adalora", r=3, target_r=2)],
        columns=[LOSS, FORGOTTEN],
        parts=c6,
    ),
    Claim(
        id="C7",
        title="Prompt tuning needs to start from the vocabulary",
        source="PEFT's method comparison, MetaMathQA, Llama-3.2-3B: accuracy on GSM8K 0.343 from "
        "embeddings of the vocabulary, 0.057 from random vectors.",
        how=f"{WORDS}. There are 20 prompt vectors. PEFT draws random vectors from N(0, 1). Those "
        "that Lorica calls random have the spread of the embeddings; they are not part of the "
        "claim.",
        sides=[
            side("vocabulary", "prompt_tuning", grid(1e-2), init="vocabulary"),
            side("random, spread of the embeddings", "prompt_tuning", grid(1e-2), init="random"),
            side("random, N(0, 1)", "prompt_tuning_unit", grid(1e-2)),
        ],
        columns=[Column("loss before", "loss_before"), LOSS, FORGOTTEN],
        parts=c7,
    ),
    Claim(
        id="C8",
        title="LoRA+ converges faster than LoRA",
        source="Hayou et al. 2024, arXiv:2402.12354: B with a larger learning rate than A learns "
        "faster (from the abstract; none of its figures was checked).",
        how=f"{WORDS.replace('cosine', 'constant')}. LoRA r=8. The ratio is the learning rate of B "
        f"divided by that of A; the rates tried are those of A. Evaluated every {STEPS // 20} "
        "steps. The common loss of two runs with one seed is the higher of their two minima.",
        sides=[
            side(
                f"ratio {k}",
                "lora",
                grid(3e-3 if k == 1 else 1e-3),
                also=("curve",),
                run_settings={"schedule": "constant"},
                r=8,
                loraplus_lr_ratio=k,
            )
            for k in (1, *RATIOS)
        ],
        columns=[LOSS, FORGOTTEN],
        parts=c8,
    ),
    Claim(
        id="C10",
        title="DoRA changes direction and magnitude in opposite ways, LoRA in the same way",
        source="Liu et al. 2024, arXiv:2402.09353, section 3: correlation between the changes of "
        "direction and of magnitude: full −0.62, DoRA −0.31, LoRA +0.83.",
        how=f"{WORDS}. LoRA and DoRA have r=4. The correlation is taken over the query and value "
        f"weights of all layers at {WATCHED} checkpoints, {STEPS // WATCHED} steps apart. That "
        "over all linear layers is reported as well.",
        sides=[
            side("full", "full", FULL, also=("turns",)),
            *(side(name, name, also=("turns",), r=4) for name in ("lora", "dora")),
        ],
        columns=[
            LOSS,
            Column("correlation, query and value", "query_value", "+.2f"),
            Column("correlation, all linear layers", "all_sites", "+.2f"),
        ],
        parts=c10,
    ),
]
