"""C1: MoRA and LoRA with as many parameters memorise random keys and values.

Keys and values are letters, each one token of stories260K, so that an accuracy by characters is
one by tokens. The adapter writes each value itself, greedily. A run has pairs of its own.
"""

import json
import random
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.claims.claim import Claim, Column, Place, Run, Runs, Side, grid, paired
from benchmarks.claims.verdict import Part

STEPS, QUICK_STEPS, BATCH = 300, 10, 32
LETTERS = "abcdefghklmnoprs"  # sixteen, as in a UUID
PAIRS, KEY, VALUE = 64, 6, 12
WATCHED = 5
"""Checkpoints at which the values are asked for, evenly over the run, the last step included."""
RANKS = (1, 4)


def pairs(seed: int) -> list[tuple[str, str]]:
    """(key, value) as they are written: letters between spaces."""
    draw = random.Random(seed)
    keys: dict[str, None] = {}
    while len(keys) < PAIRS:
        keys[" ".join(draw.choices(LETTERS, k=KEY))] = None
    return [(key, " ".join(draw.choices(LETTERS, k=VALUE))) for key in keys]


def right(said: str, wanted: str) -> float:
    """The share of letters that are right, each in its place."""
    given = said.replace(" ", "")
    return sum(a == b for a, b in zip(given, wanted.replace(" ", ""), strict=False)) / VALUE


def run(
    settings: dict[str, Any], rate: float, seed: int, also: tuple[str, ...], place: Place
) -> Run:
    """Learn the pairs of this seed, and ask for them at every checkpoint."""
    import torch

    torch.set_num_threads(1)
    import lorica
    from lorica.core.state import load_adapter_state
    from lorica.errors import TrainingError
    from lorica.formats.commit import read_tensors
    from lorica.formats.open_adapter import open_adapter
    from lorica.generation.generate import generate

    known = pairs(seed)
    steps = QUICK_STEPS if place.quick else STEPS
    with tempfile.TemporaryDirectory(dir=place.folder) as folder:
        output, path = Path(folder) / "run", Path(folder) / "pairs.jsonl"
        rows = [{"prompt": f"{key} :", "completion": f" {value}"} for key, value in known]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        try:
            result = lorica.train(
                base=str(place.shared / "data/models/stories260K"),
                output=str(output),
                data={"path": str(path), "validation": 0},
                learning_rate=rate,
                seed=seed,
                max_steps=steps,
                warmup_ratio=0.1,
                micro_batch_size=BATCH,
                save_steps=steps // WATCHED,
                keep_checkpoints=WATCHED,
                show=False,
                **settings,
            )
        except TrainingError as error:
            return {"seed": seed, "score": None, "stopped": error.what}
        opened, shares = open_adapter(output), []
        for checkpoint in sorted((output / "checkpoints").iterdir()):
            load_adapter_state(opened.model, read_tensors(checkpoint / "adapter.safetensors"))
            said = generate(
                opened, [row["prompt"] for row in rows], max_new_tokens=VALUE, batch_size=PAIRS
            ).texts
            asked = zip(said, known, strict=True)
            shares.append(sum(right(text, value) for text, (_, value) in asked) / PAIRS)
    mean = sum(shares) / len(shares)
    return {
        "seed": seed,
        "score": 1 - mean,
        "mean": mean,
        "trained": result.figures["parameters"]["trained"],
        **{f"at_{k}": share for k, share in enumerate(shares, 1)},
    }


def parts(runs: Runs) -> list[Part]:
    found = []
    for r in RANKS:
        names = f"mora r={r}", f"lora r={r}"
        found.append(
            Part(
                f"r={r}: MoRA − LoRA, mean accuracy of the checkpoints",
                paired(runs, *names, "mean"),
                form="+.1%",
            )
        )
        found.append(
            Part(
                f"r={r}: MoRA − LoRA, final accuracy",
                paired(runs, *names, f"at_{WATCHED}"),
                counts=False,
                form="+.1%",
            )
        )
    return found


CLAIMS = [
    Claim(
        id="C1",
        title="MoRA memorises what LoRA with as many parameters does not",
        source="Jiang et al. 2024, arXiv:2405.12130: pairs of UUIDs with r=8, character "
        "accuracy after 700 steps: LoRA 10.7 %, MoRA 87.4 %; after 900 steps: 54.2 % and 100 %.",
        how=f"stories260K is trained on {PAIRS} random pairs (a key of {KEY} letters, a value of "
        f"{VALUE}, from {len(LETTERS)} letters: guessing gets {1 / len(LETTERS):.1%}); {STEPS} "
        f"steps of {BATCH} rows, all linear layers but the head. Character accuracy of the values, "
        "greedy decoding, after each fifth of the run. MoRA's square matrix has an even size, and "
        "so slightly fewer parameters. Learning rates are chosen by 1 − the mean accuracy of the "
        f"{WATCHED} checkpoints, on other pairs.",
        sides=[
            Side(f"{name} r={r}", run, {"method": {"name": name, "r": r}}, grid(3e-3))
            for r in RANKS
            for name in ("mora", "lora")
        ],
        columns=[
            *(
                Column(f"{k * STEPS // WATCHED} steps", f"at_{k}", ".1%")
                for k in range(1, WATCHED + 1)
            ),
            Column("mean", "mean", ".1%"),
        ],
        parts=parts,
    )
]
