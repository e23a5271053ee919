"""C9: double_lora and the LoRA of rank r1 + r2, from the same start, in float64."""

from functools import partial
from typing import Any

from benchmarks.claims.claim import Claim, Column, Place, Run, Runs, Side
from benchmarks.claims.verdict import Part

R, STEPS, QUICK_STEPS, BATCH, LENGTH = 8, 50, 5, 4, 64
ALPHA = 10.0  # no power of two: the scale 1.25 rounds, and rounds elsewhere in the two
BOUND = 1e-10
CASES = ((4, 1e-3), (4, 1e-2), (2, 3e-3))  # (rank of the second pair, learning rate)


def run(
    settings: dict[str, Any], rate: None, seed: int, also: tuple[str, ...], place: Place
) -> Run:
    """Train both on the same batches, and compare what they add to the weights."""
    import torch

    torch.set_num_threads(1)
    import lorica
    from lorica.base.load import load
    from lorica.core.bank import adapted_layers

    path = str(place.shared / "data/models/stories260K")
    double, lora = (
        lorica.method("double_lora", r=R, alpha=ALPHA, second_r=settings["second_r"]),
        lorica.Lora(r=R, alpha=ALPHA),
    )
    one, two = load(path), load(path)
    for base, method in ((one, double), (two, lora)):
        exact(lorica.adapt(base.model, method, seed=seed).double())
    pairs: list[tuple[Any, Any]] = [
        (adapters["default"], other["default"])
        for (_, _, adapters), (_, _, other) in zip(
            adapted_layers(one.model), adapted_layers(two.model), strict=True
        )
    ]
    with torch.no_grad():
        for both, single in pairs:
            single.a.copy_(torch.cat([both.a1, both.a2]))
            single.b.copy_(torch.cat([both.b1, both.b2], dim=1))
    ids = batches(one, seed, place)
    losses = [train(b.model, m, ids, settings["rate"]) for b, m in ((one, double), (two, lora))]
    added = [[b @ a for a, b in (adapter.factors() for adapter in pair)] for pair in pairs]
    return {
        "seed": seed,
        "score": None,
        "loss": losses[1],
        "loss_apart": abs(losses[0] - losses[1]),
        "moved": max(of_lora.abs().max().item() for _, of_lora in added),
        "apart": max((of_double - of_lora).abs().max().item() for of_double, of_lora in added),
    }


def exact(model: Any) -> None:
    """Norms in the model's own dtype: transformers' take their root in float32. In place."""
    from torch.nn import functional as F

    def rms_norm(module: Any, x: Any) -> Any:
        return F.rms_norm(x, x.shape[-1:], module.weight, module.variance_epsilon)

    for module in model.modules():
        if "RMSNorm" in type(module).__name__:
            module.forward = partial(rms_norm, module)


def batches(base: Any, seed: int, place: Place) -> Any:
    """Token ids, (steps, BATCH, LENGTH), in an order that follows from the seed."""
    import torch

    from lorica.data.config import DataConfig
    from lorica.data.load import load_data as load_rows

    config = DataConfig(
        path=str(place.folder / "train.jsonl"), max_length=LENGTH, validation=0, overlong="split"
    )
    rows = load_rows(config, base.tokenizer, seed=0, max_length=base.max_length).train
    ids = torch.tensor([row.ids for row in rows if len(row.ids) == LENGTH])
    ids = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))]
    steps = QUICK_STEPS if place.quick else STEPS
    return ids[: steps * BATCH].view(steps, BATCH, LENGTH)


def train(model: Any, method: Any, ids: Any, rate: float) -> float:
    """A plain loop, without clipping. In place. Returns the loss of the last batch."""
    from torch.nn import functional as F

    from lorica.core.rates import rates_of
    from lorica.core.state import adapter_state
    from lorica.training.optim import make_optimizer

    tensors: Any = adapter_state(model)
    optimizer = make_optimizer(tensors, rates_of(model, rate), kind="adamw", decay=0.0)
    last = 0.0
    for batch in ids:
        optimizer.zero_grad()
        logits = model(input_ids=batch).logits[:, :-1].flatten(0, 1)  # its own loss is float32
        loss = F.cross_entropy(logits, batch[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        last = loss.item()
    return last


def parts(runs: Runs) -> list[Part]:
    return [
        Part(
            f"{name}: largest difference between the updates",
            [r.get("apart") for r in found],
            bound=BOUND,
            form=".1e",
        )
        for name, found in runs.items()
    ]


CLAIMS = [
    Claim(
        id="C9",
        title="double_lora equals LoRA of rank r1 + r2",
        source="no paper. s B1 A1 + s B2 A2 is the product of [B1 | B2] and [A1; A2], and AdamW "
        "updates each parameter by itself.",
        how=f"stories260K in float64, both from the same start; {STEPS} steps of {BATCH} x "
        f"{LENGTH} tokens of Shakespeare at three learning rates, without clipping or dropout. The "
        f"largest difference between the two weight updates may be {BOUND:g}.",
        sides=[
            Side(f"{R - r} + {r}, rate {rate:g}", run, {"second_r": r, "rate": rate})
            for r, rate in CASES
        ],
        columns=[
            Column("loss of the last batch", "loss"),
            Column("difference of the losses", "loss_apart", ".1e"),
            Column("largest update", "moved", ".1e"),
            Column("difference of the updates", "apart", ".1e"),
        ],
        parts=parts,
    )
]
