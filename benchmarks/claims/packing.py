"""C5: what the loss of a base is with its linear layers in 4 bits, by the kind of number.

Nothing is trained. The three seeds are three stretches of text. int4 is made here, by hand: each
block of 64 weights is divided by its largest |w| and rounded to -7 ... 7.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.claims.claim import Claim, Column, Place, Run, Runs, Side, minus, paired
from benchmarks.claims.text import PLAY, STORIES
from benchmarks.claims.verdict import Part

BASES = ("stories260K", "tinystories-656k", "bundled")
KINDS = ("float", "nf4", "nf4 double", "fp4", "int4")
BLOCK, LARGEST = 64, 7
LENGTH, STRETCH, DOCUMENTS = 256, 30_000, 80  # tokens a row; characters; texts of world/
UNSEEN = 999_983  # seed of the texts that the bundled base was not trained on
FREE = 0.1
"""Double quantisation counts as free if it adds less than this share of what NF4 costs."""


def stretches(base: str, seed: int, place: Place) -> dict[str, list[str]]:
    """Texts to measure on: of the kind that the base comes from, and Shakespeare."""
    from world.texts import documents

    short = 10 if place.quick else 1
    length, count = STRETCH // short, DOCUMENTS // short
    span = slice(seed * length, (seed + 1) * length)
    play = (place.shared / PLAY).read_text()[span]
    if base != "bundled":
        return {"own": [(place.shared / STORIES).read_text()[span]], "other": [play]}
    texts = [text for _, text in documents((seed + 1) * count, UNSEEN)]
    return {"own": texts[seed * count :], "other": [play]}


def int4(weight: Any) -> Any:
    """The weight as its 4-bit numbers stand for it."""
    import torch

    blocks = weight.flatten().view(-1, BLOCK)
    step = blocks.abs().amax(1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny) / LARGEST
    return ((blocks / step).round() * step).view_as(weight)


def run(
    settings: dict[str, Any], rate: None, seed: int, also: tuple[str, ...], place: Place
) -> Run:
    """The loss of one base in one kind of number on stretch `seed` of both texts."""
    import torch

    torch.set_num_threads(1)
    from lorica.base.load import load
    from lorica.core.site import sites_of
    from lorica.data.config import DataConfig
    from lorica.data.load import load_data as load_rows
    from lorica.evaluation.loss import mean_loss

    name, kind = settings["base"], settings["kind"]
    path = name if name == "bundled" else str(place.shared / "data/models" / name)
    packed = kind.split()[0] if kind.startswith(("nf4", "fp4")) else None
    base = load(path, quantisation=packed, double_quantisation=kind.endswith("double"))
    if kind == "int4":
        for site in sites_of(base.model):
            if site.kind == "linear" and not site.is_head:
                weight: Any = site.module.weight
                weight.data.copy_(int4(weight.data))
    found: Run = {"seed": seed, "score": None}
    with tempfile.TemporaryDirectory(dir=place.folder) as folder:
        for key, texts in stretches(name, seed, place).items():
            file = Path(folder) / f"{key}.jsonl"
            file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
            config = DataConfig(path=str(file), max_length=LENGTH, validation=0, overlong="split")
            rows = load_rows(config, base.tokenizer, seed=0, max_length=base.max_length).train
            found[key] = mean_loss(base.model, rows)
    return found


def parts(runs: Runs) -> list[Part]:
    found = []
    for key, text in (("own", "own text"), ("other", "Shakespeare")):
        for base in BASES:
            nf4, own = f"{base} nf4", key == "own"
            for kind in ("fp4", "int4"):
                more = paired(runs, f"{base} {kind}", nf4, key)
                found.append(Part(f"{base}, {text}: {kind} − nf4", more, counts=own, form="+.4f"))
            cost = paired(runs, nf4, f"{base} float", key)
            doubled = paired(runs, f"{base} nf4 double", nf4, key)
            room = [
                minus(None if c is None else FREE * abs(c), d)
                for c, d in zip(cost, doubled, strict=True)
            ]
            what = f"{base}, {text}: 0.1 x cost of nf4 − cost of double quantisation"
            found.append(Part(what, room, counts=own, form="+.4f"))
    return found


CLAIMS = [
    Claim(
        id="C5",
        title="NF4 loses less than FP4 and INT4, and double quantisation costs nothing",
        source="Dettmers et al. 2023, arXiv:2305.14314, table 2, mean perplexity on Common Crawl: "
        "Int4 34.34, FP4 31.07, NF4 with double quantisation 27.41.",
        how="nothing is trained. The loss, in nats per token, of three bases whose linear layers "
        "(all but the head) are quantised in blocks of 64 weights with a float32 scale (double: "
        f"8-bit scales). Each seed is another piece of text: {STRETCH:,} characters, or "
        f"{DOCUMENTS} texts. The claim is judged on the kind of text that the base was trained on: "
        "there, less exact weights mean a higher loss.",
        sides=[
            Side(f"{base} {kind}", run, {"base": base, "kind": kind})
            for base in BASES
            for kind in KINDS
        ],
        columns=[
            Column("loss, own text", "own", ".4f"),
            Column("loss, Shakespeare", "other", ".4f"),
        ],
        parts=parts,
    )
]
